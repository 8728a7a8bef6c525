"""The product on PyTorch's CUDA dispatch without a GPU (marker nullgpu; support/nullgpu).

    python tests/support/nullgpu/nullgpu.py -m pytest -n 0 -m nullgpu tests/test_nullgpu.py

What a GPU would refuse raises here: a dtype, a device, a shape. Values mean nothing: device memory
is not computed, and the host reads small copies as 0. So no test looks at a number of the device.
"""

import contextlib
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sercli.benchmarks.step import StepTimer
from sercli.cli import app
from sercli.data.loading import load_images, load_rows
from sercli.encoders import attention
from sercli.engine import pretraining
from sercli.engine import state as states
from sercli.engine.memory import count_memory
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import runtime_for
from sercli.engine.stepper import Stepper
from sercli.engine.trainer import Trainer
from sercli.errors import Preempted, RunFailed
from sercli.evals.detection.backbone import FrozenEncoder
from sercli.evals.detection.detector import make_optimiser
from sercli.evals.detection.evaluate import make_detector
from sercli.evals.detection.images import DetectionImages
from sercli.evals.detection.task import Options, prepare
from sercli.evals.linear import classifiers, heads
from sercli.evals.linear import evaluate as linear
from sercli.evals.linear.features import Reader
from sercli.evals.segmentation import evaluate as segmentation
from sercli.evals.segmentation.tokens import Encoded, TokenReader
from sercli.families import addon_configs, method_configs, resolve
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.report.figures import equivariance as figures
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from sercli.views.reading import Samples, TrainingImages, batches
from tests.support import architectures, detection, recipes
from tests.support.encoder_files import small_vit
from tests.support.families import FAMILIES, authors_file, built
from tests.support.mixed_precision import OBJECTIVES, operators_of
from tests.support.paths import ROOT
from tests.support.pictures import Pictures
from tests.support.processes import free_port
from tests.support.training import SER, no_monitor, start

NULLGPU = ROOT / "tests/support/nullgpu"
sys.path.insert(0, str(NULLGPU))
import nullgpu  # noqa: E402

pytestmark = pytest.mark.nullgpu
CUDA = torch.device("cuda", 0)
BATCH = 8
STEPS = (*SER, "train.compile=off", "train.max_steps=4")


@pytest.fixture(scope="module", autouse=True)
def _on_the_null_gpu():
    if not nullgpu.active():
        pytest.fail("these tests run by tests/support/nullgpu/nullgpu.py (see the module)")
    assert torch.cuda.get_device_name() == "NULL H100"
    nullgpu.prepare_torch()


@pytest.fixture
def launches():
    """The test must start kernels: it did not end up on the CPU."""
    before = nullgpu.counters()["launches"]
    yield
    assert nullgpu.counters()["launches"] > before


# -- Dtypes ---------------------------------------------------------------------------------------

# Making room and copying between memories differ by device, and a view by what is contiguous.
STORAGE = {
    "_to_copy", "copy_", "clone", "empty", "empty_like", "new_empty", "zeros", "ones", "full",
    "arange", "view", "_unsafe_view", "expand", "t", "detach", "lift_fresh", "alias",
    "_pin_memory", "is_pinned",
}  # fmt: skip


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_autocast_gives_the_dtypes_that_it_gives_on_a_cpu(monkeypatch, name):
    # A CPU attends size by size; `attend` says which dtype all sizes at once are given.
    monkeypatch.setattr(attention, "all_sizes_by", lambda *_: None)
    found = []
    for device in ("cpu", "cuda"):
        calls = operators_of(name, device)
        found.append({c: n for c, n in calls.items() if c.name not in STORAGE and c.inputs})
    assert found[0] == found[1]


# -- Two steps of everything ----------------------------------------------------------------------

SHALLOW = {"depth": 4}
MATRIX = {
    **{f"{m} {a}": (m, a, {}) for m in recipes.METHODS for a in recipes.ADDONS},
    **{f"{m} none small crops": (m, "none", {"setting": "2+4-crops"}) for m in ("moco", "dino")},
    **{f"{m} ser small crops": (m, "ser", {"setting": "2+4-crops"}) for m in ("moco", "dino")},
    "turned views count": ("moco", "essl", {"addon": {"form": "predict-and-views"}}),
    "pooled tap": ("moco", "stl", {"addon": {"tap": "pooled"}}),
    "augself of everything": (
        "moco",
        "augself",
        {"addon": {"flip": 1, "blur": 1, "rotation": 1}, "views": {"rot90_p": 0.5}},
    ),
    # Controls
    **{f"{a} of weight 0": ("moco", a, {"addon": {"weight": 0}}) for a in recipes.ADDONS
       if a != "none"},
    "delayed cls": ("moco", "none", {"model": {"cls_after": 2}}),
    "undelayed": ("moco", "ser", {"model": {"cls_after": 0}}),
    "placebo": ("moco", "ser", {"addon": {"action": "placebo"}}),
    "last layer": ("dino", "ser", {"addon": {"layer": 4}}),
    # Presets
    **{f"{m} {p}": (m, "ser", {"addon": {"preset": p, "fraction": 0.5}})
       for m in recipes.METHODS for p in ("paper", "authors-code", "summary")},
    "spatial negatives": ("moco", "ser", {"addon": {"negatives": "both-views+spatial:1"}}),
    "small temperature": ("moco", "ser", {"addon": {"temperature": 0.01}}),
    # Optimiser and encoder
    **{f"clip {c}": ("dino", "ser", {"train": {"clip_norm": 0.3, "clip": c}})
       for c in ("global", "each")},
    "no clip": ("moco", "ser", {"train": {"clip_norm": None}}),
    "decay of weights": ("moco", "ser", {"train": {"decay": "weights"}}),
    "lars": ("barlow-twins", "ser", {"train": {"optimiser": "lars"}}),
    "sgd": ("dino", "ser", {"train": {"optimiser": "sgd", "clip": "each"}}),
    "lars, layer decay, micro-batches": (
        "moco", "ser", {"train": {"optimiser": "lars", "layer_decay": 0.75, "accumulate": 2}}
    ),
    "micro-batches": ("dino", "ser", {"train": {"accumulate": 3}, "setting": "2+4-crops"}),
    "micro-batches of views of the add-on": ("moco", "essl", {"train": {"accumulate": 2}}),
    "checkpointing": ("moco", "ser", {"train": {"checkpointing": "blocks"}}),
    "micro-batches, checkpointing, drop path": (
        "dino",
        "ser",
        {"train": {"accumulate": 3, "checkpointing": "blocks"}, "model": {"drop_path": 0.2}},
    ),
    "drop path": ("dino", "ser", {"model": {"drop_path": 0.2}}),
    "drop path, small crops": (
        "dino", "none", {"model": {"drop_path": 0.2}, "setting": "2+4-crops"}
    ),
    "moco-v3's encoder": (
        "moco",
        "ser",
        {"model": {"pos_embed": "sincos", "patch_embed": "frozen", "init": "moco-v3"}},
    ),
    # Architectures
    **{
        f"{m} {architecture}": (m, "ser", {"model": architectures.SETTINGS[architecture]})
        for m in recipes.METHODS for architecture in ("reg4", "dinov3", "eva02", "mean")
    },
    "clip": ("dino", "ser", {"model": architectures.SETTINGS["clip"], "setting": "2+4-crops"}),
    "prototypes of any length": ("dino", "ser", {"method": {"norm_last_layer": False}}),
}  # fmt: skip


def recipe_of(name, precision):
    method, addon, given = MATRIX[name]
    given = dict(given)
    options = {} if addon == "none" else {"layer": 2, **given.pop("addon", {})}
    tree = recipes.narrow(method, addon, given.pop("setting", None), **SHALLOW, **options)
    # Unlike in the narrow recipe, colours are changed in every way there is.
    changed = {"jitter_p": 0.8, "grey_p": 0.5, "blur_p": 0.5, "solarise_p": 0.5}
    tree["views"] |= {"view1": changed, "view2": changed}
    tree["data"]["workers"] = 0
    tree["train"] = {
        "batch_size": BATCH, "epochs": 2, "warmup_epochs": 0, "clip_norm": 1.0, "log_steps": 1,
        "checkpoint_epochs": 2, "monitor_epochs": 0, "compile": "off", "precision": precision,
    }  # fmt: skip
    for section, values in given.items():
        tree[section] = {**tree.get(section, {}), **values}
    return from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", MATRIX)
def test_two_steps(tmp_path, name, precision):
    recipe = recipe_of(name, precision)
    run = RunDir.create(tmp_path / "run", recipe=recipe.to_yaml(), run={"status": "running"})
    runtime = runtime_for(CUDA, precision)
    trainer = Trainer(run, recipe, Pictures(BATCH), runtime, monitor=pytest.fail)
    with TrainingProgress(2, quiet=True) as progress:
        trainer.train(StopRequest(), progress)
    assert trainer.step == 2
    assert [row["step"] for row in run.read_metrics()] == [1, 2]
    for parameter in trainer.parameters:
        assert parameter.grad is not None
        assert parameter.grad.device == parameter.device == CUDA
        assert parameter.grad.dtype == parameter.dtype == torch.float32
    moments = [v for state in trainer.optimiser.state.values() for v in state.values()]
    assert moments
    assert all(moment.device == CUDA for moment in moments)


OTHERS = (
    "data.image_size={side}", "data.num_train=16", "data.num_val=8", "data.workers=0",
    "addon.layer=2", "addon.projector_width=16", "addon.fraction=0.5", "train.precision=bf16",
    "train.batch_size=4", "train.max_steps=2", "train.warmup_epochs=0", "train.log_steps=1",
    "train.monitor_epochs=0", "train.compile=off", "model.weights_as.num_heads=2",
)  # fmt: skip


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("method", recipes.METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_from_weights_of_others(tmp_path, name, method):
    """Registers, LayerScale, rotary positions and norms in front, in bf16."""
    family = FAMILIES[name]
    path = authors_file(name, built(family), tmp_path / "theirs.pth")
    said = {f"model.weights_as.{key}": value for key, value in family.hints.items()}
    said |= {f"method.{key}": value for key, value in recipes.METHODS[method].items()}
    settings = [one.format(side=4 * family.patch) for one in OTHERS]
    settings += [f"{key}={value}" for key, value in said.items()]
    resolved = resolve(f"shapes/{method}-ser", tuple(settings), {"model.weights": str(path)})
    run = pretraining.prepare(resolved, out=tmp_path / "run", device=CUDA).run
    recipe = pretraining.read_recipe(run)
    runtime = runtime_for(CUDA, "bf16")
    source = pretraining.training_source(recipe)
    trainer = Trainer(run, recipe, source, runtime, monitor=lambda _: {})
    trainer.resume(pytest.fail)
    with TrainingProgress(2, quiet=True) as progress:
        trainer.train(StopRequest(), progress)
    assert trainer.step == 2
    assert trainer.objective.encoder.cls_after == 2
    for parameter in trainer.objective.encoder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.device == parameter.device == CUDA
        assert parameter.grad.dtype == parameter.dtype == torch.float32


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_two_steps_from_weights(tmp_path, precision):
    """Read on the CPU, put in on the device; [CLS] is delayed, positions are resampled."""
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": small_vit().state_dict()}, path)
    left = ("model.patch_size", "model.width", "model.depth", "model.num_heads")
    settings = [one for one in STEPS if not one.startswith(left)]
    settings += ["model.weights_as.num_heads=2", f"train.precision={precision}", "addon.layer=2"]
    resolved = resolve("shapes/moco-ser", tuple(settings), {"model.weights": str(path)})
    run = pretraining.prepare(resolved, out=tmp_path / "run", device=CUDA).run
    assert run.read_run()["weights"]["moved"]["cls_after"] == 2
    pretraining.train(run, device=CUDA, make_monitor=no_monitor)
    assert run.read_run()["timings"]["steps"] == 4


# -- What a step costs ----------------------------------------------------------------------------


class Watched:
    """Counts one step of a trainer, from asking for its images to what comes after it."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step
        self.done, self.stack = trainer.stepper.done, contextlib.ExitStack()
        self.waits, self.before, self.counts = {}, {}, {}

    def __call__(self, **facts):
        self.done(**facts)
        if self.trainer.step == self.step - 1:
            self.waits = self.stack.enter_context(nullgpu.waits())
            self.before = nullgpu.counters()
        elif self.trainer.step == self.step:
            after = nullgpu.counters()
            self.stack.close()
            self.counts = {name: after[name] - self.before[name] for name in after}


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize(
    ("name", "workers"),
    [*((name, 0) for name in MATRIX), ("moco ser", 2), ("dino ser small crops", 2)],
)
def test_a_step_does_not_wait_and_copies_from_page_locked_memory_alone(tmp_path, name, workers):
    recipe = recipe_of(name, "bf16")
    train = recipe.train.model_copy(update={"log_steps": 100, "epochs": 4, "checkpoint_epochs": 4})
    data = recipe.data.model_copy(update={"workers": workers})
    recipe = recipe.model_copy(update={"train": train, "data": data})
    run = RunDir.create(tmp_path / "run", recipe=recipe.to_yaml(), run={"status": "running"})
    source, runtime = Pictures(BATCH), runtime_for(CUDA, "bf16")
    trainer = Trainer(run, recipe, source, runtime, monitor=pytest.fail)
    watched = trainer.stepper.done = Watched(trainer, step=3)
    with TrainingProgress(4, quiet=True) as progress:
        trainer.train(StopRequest(), progress)
    assert dict(watched.waits) == {}
    assert watched.counts["h2d_pageable"] == 0
    # Pictures straight from the loader's slots, and one block with all that the CPU drew.
    assert watched.counts["h2d_pinned"] == len(trainer.objective.plan.crops(paired=False)) + 1
    assert watched.counts["sync_stream"] == watched.counts["sync_device"] == 0


MOST_KERNELS_OF_VIEWS = {  # of 256 images
    "imagenet/moco-none": 250,
    "imagenet/moco-ser": 250,
    "imagenet/barlow-twins-ser": 250,
    "imagenet/dino-ser-crops": 500,
}


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("name", MOST_KERNELS_OF_VIEWS)
def test_a_large_step_does_not_wait_and_its_views_are_few_kernels(name):
    """ViT-S/16, 256 images in bf16, as `ser bench` measures it."""
    recipe = resolve(name, ("train.batch_size=256",), {}).recipe
    timer = StepTimer(recipe, runtime_for(CUDA))
    timer.take()
    with nullgpu.waits() as waits:
        before = nullgpu.counters()
        timer.take()
        after = nullgpu.counters()
    assert dict(waits) == {}
    assert after["h2d_pageable"] == before["h2d_pageable"]
    with nullgpu.operators() as seen:
        timer.make_views(timer.samples, timer.done, CUDA)
    assert sum(seen.kernels.values()) <= MOST_KERNELS_OF_VIEWS[name]
    assert sum(seen.gigabytes.values()) <= 33


# -- Kernels of a step ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernels_of():
    """Most kernels of a step of a recipe, 256 images, bf16, uncompiled."""

    @functools.cache
    def count(name):
        timer = StepTimer(resolve(name, ("train.batch_size=256",), {}).recipe, runtime_for(CUDA))
        timer.take()
        found = []
        for _ in range(4):  # they differ a little by the group elements that are drawn
            with nullgpu.operators() as step:
                timer.take()
            found.append(sum(step.kernels.values()))
        return max(found)

    return count


def test_ser_takes_a_quarter_more_kernels_than_none_at_most(kernels_of):
    """b₂ is on grids of its own, but goes through the blocks with b₁."""
    none, ser = kernels_of("imagenet/moco-none"), kernels_of("imagenet/moco-ser")
    assert none < ser <= 1.25 * none


def test_where_cudnn_does_not_run_flash_attention_takes_all_sizes(monkeypatch):
    """On an H100 torch chooses cuDNN for attention over several lengths, even if it is off."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "_should_use_cudnn", lambda *_: True)
    attention.all_sizes_by.cache_clear()
    found = attention.all_sizes_by(CUDA, torch.bfloat16, 6, 64)
    attention.all_sizes_by.cache_clear()
    assert found is attention._all_sizes_by_flash


def test_kernels_of_multi_crop(kernels_of):
    assert kernels_of("imagenet/dino-ser-crops") <= 4000


# -- Memory, which the allocator counts here as on a GPU -------------------------------------------

SAVING = {
    "all at once": ("imagenet/moco-ser", ()),
    "micro-batches": ("imagenet/moco-ser", ("train.accumulate=4",)),
    "checkpointing": ("imagenet/dino-ser-crops", ("train.checkpointing=blocks",)),
    "small crops": ("imagenet/dino-ser-crops", ()),
    "Barlow Twins": ("imagenet/barlow-twins-ser", ()),
}


@pytest.mark.parametrize("saving", SAVING)
def test_the_memory_that_is_counted_is_what_the_allocator_gives_out(saving):
    name, settings = SAVING[saving]
    recipe = resolve(name, (*settings, "train.batch_size=128", "addon.fraction=0.05"), {}).recipe
    timer = StepTimer(recipe, runtime_for(CUDA))
    timer.take()
    torch.cuda.reset_peak_memory_stats()
    timer.take()
    taken = torch.cuda.max_memory_allocated()
    del timer
    assert count_memory(recipe, runtime_for(CUDA)).peak == pytest.approx(taken, rel=0.1)


def test_a_device_that_is_too_small_ends_the_run_in_a_line(tmp_path, monkeypatch):
    run = start(tmp_path / "run", (*STEPS, "train.batch_size=96", "model.width=128"))
    step = Trainer._train_step

    def with_less(*given):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6)
        step(*given)

    monkeypatch.setattr(Trainer, "_train_step", with_less)
    words = (
        r"memory is short in step 1: Tried to allocate .*, total capacity of 80.00 GiB; "
        r"use train.accumulate=2 or train.checkpointing=blocks in "
    )
    try:
        with pytest.raises(RunFailed, match=words):
            pretraining.train(run, device=CUDA, make_monitor=no_monitor)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run.read_run()["exit_status"] == 3


# -- A run and its evaluations --------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Stopped after two steps, resumed, and trained to its end."""
    run = start(tmp_path_factory.mktemp("null") / "run", STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "_honour", _stop)
        with pytest.raises(Preempted):
            pretraining.train(run, device=CUDA, make_monitor=no_monitor)
    assert [row["step"] for row in run.read_metrics()] == [1, 2]
    with pytest.MonkeyPatch.context() as patch:
        # Moments that no device computed are whatever lay in memory.
        patch.setattr(states, "require_finite", lambda *_: None)
        pretraining.train(run, device=CUDA, make_monitor=no_monitor)
    return run


def _stop(stepper, _agreed):
    stepper.save()
    raise Preempted("after the second step")


def ser(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_a_run_is_saved_and_resumed(run):
    assert run.read_run()["status"] == "done"
    assert run.read_run()["device"] == "NULL H100"
    rows = list(run.read_metrics())
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    peaks = [row["peak_memory_gib"] for row in rows]
    assert all(0 < peak < 1 for peak in peaks)
    assert run.read_run()["memory"]["peak_gib"] == max(peaks)
    assert run.encoder.is_file()


def results(run):
    return {path.stem for path in (run.path / "results").glob("*.json")}


@pytest.fixture
def _values_that_no_device_computed(monkeypatch):
    """What the host looks at: features, weights of a head, which of them is best, a figure's axes.

    They are whatever lay in memory, which differs from run to run.
    """
    make = Reader.table
    monkeypatch.setattr(Reader, "table", lambda *a, **k: torch.nan_to_num(make(*a, **k), 0, 0, 0))
    monkeypatch.setattr(heads, "require_finite", lambda *_: None)
    monkeypatch.setattr(
        linear, "choose", lambda rows, *, best: classifiers.Choice(next(iter(rows)), 0, 1, 0, best)
    )
    monkeypatch.setattr(figures, "principal_colours", _grey)


@pytest.mark.usefixtures("launches", "_values_that_no_device_computed")
@pytest.mark.parametrize(
    ("command", "result"),
    [
        (["knn", "--batch-size", 16], "knn"),
        (["equiv-score", "--limit", 8, "--batch-size", 4], "equiv-score"),
        (["linear-eval", "--epochs", 2, "--batch-size", 16], "linear-eval--ser"),
        (
            ["linear-eval", "--preset", "dino", "--cached-features", "--epochs", 2],
            "linear-eval--dino-no-augment",
        ),
    ],
)
def test_an_evaluation_on_the_device(run, command, result):
    ser(command[0], run.path, "--device", "cuda", *command[1:])
    assert result in results(run)


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_segmentation_on_the_device(run, monkeypatch, precision):
    monkeypatch.setattr(segmentation, "best", lambda _found: 0)
    monkeypatch.setattr(segmentation, "predict", _whatever(segmentation.predict))
    table = TokenReader.table
    monkeypatch.setattr(TokenReader, "table", _finite(table))
    written = []  # instead of writing: shares of no pixels are no JSON
    monkeypatch.setattr(RunDir, "write_result", lambda _, result: written.append(result.name))
    ser("segment", run.path, "--device", "cuda", "--steps", 3, "--limit", 24, "--layers", 3,
        "--precision", precision, "--workers", 0)  # fmt: skip
    assert written == ["segment"]


def _whatever(predict):
    """The kernels are started; a class that there is comes back."""
    return lambda maps, frame: predict(maps, frame) * 0


def _finite(table):
    def read(*given, **more):
        found = table(*given, **more)
        return Encoded(torch.nan_to_num(found.tokens, 0, 0, 0), found.targets)

    return read


def _grey(maps):
    return [np.full((*np.shape(one)[:2], 3), 0.5) for one in maps]


@pytest.mark.usefixtures("launches", "_values_that_no_device_computed")
def test_robustness_on_the_device(run, tmp_path, monkeypatch):
    world = tmp_path / "world"
    ser("data", "shapes", world, "--train", 20, "--val", 20, "--size", 24, "--derived-size", 16,
        "--corrupted", 10, "--perturbed", 10, "--detection", 0)  # fmt: skip
    if not (run.path / "heads").exists():
        ser("linear-eval", run.path, "--device", "cuda", "--epochs", 1)
    written = []  # instead of writing: shares of no predictions are no JSON
    monkeypatch.setattr(RunDir, "write_result", lambda _, result: written.append(result.name))
    ser("robustness", run.path, "--device", "cuda", "--all", world, "--workers", 0)
    sets = ("val", "imagenet-r", "imagenet-a", "imagenet-sketch", "imagenet-c", "imagenet-p")
    assert {f"robustness--{name}" for name in sets} <= set(written)


# -- Detection ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_of_detection_with_given_proposals(monkeypatch, precision):
    """Suppression and the choice of regions look at values: both get regions that are given."""
    options = Options(engine="torchvision", preset="tiny", image_size=64, schedule="1")
    task = prepare(
        detection.small_encoder(),
        detection.world(num_images=8),
        detection.world("val", num_images=4),
        options,
    )
    encoder = FrozenEncoder(task.loaded, task.canvas, runtime_for(CUDA, precision))
    detector = make_detector(task, encoder).train()
    images = DetectionImages(task.train, task.canvas, flip=True)
    samples = [images[index, 0] for index in range(4)]
    boxes = [sample.boxes.to(CUDA) for sample in samples]
    monkeypatch.setattr(
        detector.proposals, "filter_proposals", lambda *_: (boxes, [b[:, 0] for b in boxes])
    )
    grids = encoder.grids_of(samples)
    assert grids.dtype == torch.float32
    losses = detector(grids, samples)
    optimiser = make_optimiser(detector)
    torch.stack(list(losses.values())).sum().backward()
    optimiser.step()
    trained = [p for p in detector.parameters() if p.requires_grad]
    assert all(p.grad.device == CUDA and p.grad.dtype == torch.float32 for p in trained)


# -- Several devices ------------------------------------------------------------------------------

RANK = """
import sys
import torch
from sercli.engine import runtime
from sercli.errors import UserError
try:
    with runtime.process_group("cuda") as device:
        print(device, torch.cuda.current_device())
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("devices", "works"), [(2, True), (1, False)])
def test_two_processes_take_two_devices(tmp_path, devices, works):
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={
                **os.environ, "NULLGPU_DEVICES": str(devices), "RANK": str(rank),
                "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            },
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in processes]
    if works:
        assert [out.split() for out, _ in said] == [["cuda:0", "0"], ["cuda:1", "1"]], said
    else:
        assert "2 processes on" in said[0][1]
        assert "for 1 CUDA device; each needs one of its own" in said[0][1]
        assert [process.returncode for process in processes] == [1, 2]


# -- Input ----------------------------------------------------------------------------------------


class Grey:
    """Pictures of one shade each."""

    def __getitem__(self, key):
        return torch.full((3, 16, 16), key, dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_copied_from_page_locked_memory(workers):
    """Pictures go to the device straight from the slots that loader processes wrote."""
    before = nullgpu.counters()
    keys = [list(range(k, k + 5)) for k in range(0, 100, 5)]
    loaded = load_images(Grey(), keys, size=16, rows=5, workers=workers, device=CUDA)
    for some, images in zip(keys, loaded, strict=True):
        assert images.device == CUDA
        on_host = images.cpu()  # a large copy keeps its bytes
        assert on_host[:, 0, 0, 0].tolist() == some
    after = nullgpu.counters()
    assert after["h2d_pinned"] - before["h2d_pinned"] == len(keys)
    assert after["h2d_pageable"] == before["h2d_pageable"]


def test_the_next_batch_is_copied_before_the_last_is_given(monkeypatch):
    """On its own stream; the taker's stream waits for the copy, and the slot for its event."""
    told = []
    record_event, wait_event = torch.cuda.Stream.record_event, torch.cuda.Stream.wait_event
    record_stream = torch.Tensor.record_stream

    def records(stream, event=None):
        told.append(("records", stream))
        return record_event(stream, event)

    def waits(stream, event):
        told.append(("waits", stream))
        wait_event(stream, event)

    def keeps(tensor, stream):
        told.append(("keeps", stream))
        record_stream(tensor, stream)

    monkeypatch.setattr(torch.cuda.Stream, "record_event", records)
    monkeypatch.setattr(torch.cuda.Stream, "wait_event", waits)
    monkeypatch.setattr(torch.Tensor, "record_stream", keeps)
    copies, given = nullgpu.counters()["h2d_pinned"], []
    main = torch.cuda.current_stream(CUDA)
    keys = [[k, k + 1] for k in range(0, 12, 2)]
    for images in load_images(Grey(), keys, size=16, rows=2, workers=1, device=CUDA):
        given.append(nullgpu.counters()["h2d_pinned"] - copies)
        assert told[-2:] == [("waits", main), ("keeps", main)]
        del images
    assert given == [2, 3, 4, 5, 6, 6]
    copying = {stream for what, stream in told if what == "records"}
    assert len(copying) == 1
    assert main not in copying
    # A copy's event, and one for its slot once the batch after it is asked for.
    assert sum(what == "records" for what, _ in told) == 2 * len(keys)


def test_samples_of_training_wait_on_the_device():
    """Their crops lie there; what the CPU draws from stays on the CPU, and is not overwritten."""
    recipe = recipes.recipe_of("moco", "ser", BATCH)
    objective = Objective(recipe)
    part = objective.plan.split(BATCH)
    images = TrainingImages(Pictures(), recipe.views, objective.plan, seed=0)
    tickets = list(batches(24, part, batch_size=BATCH, seed=0, steps=range(9)))
    on_device = load_rows(images, tickets, rows=BATCH, workers=2, device=CUDA)
    here = load_rows(images, tickets, rows=BATCH, workers=0)
    before = nullgpu.counters()
    for there, one in zip(map(Samples.of, on_device), map(Samples.of, here), strict=True):
        assert torch.equal(there.uniforms, one.uniforms)
        assert torch.equal(there.boxes, one.boxes)
        assert there.indices == one.indices
        for crop, gold in zip(there.crops, one.crops, strict=True):
            assert crop.device == CUDA
            assert torch.equal(crop.cpu(), gold)
    after = nullgpu.counters()
    assert after["h2d_pinned"] - before["h2d_pinned"] == 2 * 9
    assert after["h2d_pageable"] == before["h2d_pageable"]
