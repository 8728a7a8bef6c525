"""The objective: what moves what, and both losses against NumPy."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sercli import distributed
from sercli.actions import GeometricAction
from sercli.addons.ser import model as ser
from sercli.errors import UserError
from sercli.families import addon_configs, method_configs
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.views.making import draw_actions
from sercli.views.plan import PairedViews
from tests.support import workers

GRID = (4, 4)
BLOCKS = 4


def build(addon=None, *, model=None, method=None, dtype=torch.float64):
    tree = {
        "data": {"image_size": 32},
        "model": {
            "name": "vit_micro", "width": 32, "depth": BLOCKS, "num_heads": 2, "patch_size": 8,
            **(model or {}),
        },
        "method": {"name": "moco", "hidden_width": 32, "output_width": 16, **(method or {})},
        "addon": {
            "name": "ser", "layer": 2, "fraction": 0.5, "projector_width": 16, **(addon or {}),
        },
    }  # fmt: skip
    if addon is not None and addon.get("name") == "none":
        tree["addon"] = {"name": "none"}
    recipe = from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe
    objective = Objective(recipe).to(dtype)
    with torch.no_grad():  # a [CLS] and a teacher that can be told apart
        objective.encoder.cls_token.normal_(std=0.5, generator=torch.Generator().manual_seed(4))
        if objective.teacher is not None:
            objective.teacher.encoder.load_state_dict(objective.encoder.state_dict())
            for p in objective.teacher.parameters():
                p.mul_(1.1)
    return objective


def make_views(standard=3, paired=4, *, seed=0, dtype=torch.float64, **request):
    total = standard + paired
    views = workers.make_views(PairedViews(paired / total, **request), total, seed=seed)
    return dataclasses.replace(
        views,
        standard=tuple(view.to(dtype) for view in views.standard),
        paired=tuple(view.to(dtype) for view in views.paired),
    )


def without_invariance(objective, monkeypatch):
    monkeypatch.setattr(objective.method, "loss", lambda given: given.students[0].new_zeros(()))


def norms(module):
    return {
        name: None if p.grad is None else p.grad.norm().item()
        for name, p in module.named_parameters()
    }


# -- what moves what ------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_addon_trains_blocks_up_to_its_layer_and_nothing_beyond(monkeypatch, layer):
    objective = build({"layer": layer})
    without_invariance(objective, monkeypatch)
    objective(make_views()).total.backward()
    for name, norm in norms(objective.student).items():
        block = int(name.split(".")[2]) + 1 if name.startswith("encoder.blocks.") else None
        early = name.startswith(("encoder.patch_embed", "encoder.pos_embed", "addon."))
        if early or (block is not None and block <= layer):
            assert norm is not None, name
            assert norm > 1e-6, name
        else:  # blocks beyond, final norm, [CLS], the method's heads: exactly nothing
            assert norm in (None, 0.0), name
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_the_total_trains_everything_that_is_trainable():
    objective = build()
    objective(make_views()).total.backward()
    for name, norm in norms(objective.student).items():
        assert norm is not None, name
        if name != "encoder.norm.bias":  # the batch norm behind it removes any common shift
            assert norm > 1e-8, name
    for p in objective.teacher.parameters():
        assert not p.requires_grad
        assert p.grad is None


def test_what_is_frozen_stays_frozen():
    objective = build(model={"patch_embed": "frozen", "pos_embed": "sincos"})
    objective(make_views()).total.backward()
    frozen = {name for name, p in objective.student.named_parameters() if not p.requires_grad}
    assert frozen == {
        "encoder.patch_embed.proj.weight",
        "encoder.patch_embed.proj.bias",
        "encoder.pos_embed",
    }
    assert objective.encoder.pos_embed.grad is None
    assert objective.encoder.patch_embed.proj.weight.grad is None


def test_where_the_last_layer_is_tapped_cls_is_there_from_the_start():
    objective = build({"layer": BLOCKS})
    assert objective.encoder.cls_after == 0
    assert build({"layer": 3}).encoder.cls_after == 3
    losses = objective(make_views())
    losses.total.backward()
    assert losses.equivariance.item() > 0


def run_steps(objective, steps=3):
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    for step in range(steps):
        optimiser.zero_grad()
        objective(make_views(seed=step)).total.backward()
        optimiser.step()
        objective._update_teacher(0.9)
    return {name: p.detach().clone() for name, p in objective.named_parameters()}


def test_lambda_0_is_the_run_without_the_term_bit_for_bit(monkeypatch):
    watched = build({"weight": 0})
    assert not any(p.requires_grad for p in watched.addon.parameters())  # DDP must not wait
    before = {n: p.detach().clone() for n, p in watched.named_parameters()}
    with_term = run_steps(watched)
    without = build({"weight": 0})
    monkeypatch.setattr(without.addon, "loss", lambda _: torch.zeros((), dtype=torch.float64))
    expected = run_steps(without)
    assert with_term.keys() == expected.keys()
    assert all(torch.equal(with_term[name], expected[name]) for name in expected)
    for name in expected:
        if name.startswith("student."):
            stays = name.startswith("student.addon.")
            assert torch.equal(before[name], with_term[name]) == stays, name
    trained = run_steps(build({"weight": 1}))
    assert not torch.equal(
        trained["student.encoder.pos_embed"], expected["student.encoder.pos_embed"]
    )


def test_lambda_0_still_reports_the_term():
    watched, trained = build({"weight": 0})(make_views()), build({"weight": 1})(make_views())
    assert watched.equivariance.item() == trained.equivariance.item()
    assert watched.total.item() == watched.invariance.item() == trained.invariance.item()


@pytest.mark.parametrize("weight", [0.3, 1, 5])
def test_the_total_is_the_weighted_sum(weight):
    losses = build({"weight": weight})(make_views())
    expected = losses.invariance + weight * losses.equivariance
    torch.testing.assert_close(losses.total, expected, rtol=1e-12, atol=0)
    for part in (losses.invariance, losses.equivariance, losses.cls):
        assert not part.requires_grad


def test_no_addon():
    objective = build({"name": "none"})
    assert objective.addon is None
    assert objective.plan.paired is None
    assert objective.encoder.cls_after == 0
    views = make_views()
    part = dataclasses.replace(views.part, paired_counts=(0,))
    views = dataclasses.replace(views, part=part, paired=(), actions=())
    losses = objective(views)
    assert losses.equivariance is None
    assert losses.cls.shape == (3, 32)
    losses.total.backward()
    assert objective.encoder.cls_token.grad.norm() > 0


def test_everything_may_be_paired():
    objective = build({"fraction": 1.0})
    views = make_views(standard=0)
    losses = objective(views)
    losses.total.backward()
    assert math.isfinite(losses.total.item())
    assert all(p.grad.isfinite().all() for p in objective.student.parameters())


def test_every_view_is_encoded_once():
    objective = build()
    rows = {"student": 0, "teacher": 0}

    def count(who):
        def hook(_module, arguments):
            rows[who] += arguments[1].num_images

        return hook

    for block, other in zip(
        objective.encoder.blocks, objective.teacher.encoder.blocks, strict=True
    ):
        block.register_forward_pre_hook(count("student"))
        other.register_forward_pre_hook(count("teacher"))
    views = make_views()
    losses = objective(views)
    assert rows == {"student": 14 * BLOCKS, "teacher": 14 * BLOCKS}
    # [CLS] of the first view, b₁ first.
    expected = torch.cat(
        [objective.encoder(views.standard[0]).cls, objective.encoder(views.paired[0]).cls]
    )
    torch.testing.assert_close(losses.cls, expected.detach(), rtol=1e-10, atol=1e-10)


# -- the invariance loss --------------------------------------------------------------------------


def numpy_mlp(rows, head):
    """Linear, batch norm, ReLU, …, linear, batch norm without scale: MoCo-v3's heads."""
    weights = {name: p.detach().numpy() for name, p in head.named_parameters()}
    linears = sorted(
        (int(n.split(".")[0]) for n in weights if weights[n].ndim == 2),
    )
    for position in linears:
        rows = rows @ weights[f"{position}.weight"].T
        rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
        if position != linears[-1]:
            rows = rows * weights[f"{position + 1}.weight"] + weights[f"{position + 1}.bias"]
            rows = np.maximum(rows, 0)
    return rows


def numpy_contrast(queries, keys, temperature):
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    logits = queries @ keys.T / temperature
    log_sum = np.log(np.exp(logits).sum(1))
    return 2 * temperature * (log_sum - np.diag(logits)).mean()


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_invariance_loss_is_moco_v3s_on_the_joined_cls(temperature):
    objective = build(method={"temperature": temperature})
    with torch.no_grad():
        for p in objective.method.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn_like(p))
    views = make_views()
    ours = objective(views).invariance.item()

    def cls(encoder, view):
        with torch.no_grad():
            parts = [encoder(views.standard[view]).cls, encoder(views.paired[view]).cls]
        return torch.cat(parts).numpy()

    q, k = [], []
    for view in range(2):
        projected = numpy_mlp(cls(objective.encoder, view), objective.method.projector)
        q.append(numpy_mlp(projected, objective.method.predictor))
        k.append(numpy_mlp(cls(objective.teacher.encoder, view), objective.teacher.method))
    expected = numpy_contrast(q[0], k[1], temperature) + numpy_contrast(q[1], k[0], temperature)
    assert ours == pytest.approx(expected, rel=1e-9)


def test_the_invariance_loss_is_computed_in_fp32_under_autocast(monkeypatch):
    objective = build(dtype=torch.float32)
    seen = []
    loss = objective.method.loss

    def spy(given):
        students, teachers = (
            [t.detach().double() for t in g] for g in (given.students, given.teachers)
        )
        seen.append((students, teachers))
        return loss(given)

    monkeypatch.setattr(objective.method, "loss", spy)
    with torch.autocast("cpu", torch.bfloat16):
        ours = objective(make_views(standard=12, dtype=torch.float32)).invariance.item()
    (q, k) = seen[0]
    expected = sum(numpy_contrast(q[i].numpy(), k[1 - i].numpy(), 0.2) for i in range(2))
    assert ours == pytest.approx(expected, rel=1e-5)


def test_losses_are_fp32_or_wider_under_autocast():
    objective = build(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(make_views(dtype=torch.float32))
    assert losses.total.dtype == losses.invariance.dtype == torch.float32
    assert losses.equivariance.dtype == torch.float32
    exact = objective(make_views(dtype=torch.float32))
    assert losses.equivariance.item() == pytest.approx(exact.equivariance.item(), rel=0.02)
    assert losses.invariance.item() == pytest.approx(exact.invariance.item(), rel=0.2)


# -- the equivariance loss ------------------------------------------------------------------------


def frame(action, image):
    """Cell of the base that each cell of the view shows, by moving cell numbers."""
    cells = np.arange(16).reshape(GRID)
    if action.hflip[image]:
        cells = np.fliplr(cells)
    return np.rot90(cells, int(action.rot90[image])).reshape(-1)


def tokens_of(encoder, head, view, layer):
    """[B, N, D] projected tokens, with torch's functions and the head's tensors."""
    tokens = encoder(view, (layer,)).grids[layer].flatten(2).transpose(1, 2)
    tokens = F.layer_norm(tokens, (32,), head.norm.weight, head.norm.bias, 1e-6)
    return F.gelu(tokens @ head.expand.weight.T) @ head.project.weight.T


def closed_form(anchors, keys, frames, other_frames, *, temperature, negatives):
    """The mean over anchors of −log softmax over the full matrix; keys as they lie in their view.

    Differentiable: autograd through it is the oracle of the gradient.
    """
    z, k = F.normalize(anchors, dim=-1), F.normalize(keys, dim=-1)
    # Where the other view shows what the anchors' view shows at each place.
    places = [
        [int(np.flatnonzero(other == cell)[0]) for cell in mine]
        for mine, other in zip(frames, other_frames, strict=True)
    ]
    k = torch.stack([image[place] for image, place in zip(k, places, strict=True)])
    radius = float(negatives.split(":")[1]) if ":" in negatives else math.inf
    near = torch.tensor(
        [[math.dist(divmod(n, 4), divmod(m, 4)) <= radius for m in range(16)] for n in range(16)]
    )
    own_image = torch.block_diag(*[near] * len(z)).bool()
    cross = (z.flatten(0, 1) @ k.flatten(0, 1).T / temperature).exp()
    positive = cross.diagonal()
    rest = cross.masked_fill(own_image, 0).sum(1)
    if negatives.startswith("both-views"):
        own = (z.flatten(0, 1) @ z.flatten(0, 1).T / temperature).exp()
        rest = rest + own.masked_fill(own_image, 0).sum(1)
    return -(positive / (positive + rest)).log().mean()


FORMS = ["cross-view", "both-views", "cross-view+spatial:1", "both-views+spatial:1.5"]


def tapped(negatives, layer, monkeypatch):
    """An objective of the equivariance term alone, on views without scaling, and the frames."""
    objective = build({"negatives": negatives, "temperature": 0.3, "layer": layer, "weight": 1})
    without_invariance(objective, monkeypatch)
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for head in (objective.addon.projector, objective.teacher.addon):
            for p in head.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
    views = make_views(paired=3, scale=(1, 1), aspect=(1, 1), seed=2)
    assert all(action.grid == GRID for action in views.actions)
    frames = [[frame(action, image) for image in range(3)] for action in views.actions]
    return objective, views, frames


def both_directions(z, k, frames, negatives):
    return sum(
        closed_form(z[j], k[1 - j], frames[j], frames[1 - j], temperature=0.3, negatives=negatives)
        for j in range(2)
    ) / 2  # fmt: skip


def gradients(loss, module):
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("negatives", FORMS)
@pytest.mark.parametrize("layer", [2, BLOCKS])
def test_the_equivariance_loss_and_its_gradient_in_closed_form(monkeypatch, negatives, layer):
    objective, views, frames = tapped(negatives, layer, monkeypatch)
    student, teacher = objective.student, objective.teacher
    z = [tokens_of(student.encoder, student.addon.projector, v, layer) for v in views.paired]
    with torch.no_grad():
        k = [tokens_of(teacher.encoder, teacher.addon, v, layer) for v in views.paired]
    expected = both_directions(z, k, frames, negatives)
    losses = objective(views)
    assert losses.equivariance.item() == pytest.approx(expected.item(), rel=1e-9)
    ours, gold = gradients(losses.total, student), gradients(expected, student)
    for name, gradient in gold.items():
        if gradient is not None:
            torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-11)
    placebo = build({"negatives": negatives, "layer": layer, "action": "placebo"})
    placebo.load_state_dict(objective.state_dict())
    assert abs(placebo(views).equivariance.item() - expected.item()) > 1e-4


@pytest.mark.parametrize("negatives", FORMS)
def test_without_a_teacher_keys_carry_gradient_too(monkeypatch, negatives):
    """As for methods that have none: the student's own tokens are the keys."""
    objective, views, frames = tapped(negatives, 2, monkeypatch)
    student = objective.student
    z = [tokens_of(student.encoder, student.addon.projector, v, 2) for v in views.paired]
    expected = both_directions(z, z, frames, negatives)
    features = [student.encoder(v, (2,)) for v in views.paired]
    ours = student.addon.loss(ser.AddonInput(features, None, None, views))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
    mine, gold = gradients(ours, student), gradients(expected, student)
    for name, gradient in gold.items():
        if gradient is not None:
            torch.testing.assert_close(mine[name], gradient, rtol=1e-8, atol=1e-11)


def test_a_placebo_never_has_the_right_frame(monkeypatch):
    objective = build({"action": "placebo"})
    targets = []
    transport = ser.transport

    def spy(tokens, *, source, target, sent):
        targets.append(target)
        return transport(tokens, source=source, target=target, sent=sent)

    monkeypatch.setattr(ser, "transport", spy)
    elements = set()
    for seed in range(6):
        targets.clear()
        views = make_views(paired=8, standard=2, seed=seed)
        objective(views)
        for action, target in zip(views.actions, targets, strict=True):
            assert target.grid == action.grid
            wrong = (target.hflip != action.hflip) | (target.rot90 != action.rot90)
            assert wrong.all()
            error = target.compose(action.inverse(GRID))
            elements |= set((error.rot90 + 4 * error.hflip).tolist())
    assert elements == {1, 2, 3, 4, 5, 6, 7}
    # A function of the step's seed.
    views = make_views(seed=1)
    assert objective(views).equivariance.item() == objective(views).equivariance.item()


@pytest.mark.parametrize(
    ("preset", "negatives", "temperature"),
    [
        ("paper", "both-views", 0.3),
        ("authors-code", "cross-view", 0.5),
        ("summary", "both-views", 0.3),
    ],
)
def test_presets_reach_the_loss(monkeypatch, preset, negatives, temperature):
    objective = build({"preset": preset})
    calls = []
    loss = ser.patch_nt_xent

    def spy(anchors, keys, **options):
        calls.append((options["negatives"], options["temperature"], options["own_view"]))
        return loss(anchors, keys, **options)

    monkeypatch.setattr(ser, "patch_nt_xent", spy)
    objective(make_views())
    assert [call[:2] for call in calls] == [(negatives, temperature)] * 2
    assert all((call[2] is not None) == (negatives == "both-views") for call in calls)
    asked = objective.plan.paired
    assert asked.base == ("full" if preset == "summary" else "crop")
    assert asked.share == ("per-rank" if preset == "authors-code" else "global")
    assert asked.elements == ("complementary" if preset == "authors-code" else "independent")


def test_no_gradient_reaches_the_teachers_tokens(monkeypatch):
    objective = build()
    keys = []
    loss = ser.patch_nt_xent

    def spy(anchors, given, **options):
        keys.append((anchors.requires_grad, given.requires_grad))
        return loss(anchors, given, **options)

    monkeypatch.setattr(ser, "patch_nt_xent", spy)
    objective(make_views()).total.backward()
    assert keys == [(True, False)] * 2


def test_an_equivariant_map_is_what_the_loss_wants():
    """Tokens that move with the image score better than tokens that stay where they are."""
    objective = build({"temperature": 0.1, "negatives": "cross-view+spatial:0"})
    base = torch.randn(3, 32, *GRID, dtype=torch.float64)
    actions = draw_actions(PairedViews(1, scale=(1, 1), aspect=(1, 1)), 3, GRID, 0, 0)

    def loss(maps):
        features = [ser_features(m) for m in maps]
        views = dataclasses.replace(make_views(paired=3), actions=actions)
        given = ser.AddonInput(features, None, None, views)
        with torch.no_grad():
            return objective.addon.loss(given).item()

    moving = loss([a.on_image(base, patch=1) for a in actions])
    staying = loss([base, base])
    assert moving < staying - 0.1


def ser_features(grid):
    from sercli.encoders.vit import Features

    return Features(grid.mean((2, 3)), {2: grid}, {})


def test_rank_local_keys_with_one_image_on_a_rank(monkeypatch):
    """preset=summary, batch 4 on two ranks: n₂ = 2, one a rank."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    objective = build({"preset": "summary"})
    try:
        losses = objective(workers.make_views(objective.plan, 4, seed=0))
    except UserError:
        return
    assert math.isfinite(losses.equivariance.item())


# -- the teacher ----------------------------------------------------------------------------------


def test_the_teacher_starts_as_the_student_and_follows_it():
    objective = build()
    fresh = Objective(
        from_mapping(
            {"method": {"name": "moco"}, "addon": {"name": "ser"}, "model": {"name": "vit_micro"}},
            methods=method_configs(),
            addons=addon_configs(),
        ).recipe
    )
    student = fresh.student.state_dict()
    pairs = {"encoder.": "encoder.", "method.": "method.projector.", "addon.": "addon.projector."}
    for name, value in fresh.teacher.state_dict().items():
        section = name.partition(".")[0] + "."
        assert torch.equal(value, student[pairs[section] + name.removeprefix(section)]), name
    before = {name: p.detach().clone() for name, p in objective.teacher.named_parameters()}
    with torch.no_grad():
        for p in objective.student.parameters():
            p.add_(torch.randn_like(p))
    student = {name: p.detach().clone() for name, p in objective.student.named_parameters()}
    objective._update_teacher(0.9)
    for name, p in objective.teacher.named_parameters():
        section = name.partition(".")[0] + "."
        current = student[pairs[section] + name.removeprefix(section)]
        expected = 0.9 * before[name] + 0.1 * current
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-14)
    for name, p in objective.student.named_parameters():
        assert torch.equal(p, student[name])
    objective._update_teacher(0.0)
    torch.testing.assert_close(
        objective.teacher.encoder.pos_embed, objective.encoder.pos_embed, rtol=0, atol=1e-15
    )


def test_the_momentum_rises_on_a_cosine():
    method = build(method={"momentum": 0.9}).method
    for progress in (0, 0.25, 0.5, 1):
        expected = 1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2
        assert method.momentum_at(progress) == pytest.approx(expected)


def test_weights_are_the_seeds_and_shared_between_controls():
    """λ = 0, the placebo and the run itself start from the same student."""
    first, other = build(), build({"action": "placebo", "weight": 0})
    state = other.student.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in first.student.state_dict().items())
    bare = build({"name": "none"}).student.state_dict()
    for key, value in bare.items():
        assert torch.equal(value, state[key]), key


def test_actions_stay_on_the_cpu_and_are_not_changed():
    views = make_views()
    before = [(a.hflip.clone(), a.rot90.clone()) for a in views.actions]
    build()(views)
    for (hflip, rot90), action in zip(before, views.actions, strict=True):
        assert isinstance(action, GeometricAction)
        assert torch.equal(hflip, action.hflip)
        assert torch.equal(rot90, action.rot90)


def test_authors_code_projects_keys_with_the_students_own_projector(monkeypatch):
    """Behind the teacher's own LayerNorm; the projector gets gradient from the keys as well."""
    objective = build({"preset": "authors-code"})
    views = make_views(elements="complementary")
    assert {name for name, _ in objective.teacher.addon.named_parameters()} == {"weight", "bias"}
    addon, seen = objective.addon, []
    ours = addon.loss
    monkeypatch.setattr(addon, "loss", lambda given: seen.append(given) or ours(given))
    objective(views)
    given = dataclasses.replace(seen[0], students=[f.detach() for f in seen[0].students])
    loss = ours(given)
    loss.backward()
    # The same value with an averaged projector that happens to be the student's.
    copied = copy.deepcopy(addon.projector)
    copied.norm = objective.teacher.addon
    averaged = build({"preset": "authors-code", "key_projector": "teacher"}).addon
    averaged.load_state_dict(addon.state_dict())
    again = averaged.loss(dataclasses.replace(given, teacher_head=copied))
    assert again.item() == pytest.approx(loss.item(), rel=1e-12)
    again.backward()
    with_keys, without = norms(addon.projector), norms(averaged.projector)
    assert with_keys["norm.weight"] == pytest.approx(without["norm.weight"], rel=1e-9)
    for name in ("expand.weight", "project.weight"):
        assert with_keys[name] != pytest.approx(without[name], rel=1e-3)
