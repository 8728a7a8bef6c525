"""What changes over a run, and the methods' losses through the objective in closed form."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch

from sercli import distributed
from sercli.encoders.tokens import Layout, Span
from sercli.engine.optimiser import clip_gradients, make_optimiser, set_schedule
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import runtime_for
from sercli.engine.trainer import Trainer
from sercli.errors import Preempted
from sercli.families import addon_configs, method_configs
from sercli.heads import PrototypeHead
from sercli.methods.base import MethodInput
from sercli.methods.moco import model as moco
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.recipe.schedule import Moment, Schedule
from sercli.recipe.schema import Train
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support import recipes, workers
from tests.support.pictures import Pictures
from tests.support.training import TIMES

METHODS = {
    "moco": {"hidden_width": 12, "output_width": 6},
    "dino": {"prototypes": 10, "hidden_width": 12, "bottleneck_width": 6},
    "barlow-twins": {"hidden_width": 12, "output_width": 6},
}
SER = {"name": "ser", "layer": 2, "fraction": 0.5, "projector_width": 8}
DEPTH = 4


def recipe_of(method, settings=(), *, addon=None, setting="2", model=(), train=()):
    colours = recipes.COLOURS
    local = {"local": {"colours": colours}} if setting == "2+4-crops" else {}
    tree = {
        "seed": 3,
        "data": {"image_size": 32, "workers": 0},
        "model": {
            "name": "vit_micro", "width": 16, "depth": DEPTH, "num_heads": 2, "patch_size": 8,
            **dict(model),
        },
        "method": {"name": method, **METHODS[method], **dict(settings)},
        "addon": addon or {"name": "none"},
        "views": {"setting": setting, "view1": colours, "view2": colours, **local},
        "train": {"batch_size": 6, "log_steps": 1, "monitor_epochs": 0, **dict(train)},
    }  # fmt: skip
    return from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe


def build(method, settings=(), **options):
    """In float64, with heads that are not as they start and another teacher than the student."""
    objective = Objective(recipe_of(method, settings, **options)).double()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        objective.encoder.cls_token.normal_(std=0.5, generator=draws)
        for p in objective.method.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
        if objective.teacher is not None:
            for p in objective.teacher.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
    return objective


def views_of(objective, *, count=6, seed=0):
    return workers.make_views(objective.plan, count, seed=seed)


def at(epoch):
    return Moment(epoch, epoch / 100)


# -- NumPy ----------------------------------------------------------------------------------------


def embeddings(encoder, views, number):
    """[CLS] of the first views, b₁ and b₂ joined."""
    found = []
    for view in range(number):
        parts = [views.standard[view], *([views.paired[view]] if views.paired else [])]
        with torch.no_grad():
            found.append(torch.cat([encoder(part).cls for part in parts]).numpy())
    return found


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def values(module):
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def prototype_head(rows, head):
    w = values(head)
    for layer in ("mlp.0", "mlp.2", "mlp.4"):
        rows = rows @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]
        if layer != "mlp.4":
            rows = rows * (1 + np.vectorize(math.erf)(rows / math.sqrt(2))) / 2  # GELU
    cosines = unit(rows) @ unit(w["prototypes"]).T
    return cosines * w["lengths"].T if "lengths" in w else cosines


def batch_norm(rows):
    return (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)


def mlp(rows, head, *, last_norm):
    """Linear maps without bias; batch norm and ReLU behind each but the last."""
    w = values(head)
    places = sorted(int(name.split(".")[0]) for name in w if w[name].ndim == 2)
    for place in places:
        rows = rows @ w[f"{place}.weight"].T
        if place != places[-1]:
            rows = batch_norm(rows) * w[f"{place + 1}.weight"] + w[f"{place + 1}.bias"]
            rows = np.maximum(rows, 0)
    return batch_norm(rows) if last_norm else rows


# -- DINO: the loss -------------------------------------------------------------------------------


def dino_logits(objective, views):
    number = objective.plan.num_invariant
    student = embeddings(objective.encoder, views, number)
    teacher = embeddings(objective.teacher.encoder, views, 2)
    return (
        [prototype_head(cls, objective.method.head) for cls in student],
        [prototype_head(cls, objective.teacher.method) for cls in teacher],
    )


def numpy_dino(students, teachers, center, *, sharp, soft):
    """Mean over the pairs of different views, of which the teacher's is global."""
    terms = []
    for t, teacher in enumerate(teachers):
        target = softmax((teacher - center) / sharp)
        for v, student in enumerate(students):
            if v != t:
                terms.append(-(target * np.log(softmax(student / soft))).sum(1).mean())
    return np.mean(terms), len(terms)


@pytest.mark.parametrize("addon", [None, SER])
@pytest.mark.parametrize(("setting", "pairs"), [("2", 2), ("2+4-crops", 10)])
@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_dinos_loss_in_closed_form(norm_last_layer, setting, pairs, addon):
    settings = {"norm_last_layer": norm_last_layer, "student_temperature": 0.2}
    objective = build("dino", settings, setting=setting, addon=addon)
    assert (objective.method.head.lengths is None) == norm_last_layer
    center = torch.linspace(-0.3, 0.4, 10, dtype=torch.float64)
    objective.method.center.copy_(center)
    views = views_of(objective)
    students, teachers = dino_logits(objective, views)
    for epoch, sharp in ((0, 0.04), (3, 0.05), (25, 0.07)):
        objective.method.center.copy_(center)
        ours = objective(views, at(epoch)).invariance.item()
        gold, terms = numpy_dino(students, teachers, center.numpy(), sharp=sharp, soft=0.2)
        assert terms == pairs
        assert ours == pytest.approx(gold, rel=1e-9)


def test_prototypes_are_of_length_1_unless_their_lengths_are_learnt():
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    options = dict(hidden=12, bottleneck=6, prototypes=10)
    unit_length = PrototypeHead(8, **options, norm_last_layer=True)
    free = PrototypeHead(8, **options, norm_last_layer=False)
    assert free.lengths.tolist() == [[1.0]] * 10
    free.load_state_dict(unit_length.state_dict() | {"lengths": torch.ones(10, 1)})
    before = unit_length(rows)
    assert before.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(free(rows), before)
    with torch.no_grad():
        for head in (unit_length, free):
            head.prototypes.mul_(torch.linspace(0.5, 4, 10)[:, None])
        free.lengths.copy_(torch.linspace(1, 2, 10)[:, None])
    torch.testing.assert_close(unit_length(rows), before)
    torch.testing.assert_close(free(rows), before * torch.linspace(1, 2, 10))
    free(rows).square().sum().backward()
    assert (free.lengths.grad.abs() > 0).all()
    unit_length(rows).square().sum().backward()
    along = (unit_length.prototypes.grad * unit_length.prototypes).sum(1)
    torch.testing.assert_close(along, torch.zeros(10), rtol=0, atol=1e-6)


# -- DINO: the schedules --------------------------------------------------------------------------


def test_the_teachers_temperature_rises_by_epoch_and_stays():
    for rise in (1, 2, 5, 10):  # as DINO makes its table, of 12 epochs
        table = [*np.linspace(0.04, 0.1, rise), *np.full(12 - rise, 0.1)]
        settings = {"teacher_temperature": 0.1, "temperature_epochs": rise}
        method = build("dino", settings).method
        for epoch, expected in enumerate(table):
            for within in (0, 0.5, 0.999):
                found = method.teacher_temperature_at(epoch + within)
                assert found == pytest.approx(expected, rel=1e-12)
    method = build("dino", {"temperature_epochs": 0}).method
    assert method.teacher_temperature_at(0) == 0.07


@pytest.mark.parametrize(("method", "first"), [("dino", 0.982), ("moco", 0.99)])
def test_the_teachers_momentum_rises_to_1_on_a_cosine(method, first):
    momentum_at = build(method).method.momentum_at
    for progress in (0, 0.1, 0.5, 0.9, 1):
        expected = 1 - (1 - first) * (math.cos(math.pi * progress) + 1) / 2
        assert momentum_at(progress) == pytest.approx(expected, rel=1e-12)


def test_weight_decay_goes_to_its_end_on_a_cosine():
    train = dict(batch_size=6, epochs=10)
    schedule = Schedule.of(Train(**train, weight_decay=0.04, final_weight_decay=0.4), 24)
    assert schedule.total_steps == 40
    assert schedule.weight_decay_at(0) == pytest.approx(0.04)
    for step in (1, 10, 20, 39):
        expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 40)) / 2
        assert schedule.weight_decay_at(step) == pytest.approx(expected)
    falling = Schedule.of(Train(**train, weight_decay=0.1, final_weight_decay=0.0), 24)
    assert falling.weight_decay_at(20) == pytest.approx(0.05)
    constant = Schedule.of(Train(**train, weight_decay=0.1), 24)
    assert {constant.weight_decay_at(step) for step in range(40)} == {0.1}


@pytest.mark.parametrize("decay", ["weights", "not-1d"])
def test_only_decayed_groups_change_their_weight_decay(decay):
    objective = build("dino", {"norm_last_layer": False}, model={"name": "vit_micro"})
    train = Train(weight_decay=0.04, decay=decay)
    optimiser = make_optimiser(objective, train)
    names = {p: name for name, p in objective.named_parameters()}
    decayed, spared = ({names[p] for p in g["params"]} for g in optimiser.param_groups)
    assert decayed | spared == {n for n, p in objective.named_parameters() if p.requires_grad}
    assert not decayed & spared
    tokens = {"student.encoder.cls_token", "student.encoder.pos_embed"}
    assert tokens <= (spared if decay == "weights" else decayed)
    for name in decayed - tokens:
        assert name.endswith((".weight", ".prototypes", ".lengths"))
    for name in spared - tokens:
        assert name.endswith((".bias", "norm.weight", "norm1.weight", "norm2.weight"))
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    set_schedule(optimiser, lr=0.5, weight_decay=0.3)
    assert [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups] == [(0.5, 0.3), (0.5, 0)]
    for p in objective.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimiser.step()
    for name, p in objective.named_parameters():
        factor = 1 - 0.5 * 0.3 if name in decayed else 1
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=1e-12, atol=1e-15)
    everything = make_optimiser(objective, Train(decay="all"))
    assert [g["weight_decay"] for g in everything.param_groups] == [0.1]
    set_schedule(everything, lr=0.1, weight_decay=0.2)
    assert [g["weight_decay"] for g in everything.param_groups] == [0.2]


# -- DINO: the centre -----------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "addon"), [("2", None), ("2+4-crops", SER)])
def test_the_centre_is_a_running_mean_of_the_teachers_logits(setting, addon):
    objective = build("dino", {"center_momentum": 0.8}, setting=setting, addon=addon)
    center = np.zeros(10)
    for step in range(3):
        views = views_of(objective, seed=step)
        _, teachers = dino_logits(objective, views)
        before = objective.method.center.clone()
        np.testing.assert_allclose(before.numpy(), center, rtol=1e-10, atol=1e-13)
        students, _ = dino_logits(objective, views)
        ours = objective(views, at(step)).invariance.item()
        sharp = 0.04 + 0.03 * step / 9
        gold, _ = numpy_dino(students, teachers, center, sharp=sharp, soft=0.1)
        assert ours == pytest.approx(gold, rel=1e-9)  # the centre before the step
        center = 0.8 * center + 0.2 * np.concatenate(teachers).mean(0)
        objective._update_teacher(0.9)
    np.testing.assert_allclose(objective.method.center.numpy(), center, rtol=1e-10, atol=1e-13)
    assert np.abs(center).max() > 0.01


def test_the_centre_stays_in_evaluation_and_without_gradients():
    objective = build("dino")
    views = views_of(objective)
    objective.eval()
    objective(views)
    assert not objective.method.center.any()
    objective.train()
    with torch.no_grad():
        objective(views)
    assert not objective.method.center.any()
    objective(views)
    assert objective.method.center.all()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_non_finite_step_leaves_the_centre_alone(broken):
    objective = build("dino")
    objective(views_of(objective))
    before = objective.method.center.clone()
    views = views_of(objective, seed=1)
    views.standard[1][2, 0, 3, 3] = broken
    assert not math.isfinite(objective(views).total.item())
    assert torch.equal(objective.method.center, before)
    # One prototype's logits alone are enough.
    teachers = [torch.ones(2, 10, dtype=torch.float64) for _ in range(2)]
    teachers[1][0, 7] = broken
    students = [t.clone().requires_grad_() for t in teachers]
    objective.method.loss(MethodInput(students, teachers, (2,), at(0)))
    assert torch.equal(objective.method.center, before)


def test_the_centre_is_part_of_the_state():
    objective = build("dino")
    objective(views_of(objective))
    state = objective.state_dict()
    assert torch.equal(state["student.method.center"], objective.method.center)
    assert sum(name.endswith("center") for name in state) == 1
    other = build("dino")
    assert not other.method.center.any()
    other.load_state_dict(state)
    assert torch.equal(other.method.center, objective.method.center)
    # It is no parameter: no gradient, no optimiser.
    assert not any(name.endswith("center") for name, _ in objective.named_parameters())


# -- through the trainer --------------------------------------------------------------------------


def trainer_of(path, recipe):
    """4 steps an epoch."""
    run = RunDir(path)
    if not path.exists():
        run = RunDir.create(path, recipe=recipe.to_yaml(), run={"status": "running"})
    source = Pictures(24, sizes=((40, 33),))
    cpu = runtime_for(torch.device("cpu"), "fp32")
    return Trainer(run, recipe, source, cpu, monitor=lambda _encoder: {})


def steps_of(trainer, *, after=lambda: None, request=None):
    """Train to the end, or until the request is honoured; what `after` returned at each step."""
    found = []
    step = trainer._train_step

    def watched(*arguments):
        outcome = step(*arguments)
        found.append(after())
        return outcome

    trainer._train_step = watched
    trainer.resume(pytest.fail)
    total = trainer.schedule.total_steps
    with contextlib.suppress(Preempted), TrainingProgress(total, quiet=True) as progress:
        trainer.train(request or StopRequest(), progress)
    return found


def numbers(trainer):
    rows = trainer.run.read_metrics()
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def copied(parameters):
    return {name: p.detach().clone() for name, p in parameters}


@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("decay", ["all", "weights"])
def test_prototypes_are_frozen_at_first(tmp_path, decay, norm_last_layer):
    """For an epoch and a half, six steps: neither gradient nor decay nor clipping touches them."""
    settings = {"frozen_epochs": 1.5, "norm_last_layer": norm_last_layer}
    train = {"epochs": 2, "warmup_epochs": 0, "lr": 0.05, "decay": decay, "weight_decay": 0.5}
    trainer = trainer_of(tmp_path / "run", recipe_of("dino", settings, train=train))
    head = trainer.objective.method.head
    start = copied(head.named_parameters())
    after = lambda: copied(head.named_parameters())  # noqa: E731
    steps = steps_of(trainer, after=after)
    held = {"prototypes"} if norm_last_layer else {"prototypes", "lengths"}
    assert len(steps) == 8
    for number, (before, now) in enumerate(zip([start, *steps], steps, strict=False)):
        for name, value in now.items():
            stays = name in held and number < 6
            assert torch.equal(before[name], value) == stays, (number, name)
    moments = trainer.optimiser.state
    assert moments[head.prototypes]["step"].item() == 2
    assert moments[head.mlp[0].weight]["step"].item() == 8


def test_held_gradients_are_not_in_the_norm(tmp_path):
    seen = []
    for name, frozen in (("held", 5), ("free", 0)):
        recipe = recipe_of("dino", {"frozen_epochs": frozen}, train={"epochs": 0.25})
        trainer = trainer_of(tmp_path / name, recipe)
        steps_of(trainer)
        gradients = {p: p.grad for p in trainer.parameters}
        seen.append((numbers(trainer)[0]["grad_norm"], gradients, trainer.objective.method.head))
    (held, gradients, head), (free, _, _) = seen
    assert gradients[head.prototypes].norm() > 0  # given back, as DDP's buckets are views of it
    others = [g.square().sum() for p, g in gradients.items() if p is not head.prototypes]
    assert held == pytest.approx(math.sqrt(sum(others)), rel=1e-5)
    own = gradients[head.prototypes].square().sum()
    assert free == pytest.approx(math.sqrt(sum(others) + own), rel=1e-5)


def test_a_step_uses_the_schedules_of_its_moment(tmp_path, monkeypatch):
    train = {
        "epochs": 2, "warmup_epochs": 0.5, "lr": 0.5, "min_lr": 0.05,
        "weight_decay": 0.04, "final_weight_decay": 0.4, "decay": "weights",
    }  # fmt: skip
    settings = {"temperature_epochs": 2, "frozen_epochs": 0}
    recipe = recipe_of("dino", settings, train=train)
    trainer = trainer_of(tmp_path / "run", recipe)
    objective, groups = trainer.objective, trainer.optimiser.param_groups
    teacher, student = objective.teacher.method, objective.method.head
    temperatures, epochs = [], []
    temperature_at = objective.method.teacher_temperature_at

    def spy(epoch):
        epochs.append(epoch)
        temperatures.append(temperature_at(epoch))
        return temperatures[-1]

    monkeypatch.setattr(objective.method, "teacher_temperature_at", spy)

    def after():
        pairs = (copied(m.named_parameters()) for m in (teacher, student))
        return ([(g["lr"], g["weight_decay"]) for g in groups], *pairs)

    previous = copied(teacher.named_parameters())
    found = steps_of(trainer, after=after)
    assert epochs == [step / 4 for step in range(8)]
    expected = [0.04] * 4 + [0.07] * 4
    assert temperatures == pytest.approx(expected)
    rows = numbers(trainer)
    for step, ((decayed, spared), averaged, current) in enumerate(found):
        cosine = (1 + math.cos(math.pi * step / 8)) / 2
        assert decayed[1] == pytest.approx(0.4 + (0.04 - 0.4) * cosine)
        assert spared[1] == 0
        if step >= 2:
            falling = (1 + math.cos(math.pi * (step - 2) / 6)) / 2
            lr = 0.05 + 0.45 * falling
        else:
            lr = 0.5 * step / 2
        assert decayed[0] == spared[0] == pytest.approx(lr * 6 / 256)
        momentum = 1 - 0.018 * cosine
        assert rows[step]["momentum"] == pytest.approx(momentum)
        assert rows[step]["lr"] == pytest.approx(lr * 6 / 256)
        for name, value in averaged.items():
            gold = momentum * previous[name] + (1 - momentum) * current[name]
            torch.testing.assert_close(value, gold, rtol=1e-5, atol=1e-7)
        previous = averaged


def test_the_centre_is_resumed(tmp_path):
    train = {"epochs": 2, "checkpoint_epochs": 0.75, "clip_norm": 0.3, "clip": "each"}
    recipe = recipe_of("dino", {"frozen_epochs": 0.25}, model={"drop_path": 0.3}, train=train)

    def centers(name, request=None):
        trainer = trainer_of(tmp_path / name, recipe)
        seen = []

        def after():
            seen.append(trainer.objective.method.center.tolist())
            if request is not None:
                request.preempted = len(seen) >= 4

        steps_of(trainer, after=after, request=request)
        return seen, trainer

    whole, uncut = centers("whole")
    assert len({tuple(center) for center in whole}) == 8
    first, _ = centers("part", StopRequest())
    assert 4 <= len(first) < 8
    second, resumed = centers("part")
    assert first + second == whole
    assert numbers(resumed) == numbers(uncut)
    for one, other in zip(
        uncut.objective.parameters(), resumed.objective.parameters(), strict=True
    ):
        assert torch.equal(one, other)


# -- clipping -------------------------------------------------------------------------------------


def leaves():
    draws = torch.Generator().manual_seed(0)
    sizes = ((3, 4), (7,), (2, 2, 2), (5,))
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in sizes]
    for scale, p in zip((0.01, 5.0, 0.3, 0.0), parameters, strict=True):
        p.grad = scale * torch.randn(p.shape, generator=draws, dtype=p.dtype)
    parameters.append(torch.nn.Parameter(torch.zeros(2)))  # frozen: no gradient
    return parameters


@pytest.mark.parametrize("clip", ["global", "each"])
def test_clipping_is_torchs(clip):
    ours, gold = leaves(), leaves()
    total = torch.cat([p.grad.flatten() for p in gold[:4]]).norm()
    norm = clip_gradients(ours, Train(clip_norm=0.3, clip=clip))
    assert norm.item() == pytest.approx(total.item(), rel=1e-12)  # before clipping
    if clip == "global":
        torch.nn.utils.clip_grad_norm_(gold, 0.3)
    else:
        for p in gold:
            torch.nn.utils.clip_grad_norm_([p], 0.3)
    for one, other in zip(ours[:4], gold[:4], strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=0)
    assert ours[4].grad is None
    norms = [p.grad.norm().item() for p in ours[:4]]
    if clip == "global":
        assert math.hypot(*norms) == pytest.approx(0.3, rel=1e-5)
    else:
        assert norms[0] == leaves()[0].grad.norm().item()
        before = leaves()[1].grad.norm().item()  # DINO's formula:
        assert norms[1] == pytest.approx(before * 0.3 / (before + 1e-6), rel=1e-12)
        assert norms[3] == 0


def test_without_a_norm_nothing_is_clipped():
    ours, gold = leaves(), leaves()
    for clip in ("global", "each"):
        clip_gradients(ours, Train(clip=clip))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:4], gold[:4], strict=True))


# -- drop path ------------------------------------------------------------------------------------


def by_image(layout, keep):
    """[2, T] of tokens → [B, 2] of images."""
    if keep is None:
        return None
    images = [tokens.T for tokens in keep.tensor_split(layout.boundaries[1:-1].tolist(), dim=1)]
    assert all((tokens == tokens[0]).all() for tokens in images)
    return torch.stack([tokens[0] for tokens in images])


def kept(objective, views, *, who=None):
    """What the blocks were given for each call: [calls][block] a tensor [B, 2], or None.

    Every token of an image has the same.
    """
    encoder = who or objective.encoder
    seen = [[] for _ in encoder.blocks]
    hooks = [
        block.register_forward_pre_hook(
            lambda _module, arguments, calls=calls: calls.append(by_image(*arguments[1:]))
        )
        for block, calls in zip(encoder.blocks, seen, strict=True)
    ]
    objective(views)
    for hook in hooks:
        hook.remove()
    return list(zip(*seen, strict=True))


def test_branches_are_kept_less_the_deeper_they_are():
    objective = build("dino", model={"drop_path": 0.6})
    drawn = []
    for seed in range(20):
        (call,) = kept(objective, views_of(objective, count=30, seed=seed))
        drawn.append(torch.stack(call))  # [blocks, rows, 2]
    drawn = torch.stack(drawn)
    assert drawn.shape == (20, 4, 60, 2)
    for block, probability in enumerate((1.0, 0.8, 0.6, 0.4)):
        factors_of = drawn[:, block]
        allowed = torch.tensor([0, 1 / probability], dtype=factors_of.dtype)
        assert (factors_of[..., None] - allowed).abs().min(-1).values.max() < 1e-6
        for branch in range(2):
            factors = factors_of[..., branch]
            share = (factors > 0).double().mean().item()
            spread = math.sqrt(probability * (1 - probability) / factors.numel())
            assert abs(share - probability) <= 4 * spread + 1e-9
            assert abs(factors.double().mean() - 1) <= 4 * spread / probability + 1e-6
    # Views, blocks and branches are dropped independently.
    samples = (drawn[:, 1:] > 0).double().unflatten(2, (2, 30)).permute(0, 3, 1, 2, 4)
    correlations = np.corrcoef(samples.reshape(600, 12).T) - np.eye(12)
    assert np.abs(correlations).max() < 4.5 / math.sqrt(600)


def test_a_dropped_branch_adds_nothing_and_a_kept_one_more():
    block = build("dino", model={"drop_path": 0.6}).encoder.blocks[2]
    tokens = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = torch.tensor([[0, 0], [2.5, 0], [2.5, 2.5]], dtype=torch.float64)
    with torch.no_grad():
        layout = Layout((Span(3, (1, 5)),), 0, tokens.device)
        flat = tokens.flatten(0, 1)
        ours = block(flat, layout, keep.T.repeat_interleave(5, dim=1)).view_as(tokens)
        attended = tokens + 2.5 * block.attn(block.norm1(tokens))
        both = attended + 2.5 * block.mlp(block.norm2(attended))
        torch.testing.assert_close(ours[0], tokens[0], rtol=0, atol=0)
        torch.testing.assert_close(ours[1], attended[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours[2], both[2], rtol=1e-12, atol=1e-12)
        all_kept = block(flat, layout, torch.ones(2, 15, dtype=torch.float64))
        torch.testing.assert_close(block(flat, layout), all_kept)


@pytest.mark.parametrize("addon", [None, SER])
def test_nothing_is_dropped_in_evaluation_or_by_the_teacher(addon):
    dropping, plain = (build("dino", model={"drop_path": rate}, addon=addon) for rate in (0.6, 0.0))
    views = views_of(dropping)
    flat = lambda calls: [keep for call in calls for keep in call]  # noqa: E731
    assert all(keep is not None for keep in flat(kept(dropping, views)))
    assert all(k is None for k in flat(kept(dropping, views, who=dropping.teacher.encoder)))
    assert all(keep is None for keep in flat(kept(plain, views)))
    for objective in (dropping, plain):
        objective.method.center.zero_()
        objective.eval()
    assert all(keep is None for keep in flat(kept(dropping, views)))
    assert dropping(views).total.item() == plain(views).total.item()
    dropping.train()
    assert dropping(views).total.item() != plain(views).total.item()


def by_position(objective, views):
    """What each image's views were given, by its global position: [views, blocks, 2]."""
    (call,) = kept(objective, views)
    split, factors = len(views.standard[0]), {}
    # Small crops lie in front of global ones.
    small = lengths_of(views, range(2, len(views.standard)))
    rows = torch.stack(call, dim=1).split(small + lengths_of(views, (0, 1)))
    rows = [rows[len(small) :], rows[: len(small)]]
    standard = [part for parts in rows for part in parts[: len(parts) // (1 + bool(views.paired))]]
    paired = [part for parts in rows for part in parts[len(parts) // 2 :]]
    for row, position in enumerate(views.part.positions):
        parts, at_row = (standard, row) if row < split else (paired, row - split)
        factors[position] = torch.stack([part[at_row] for part in parts])
    return factors


def lengths_of(views, members):
    """Rows of some of the views: of b₁, then of b₂."""
    paired = [len(views.paired[v]) for v in members] if views.paired else []
    return [len(views.standard[v]) for v in members] + paired


@pytest.mark.parametrize("setting", ["2", "2+4-crops"])
@pytest.mark.parametrize("addon", [None, SER])
def test_what_is_dropped_is_a_function_of_seed_step_and_position(monkeypatch, addon, setting):
    if addon is not None:  # grids as they are: b₁ and b₂ go through together
        addon = {**addon, "scale": (1, 1), "aspect": (1, 1)}
    objective = build("moco", model={"drop_path": 0.6}, addon=addon, setting=setting)
    monkeypatch.setattr(objective.method, "loss", lambda given: given.students[0].sum() * 0)
    if addon is not None:
        monkeypatch.setattr(objective.addon, "loss", lambda _: torch.zeros(()))
    views = views_of(objective, count=12)
    whole = by_position(objective, views)
    assert sorted(whole) == list(range(12))
    assert whole[0].shape == (6 if setting == "2+4-crops" else 2, DEPTH, 2)
    # The same for the same positions, whatever the images, and for any number of ranks.
    other = dataclasses.replace(views_of(objective, count=12, seed=1), generator_seed=0)
    views = dataclasses.replace(views, generator_seed=0)
    whole, again = by_position(objective, views), by_position(objective, other)
    assert all(torch.equal(whole[p], again[p]) for p in whole)
    later = by_position(objective, dataclasses.replace(views, generator_seed=1))
    assert not any(torch.equal(later[p], whole[p]) for p in whole)
    assert len({tuple(factors.flatten().tolist()) for factors in whole.values()}) == 12
    for world in (2, 3):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        seen = []
        for rank in range(world):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            mine = dataclasses.replace(views_of(objective, count=12), generator_seed=0)
            for position, factors in by_position(objective, mine).items():
                assert torch.equal(factors, whole[position])
                seen.append(position)
        assert sorted(seen) == list(range(12))


# -- Barlow Twins and MoCo ------------------------------------------------------------------------


@pytest.mark.parametrize("addon", [None, SER])
@pytest.mark.parametrize("off_diagonal", [0.0051, 0.7])
def test_barlow_twins_loss_in_closed_form(off_diagonal, addon):
    objective = build("barlow-twins", {"off_diagonal": off_diagonal}, addon=addon)
    assert objective.teacher is None
    views = views_of(objective)
    first, second = (
        batch_norm(mlp(cls, objective.method.projector, last_norm=False))
        for cls in embeddings(objective.encoder, views, 2)
    )
    expected = 0.0
    for i in range(6):
        for j in range(6):
            c = sum(first[row, i] * second[row, j] for row in range(6)) / 6
            expected += (1 - c) ** 2 if i == j else off_diagonal * c**2
    assert objective(views).invariance.item() == pytest.approx(expected, rel=1e-9)


def test_mocos_loss_with_small_crops_is_twice_the_mean_of_ten_terms(monkeypatch):
    objective = build("moco", {"temperature": 0.3}, setting="2+4-crops", addon=SER)
    terms = []
    loss = moco.info_nce

    def spy(*arguments, **options):
        terms.append(loss(*arguments, **options))
        return terms[-1]

    monkeypatch.setattr(moco, "info_nce", spy)
    views = views_of(objective)
    ours = objective(views).invariance.item()
    assert len(terms) == 10
    assert ours == pytest.approx(2 * np.mean([term.item() for term in terms]), rel=1e-12)
    queries = [
        unit(mlp(mlp(cls, objective.method.projector, last_norm=True), objective.method.predictor,
                 last_norm=True))
        for cls in embeddings(objective.encoder, views, 6)
    ]  # fmt: skip
    keys = [
        unit(mlp(cls, objective.teacher.method, last_norm=True))
        for cls in embeddings(objective.teacher.encoder, views, 2)
    ]
    expected = [
        -2 * 0.3 * np.log(np.diag(softmax(q @ k.T / 0.3))).mean()
        for v, q in enumerate(queries)
        for t, k in enumerate(keys)
        if v != t
    ]
    assert len(expected) == 10
    assert ours == pytest.approx(2 * np.mean(expected), rel=1e-9)
