"""Every objective with every add-on: two real steps of each, and what its gradient reaches."""

import math

import pytest
import torch

from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import runtime_for
from sercli.engine.trainer import Trainer
from sercli.families import addon_configs, method_configs
from sercli.objective import Objective
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support import workers
from tests.support.architectures import SETTINGS
from tests.support.pictures import Pictures
from tests.support.recipes import BATCH, recipe_of

METHODS = ("moco", "dino", "barlow-twins")
ADDONS = ("ser", "augself", "stl", "equimod", "essl")
COMBINATIONS = [(m, a, layer) for m in METHODS for a in ADDONS for layer in (3, 12)]
COMBINATIONS += [(m, "none", None) for m in METHODS]

# A bias whose shift is the same for every image, in front of a batch norm, which takes it away.
# AugSelf's heads and EquiMod's projector begin so; STL also takes the vectors as they are.
NO_GRADIENT = {
    "moco": {"encoder.norm.bias", "encoder.fc_norm.bias"},
    "barlow-twins": {"encoder.norm.bias", "encoder.fc_norm.bias"},
    "augself": {"addon.tap.norm.bias"},
    "equimod": {"addon.tap.norm.bias"},
}
# Has gradient, but is only moved after the first epoch.
HELD = {"dino": {"method.head.prototypes", "method.head.lengths"}}
# The student that step t's teacher follows: as step t found it, or as it left it.
FOLLOWS = {"moco": "before", "dino": "after"}
# Which of the student's heads the teacher has an averaged copy of.
SHARED = {"moco": "projector", "dino": "head", "ser": "projector"}
NOTHING, SOMETHING = 1e-11, 1e-9  # float64


def test_there_are_33():
    assert len(set(COMBINATIONS)) == 33
    assert set(METHODS) == set(method_configs())
    assert {*ADDONS, "none"} == set(addon_configs())


def numbers(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Audit:
    """A trainer in float64 whose every step is looked at.

    Args:
        path: Of its run directory.
        recipe: Resolved.
        frozen: Names of the student's parameters that must not be trained.
    """

    def __init__(self, path, recipe, *, frozen=()):
        run = RunDir.create(path, recipe=recipe.to_yaml(), run={"status": "running"})
        runtime = runtime_for(torch.device("cpu"))
        self.trainer = Trainer(run, recipe, Pictures(BATCH), runtime, monitor=pytest.fail)
        self.recipe, self.objective = recipe, self.trainer.objective.double()
        self.student, self.teacher = self.objective.student, self.objective.teacher
        names = (recipe.method.name, recipe.addon.name)
        self.still = set().union(*(NO_GRADIENT.get(name, ()) for name in names))
        self.frozen, self.steps = set(frozen), 0
        self.held = HELD.get(recipe.method.name, set())
        self._replace("make_views", self._wide_views)
        self._replace("_forward_backward", self._forward_backward)
        self._replace("_train_step", self._train_step)

    def _replace(self, name, function):
        before = getattr(self.trainer, name)
        setattr(self.trainer, name, lambda *given: function(before, *given))

    def run(self):
        with TrainingProgress(2, quiet=True) as progress:
            self.trainer.train(StopRequest(), progress)
        assert self.steps == 2
        return list(self.trainer.run.read_metrics())

    def _wide_views(self, make, *given):
        return workers.in_float64(make(*given))

    def _forward_backward(self, forward_backward, *given):
        losses = forward_backward(*given)
        for name, p in self.student.named_parameters():
            assert p.requires_grad == (name not in self.frozen), name
            if name in self.frozen:
                assert p.grad is None, name
                continue
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            if name in self.still:
                assert p.grad.norm() < NOTHING, name
            else:
                assert p.grad.norm() > SOMETHING, name
        if self.teacher is not None:
            assert all(p.grad is None for p in self.teacher.parameters())
        return losses

    def _train_step(self, train_step, step, *given):
        before = numbers(self.objective)
        report = train_step(step, *given)
        after = numbers(self.objective)
        held = self.held if step == 0 else ()
        for name in numbers(self.student):
            old, new = before[f"student.{name}"], after[f"student.{name}"]
            if name in self.frozen or name in held:
                assert torch.equal(old, new), name
            elif name in self.still:  # AdamW makes a little of rounding errors
                assert (old - new).abs().max() < 1e-8, name
            else:
                assert (old - new).abs().max() > 1e-6, name
        self._check_teacher(before, after, step / 2)
        self.steps += 1
        return report

    def _check_teacher(self, before, after, progress):
        method, addon = self.recipe.method.name, self.recipe.addon.name
        assert (self.teacher is None) == (method == "barlow-twins")
        if self.teacher is None:
            return
        momentum = 1 - (1 - self.recipe.method.momentum) * (math.cos(math.pi * progress) + 1) / 2
        counterparts = {
            "encoder": "encoder",
            "method": f"method.{SHARED[method]}",
            "addon": f"addon.{SHARED.get(addon)}",
        }
        followed = {"before": before, "after": after}[FOLLOWS[method]]
        sections = set()
        for name, old in before.items():
            if not name.startswith("teacher."):
                continue
            section, _, rest = name.removeprefix("teacher.").partition(".")
            sections.add(section)
            student = followed[f"student.{counterparts[section]}.{rest}"]
            expected = momentum * old + (1 - momentum) * student
            torch.testing.assert_close(after[name], expected, rtol=1e-12, atol=1e-14)
        assert sections == {"encoder", "method", *(["addon"] if addon == "ser" else [])}


@pytest.mark.parametrize(("method", "addon", "layer"), COMBINATIONS)
def test_two_steps_train_all_that_they_should_and_nothing_else(tmp_path, method, addon, layer):
    rows = Audit(tmp_path / "run", recipe_of(method, addon, layer)).run()
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert not row["skipped"]
        assert ("loss_equiv" in row) == (addon != "none")
        assert all(math.isfinite(row[key]) for key in row if key.startswith(("loss", "grad")))


@pytest.mark.parametrize("method", ["moco", "dino"])
@pytest.mark.parametrize("addon", ["none", "ser"])
def test_two_steps_with_multi_crop(tmp_path, method, addon):
    layer = None if addon == "none" else 3
    Audit(tmp_path / "run", recipe_of(method, addon, layer, setting="2+4-crops")).run()


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_two_steps_with_turned_views_that_count(tmp_path, method):
    Audit(tmp_path / "run", recipe_of(method, "essl", 3, form="predict-and-views")).run()


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_with_a_frozen_patch_embedding(tmp_path, method):
    recipe = recipe_of(method, "ser", 3, model={"patch_embed": "frozen", "pos_embed": "sincos"})
    patches = "encoder.patch_embed.proj"
    frozen = {f"{patches}.weight", f"{patches}.bias", "encoder.pos_embed"}
    Audit(tmp_path / "run", recipe, frozen=frozen).run()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["reg4", "dinov3", "eva02", "mean"])
def test_two_steps_of_every_architecture(tmp_path, method, architecture):
    """What is drawn tiny (registers) has gradient, too; no parameter is without a use."""
    settings = {"num_heads": 4, **SETTINGS[architecture]}
    recipe = recipe_of(method, "ser", 3, depth=4, model=settings)
    audit = Audit(tmp_path / "run", recipe)
    bare = architecture == "mean"
    assert audit.objective.encoder.cls_after == (None if bare else 3)
    rows = audit.run()
    assert all(math.isfinite(row["loss_equiv"]) for row in rows)


def test_two_steps_with_prototypes_of_length_1(tmp_path):
    recipe = recipe_of("dino", "ser", 3)
    recipe = recipe.model_copy(
        update={"method": recipe.method.model_copy(update={"norm_last_layer": True})}
    )
    Audit(tmp_path / "run", recipe).run()


@pytest.mark.parametrize("addon", ADDONS)
def test_two_steps_of_the_control_leave_the_addon_alone(tmp_path, addon):
    recipe = recipe_of("moco", addon, 3, weight=0)
    names = [name for name, _ in Objective(recipe).student.named_parameters()]
    frozen = {name for name in names if name.startswith("addon.")}
    assert frozen
    rows = Audit(tmp_path / "run", recipe, frozen=frozen).run()
    assert all(row["loss_equiv"] > 0 for row in rows)
    assert all(row["loss"] == row["loss_inv"] for row in rows)


# -- the gradient of the add-on's loss alone ------------------------------------------------------

SHALLOW = 4
TAPS = [("ser", None), *((addon, tap) for addon in ADDONS[1:] for tap in ("cls", "pooled"))]


def shallow(addon, layer, tap=None, **options):
    options |= {} if tap is None else {"tap": tap}
    return Objective(recipe_of("moco", addon, layer, depth=SHALLOW, **options)).double()


def gradients(objective):
    """Losses on one batch, and the gradient of each of the student's parameters."""
    losses = objective(workers.make_views(objective.plan, BATCH, seed=0))
    losses.total.backward()
    return losses, {name: p.grad for name, p in objective.student.named_parameters()}


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize(("addon", "tap"), TAPS)
def test_the_addon_trains_up_to_its_layer_and_nothing_beyond(monkeypatch, addon, tap, layer):
    objective = shallow(addon, layer, tap)
    monkeypatch.setattr(objective.method, "loss", lambda given: given.students[0].new_zeros(()))
    _, found = gradients(objective)
    assert objective.encoder.cls_after == (0 if tap == "cls" else layer)
    early = ["encoder.patch_embed.", "encoder.pos_embed", "addon."]
    early += [f"encoder.blocks.{block}." for block in range(layer)]
    early += ["encoder.cls_token"] if tap == "cls" else []
    for name, gradient in found.items():
        if name in NO_GRADIENT.get(addon, ()):
            assert gradient.norm() < NOTHING, name
        elif name.startswith(tuple(early)):
            assert gradient.norm() > SOMETHING, name
        else:  # blocks beyond, final norm, [CLS] that joins later, the method's heads
            assert gradient is None or not gradient.any(), name
    assert all(p.grad is None for p in objective.teacher.parameters())


@pytest.mark.parametrize("layer", [1, 3, SHALLOW])
@pytest.mark.parametrize(("addon", "tap"), TAPS)
def test_lambda_0_changes_no_gradient_and_reports_the_term(monkeypatch, addon, tap, layer):
    control, found = gradients(shallow(addon, layer, tap, weight=0))
    bare = shallow(addon, layer, tap)
    monkeypatch.setattr(bare.addon, "loss", lambda _: torch.zeros((), dtype=torch.float64))
    invariance, expected = gradients(bare)
    assert control.total.item() == control.invariance.item() == invariance.total.item()
    # Views that the add-on alone looks at go by themselves then: sums over tokens may be rounded
    # otherwise than with them.
    apart = 1e-12 if bare.plan.num_views > bare.plan.num_invariant else 0
    for name, gradient in expected.items():
        if name.startswith("addon."):
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], gradient, rtol=apart, atol=apart)
    trained, others = gradients(shallow(addon, layer, tap, weight=1))
    assert control.equivariance.item() == trained.equivariance.item() > 0
    assert not torch.equal(others["encoder.pos_embed"], expected["encoder.pos_embed"])
