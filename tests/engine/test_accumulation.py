"""Micro-batches give the losses and gradients of the undivided step (float64)."""

import contextlib
import dataclasses

import pytest
import torch

from sercli.encoders.batches import Batch
from sercli.engine.accumulation import Gradients, require_images
from sercli.errors import UserError
from sercli.recipe.schedule import START
from sercli.recipe.schema import Train
from tests.support import workers
from tests.support.recipes import METHODS

BATCH = 7
EXACT = 1e-12  # share of the largest number: sums of other shapes round otherwise
BOTH = (("negatives", "both-views"),)


def of(addon, **options):
    return (("name", addon), *options.items())


ADDONS = {
    "none": of("none"),
    "ser": BOTH,
    "augself": of("augself"),
    "stl": of("stl"),
    "equimod": of("equimod"),
    "essl": of("essl"),
}
# What a step does otherwise than in most recipes.
SPECIAL = {
    "small crops": {"method": "dino", "addon": BOTH, "setting": "2+4-crops"},
    "small crops without an add-on": {
        "method": "moco", "addon": of("none"), "setting": "2+4-crops",
    },
    "turned views count": {"addon": of("essl", form="predict-and-views")},
    "pooled taps": {"addon": of("stl", tap="pooled")},
    "stochastic depth": {"method": "dino", "addon": BOTH, "drop_path": 0.3},
    "stochastic depth, small crops": {
        "method": "dino", "addon": BOTH, "setting": "2+4-crops", "drop_path": 0.3,
    },
    "stochastic depth of the add-on's views": {"addon": of("essl"), "drop_path": 0.3},
    **{f"{a} of weight 0": {"addon": (*ADDONS[a], ("weight", 0))} for a in ADDONS if a != "none"},
    "last layer": {"addon": (*BOTH, ("layer", 4))},
    "placebo": {"addon": (("action", "placebo"),)},
    "keys of the rank, by the student's projector": {
        "addon": (("key_projector", "student"), ("keys", "rank-local"))
    },
    **{f"the paper's {m}": {"method": m, "addon": (("preset", "paper"),)} for m in METHODS},
    **{f"the authors' {m}": {"method": m, "addon": (("preset", "authors-code"),)} for m in METHODS},
}  # fmt: skip


def case_of(method="moco", **options):
    even = options.get("addon") and dict(options["addon"]).get("name") == "stl"
    return workers.Case(BATCH + even, 3 / 7, method=method, **options)


def found(case, accumulate):
    return workers.run_objective(dataclasses.replace(case, accumulate=accumulate))


def assert_equal(case, *numbers):
    whole = found(case, 1)
    assert len(whole["gradients"]) > 20
    for number in numbers:
        parts = found(case, number)
        assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-12)
        assert parts["gradients"].keys() == whole["gradients"].keys()
        largest = max(gradient.abs().max() for gradient in whole["gradients"].values())
        for name, gradient in whole["gradients"].items():
            assert (parts["gradients"][name] - gradient).abs().max() <= EXACT * largest, name
        assert parts["buffers"].keys() == whole["buffers"].keys()
        for name, buffer in whole["buffers"].items():
            torch.testing.assert_close(parts["buffers"][name], buffer, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("addon", ADDONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_objective_with_every_addon(method, addon):
    assert_equal(case_of(method, addon=ADDONS[addon]), 2, 3, 5)


@pytest.mark.parametrize("name", SPECIAL)
def test_whatever_a_step_does_otherwise(name):
    assert_equal(case_of(**SPECIAL[name]), 3)


def test_an_image_a_micro_batch():
    assert_equal(case_of(addon=BOTH), BATCH)


def test_the_students_encoder_is_all_that_is_run_twice():
    """And nothing larger than a micro-batch goes through it."""
    case = case_of(addon=BOTH)
    objective = workers.build(case)
    views = workers.make_views(objective.plan, BATCH, seed=7)
    rows = {"student": [], "teacher": []}
    for who, encoder in (("student", objective.encoder), ("teacher", objective.teacher.encoder)):
        encoder.blocks[-1].register_forward_pre_hook(
            lambda _, given, w=who: rows[w].append(given[1].num_images)
        )
    heads = []
    objective.method.projector.register_forward_pre_hook(lambda _, given: heads.append(given[0]))
    Gradients(objective, accumulate=3, autocast=contextlib.nullcontext)(views, START)
    assert sum(rows["student"]) == 2 * 2 * BATCH
    assert sum(rows["teacher"]) == 2 * BATCH
    assert max(rows["student"]) <= 2 * 3  # two views of a third of seven images
    assert [len(rows) for rows in heads] == [BATCH, BATCH]


@pytest.mark.parametrize(("standard", "paired"), [(4, 3), (1, 1), (7, 0), (0, 7), (250, 6), (5, 1)])
def test_micro_batches_are_all_images_once_and_about_equally_many(standard, paired):
    first = torch.arange(standard)[:, None]
    last = torch.arange(paired)[:, None]
    batch = Batch((first, -first), (last, -last) if paired else (), (first, first), (last, last))
    total = standard + paired
    for number in {1, 2, 3, 5, total} & set(range(1, total + 1)):
        parts = list(batch.micro_batches(number))
        assert len(parts) == number
        for name in ("standard", "paired", "keeps", "paired_keeps"):
            for view, whole in enumerate(getattr(batch, name)):
                assert torch.equal(torch.cat([getattr(p, name)[view] for p in parts]), whole)
        sizes = [(len(p.standard[0]), len(p.paired[0]) if paired else 0) for p in parts]
        assert all(a + b in (total // number, -(-total // number)) for a, b in sizes)
        for which, whole in ((0, standard), (1, paired)):
            assert max(size[which] for size in sizes) <= whole / number + 2


def test_more_micro_batches_than_a_process_has_images():
    objective = workers.build(case_of(addon=BOTH))
    part = objective.plan.split(7, world=3)  # three images, two and two
    require_images(Train(batch_size=7, accumulate=2), part)
    with pytest.raises(UserError) as error:
        require_images(Train(batch_size=7, accumulate=3), part)
    assert str(error.value).splitlines() == [
        "train.accumulate 3 with train.batch_size 7 on 3 processes; a micro-batch needs an image, "
        "and a process has 2; use train.accumulate=2 or less"
    ]


# -- Activation checkpointing ---------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", ["small crops", "stochastic depth of the add-on's views"])
def test_checkpointing_changes_no_bit(name, accumulate):
    case = dataclasses.replace(case_of(**SPECIAL[name]), accumulate=accumulate)
    kept = workers.run_objective(case)
    again = workers.run_objective(dataclasses.replace(case, checkpointing="blocks"))
    assert again["losses"] == kept["losses"]
    assert all(torch.equal(again["gradients"][n], g) for n, g in kept["gradients"].items())


def test_checkpointing_keeps_what_enters_a_block():
    """Of each block's 4 MLP widths, queries, keys, values and norms nothing stays."""
    sizes = {}
    for choice in ("off", "blocks"):
        objective = workers.build(dataclasses.replace(case_of(addon=BOTH), checkpointing=choice))
        views = workers.make_views(objective.plan, BATCH, seed=7)
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoded = objective.encode_student(objective.batch(views))
        assert encoded.cls[0].requires_grad
        sizes[choice] = sum(kept.values())
    tokens = 2 * BATCH * 16 * 16 * 8  # two views, 16 tokens of width 16, float64
    assert sizes["blocks"] < sizes["off"] - 4 * 10 * tokens
