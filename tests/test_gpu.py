"""What only a CUDA device can show (marker gpu).

`.ci/gpu --list` rehearses these tests on the null GPU (support/nullgpu), where nothing is computed:
those that look at values are left out there, the others do not look.
"""

import os

import pytest
import torch

from sercli.encoders.vit import Encoder
from sercli.engine import pretraining
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import runtime_for
from sercli.evals.detection.backbone import FrozenEncoder
from sercli.evals.detection.evaluate import evaluate
from sercli.evals.detection.images import Canvas
from sercli.evals.detection.task import Options, prepare
from sercli.losses import patch_nt_xent
from sercli.recipe.schema import Model
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support import detection, recipes
from tests.support.training import SER, TINY, losses, no_monitor, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
REHEARSAL = "nullgpu.so" in os.environ.get("LD_PRELOAD", "")
of_values = pytest.mark.skipif(REHEARSAL, reason="the null GPU computes nothing")


@of_values
@pytest.mark.parametrize("negatives", ["cross-view", "both-views+spatial:1"])
def test_patch_loss_equals_the_cpu(negatives):
    torch.manual_seed(0)
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        anchors, keys = (torch.randn(6, 36, 64).to(device).requires_grad_() for _ in range(2))
        loss = patch_nt_xent(anchors, keys, temperature=0.3, negatives=negatives, grid=(6, 6))
        found.append([x.cpu() for x in (loss, *torch.autograd.grad(loss, [anchors, keys]))])
    for on_cpu, on_cuda in zip(*found, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=2e-3, atol=1e-6)


@of_values
def test_views_of_all_sizes_in_one_pass_give_what_each_gives():
    """By attention of all sizes at once, or, where this torch gets that wrong, size by size."""
    model = Model(name="vit_tiny", depth=3)
    encoder = Encoder.from_model(model, image_size=224, cls_after=1).initialise(0).cuda()
    found = []
    for together in (True, False):
        torch.manual_seed(0)
        views = [torch.randn(4, 3, *size).cuda() for size in ((224, 224), (208, 240), (96, 96))]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            features = (
                encoder.encode(views, (1,)) if together else [encoder(v, (1,)) for v in views]
            )
        total = sum(f.cls.square().sum() + f.grids[1].square().mean() for f in features)
        gradients = torch.autograd.grad(total, list(encoder.parameters()))
        found.append([*(f.cls for f in features), *gradients])
    for one, alone in zip(*found, strict=True):
        error = (one.float() - alone.float()).norm() / alone.float().norm()
        assert error < 0.02


@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=of_values)])
def test_a_run_trains_in_mixed_precision(tmp_path, compiled):
    run = start(tmp_path / "cuda", (*SER, f"train.compile={compiled}"))
    pretraining.train(run, device=torch.device("cuda"), make_monitor=no_monitor)
    rows = losses(run)
    assert len(rows) == 24
    assert all(row["loss"] is not None and not row["skipped"] for row in rows)
    if not REHEARSAL:
        assert rows[-1]["loss"] < rows[0]["loss"]


@of_values
def test_float32_on_cuda_follows_the_cpu(tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        run = start(tmp_path / device, (*SER, "train.precision=fp32", "train.compile=off"))
        pretraining.train(run, device=torch.device(device), make_monitor=no_monitor)
        found.append(losses(run))
    for on_cpu, on_cuda in zip(*found, strict=True):
        assert on_cuda["loss"] == pytest.approx(on_cpu["loss"], rel=2e-2)


def narrow_run(path, method, addon, setting=None, **train):
    narrow = recipes.narrow(method, addon, setting, **({} if addon == "none" else {"layer": 2}))
    chosen = [f"views.setting={narrow['views']['setting']}"]
    for section in ("method", "addon"):
        chosen += [f"{section}.{key}={value}" for key, value in narrow[section].items()]
    chosen += [f"train.{key}={value}" for key, value in train.items()]
    tiny = [s for s in TINY if not s.startswith("method.")]
    run = start(path, (*tiny, *chosen, "train.max_steps=6"))
    pretraining.train(run, device=torch.device("cuda"), make_monitor=no_monitor)
    rows = losses(run)
    assert len(rows) == 6
    assert all(row["loss"] is not None and not row["skipped"] for row in rows)
    return rows


@pytest.mark.parametrize("method", list(recipes.METHODS))
@pytest.mark.parametrize("addon", list(recipes.ADDONS))
def test_every_combination_trains_in_mixed_precision(tmp_path, method, addon):
    narrow_run(tmp_path / "cuda", method, addon, compile="off")


@of_values
def test_compiled_blocks_train_as_eager_ones(tmp_path):
    """Four sizes of grid: large and small crops, and those of two scaled views."""
    found = [
        narrow_run(tmp_path / choice, "dino", "ser", "2+4-crops", compile=choice)
        for choice in ("off", "on")
    ]
    for eager, compiled in zip(*found, strict=True):
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=2e-2)


@of_values
def test_a_frozen_backbone_in_bf16_gives_nearly_the_same_grids():
    images = torch.randn(2, 3, 64, 64)
    expected = detection.frozen().grids(images)
    canvas = Canvas.of(64, patch_size=8)
    encoder = FrozenEncoder(detection.small_encoder(), canvas, runtime_for(torch.device("cuda")))
    found = encoder.grids(images.cuda())
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found.cpu(), expected, atol=0.05, rtol=0.05)


@of_values
@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_detector_trains_on_cuda(engine, cached, tmp_path):
    task = prepare(
        detection.small_encoder(),
        detection.world(num_images=16),
        detection.world("val", num_images=8),
        Options(engine=engine, preset="tiny", image_size=64, schedule="40", cache_features=cached),
    )
    run = RunDir.create(tmp_path / "run", recipe=None, run={"status": "running"})
    outcome = evaluate(
        task,
        run,
        runtime=runtime_for(torch.device("cuda")),
        request=StopRequest(),
        training=TrainingProgress(40, quiet=True),
    )
    losses = [row["loss"] for row in next(run.detections()).read_metrics()]
    assert losses[-1] < losses[0]
    assert outcome.result.metrics["ap"] is not None
