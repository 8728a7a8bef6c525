"""Whole optimiser steps of the recipes' base methods against the loops of their authors.

golden/steps_*.npz were computed in float64 with the authors' own functions: moco-v3's builder and
schedules (the SER authors' copy gives the same bits), DINO's `train_one_epoch`, the SER authors'
Barlow Twins; all on the ViT of the SER authors' or DINO's code. Its position of [CLS], which ours
does not have, was held at zero, and stochastic depth was off.
"""

import dataclasses
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_views import Pictures

from sercli.engine.loop import Trainer
from sercli.engine.preemption import StopRequest
from sercli.engine.pretraining import resolve
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import runtime_for
from sercli.run_dir import RunDir

GOLDEN = Path(__file__).with_name("golden")
BATCH, SIDE = 16, 32
# The rules are the recipes'; an epoch is a step, so that nine of them cross every switch.
SMALL = (
    f"data.image_size={SIDE}", "data.workers=0", "model.width=64", "model.depth=2",
    "model.num_heads=4", "model.patch_size=8", f"train.batch_size={BATCH}", "train.log_steps=1",
    "train.monitor_epochs=0",
)  # fmt: skip
PROJECTOR = ("method.hidden_width=128", "method.output_width=64")
RULES = {
    "moco-v3": ("imagenet/moco-none", (*PROJECTOR, "train.epochs=9", "train.warmup_epochs=2")),
    "dino": (
        "imagenet/dino-none",
        (
            "method.prototypes=256", "method.hidden_width=128", "method.bottleneck_width=32",
            "method.frozen_epochs=1", "method.temperature_epochs=4", "model.drop_path=0",
            "train.epochs=9", "train.warmup_epochs=2",
        ),
    ),
    # Its warm-up is ten epochs, whatever the length of the run.
    "barlow-twins": (
        "imagenet/barlow-twins-none",
        (*PROJECTOR, "train.epochs=12", "train.warmup_epochs=10"),
    ),
}  # fmt: skip


def drawn(name, shape):
    """Where a parameter starts: by its name, so that no start has to be stored."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    leaf = name.rpartition(".")[2]
    if leaf == "lengths" or (leaf == "weight" and len(shape) == 1):
        return 1 + 0.1 * noise
    if leaf in ("bias", "cls_token", "pos_embed"):
        return 0.1 * noise
    return noise / math.sqrt(np.prod(shape[1:]))


def images_of(step):
    """Two views, float64 [2, 16, 3, 32, 32]."""
    return torch.from_numpy(np.random.RandomState(1000 + step).randn(2, BATCH, 3, SIDE, SIDE))


def projection(name, value):
    """One number of a tensor, which any change of it changes about as much."""
    along = np.random.RandomState(zlib.crc32(name.encode()) ^ 1).randn(*value.shape)
    return (value * along).sum() / math.sqrt(value.size)


def trained(path, method):
    """The trainer after its last step, by the recipe's rules, in float64."""
    name, settings = RULES[method]
    recipe = resolve(name, (*SMALL, *settings), {}).recipe
    run = RunDir.create(path, recipe=recipe.to_yaml(), run={})
    runtime = runtime_for(torch.device("cpu"))
    trainer = Trainer(run, recipe, Pictures(BATCH), runtime, monitor=pytest.fail)
    student, teacher = trainer.objective.double().student, trainer.objective.teacher
    with torch.no_grad():
        for parameter_name, p in student.named_parameters():
            p.copy_(torch.from_numpy(drawn(f"student.{parameter_name}", p.shape)))
        if teacher is not None:
            teacher.encoder.load_state_dict(student.encoder.state_dict())
            teacher.method.load_state_dict(student.method.shared_head().state_dict())
    make = trainer.make_views
    trainer.make_views = lambda samples, step, device: dataclasses.replace(
        make(samples, step, device), standard=tuple(images_of(step))
    )
    with TrainingProgress(trainer.schedule.total_steps, quiet=True) as progress:
        trainer.train(StopRequest(), progress)
    return trainer


@pytest.mark.parametrize("method", RULES)
def test_whole_steps_are_those_of_the_authors_loops(tmp_path, method):
    trainer = trained(tmp_path / "run", method)
    losses = [row["loss"] for row in trainer.run.read_metrics()]
    ours = {name: p.detach().numpy() for name, p in trainer.objective.named_parameters()}
    with np.load(GOLDEN / f"steps_{method}.npz") as gold:
        np.testing.assert_allclose(losses, gold["losses"], rtol=1e-12)
        expected = dict(zip(gold["names"].tolist(), gold["projections"], strict=True))
        whole = {name: gold[name] for name in gold.files if name.startswith("student.")}
    assert set(ours) == set(expected)
    for name, value in ours.items():
        assert abs(projection(name, value) - expected[name]) < 1e-12, name
    buffers = {name: value.numpy() for name, value in trainer.objective.named_buffers()}
    for name, value in whole.items():
        np.testing.assert_allclose((ours | buffers)[name], value, rtol=0, atol=1e-12)
