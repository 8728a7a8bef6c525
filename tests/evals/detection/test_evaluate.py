"""Detectors on a frozen encoder: the same tests for both engines, which share all but the heads."""

import copy
import dataclasses
import importlib
import itertools
import json
import re
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sercli import load_encoder
from sercli.data.coco.folder import CocoFolder
from sercli.encoders.loading import encoder_sha256, read_encoder
from sercli.engine.preemption import Stopping
from sercli.engine.progress import TrainingProgress
from sercli.errors import Interrupted, Preempted, RunFailed, UserError
from sercli.evals.detection import evaluate as detection
from sercli.evals.detection.backbone import LEVELS, FrozenEncoder, GridCache, SimpleFeaturePyramid
from sercli.evals.detection.detector import Detections, in_pixels, make_optimiser, to_coco
from sercli.evals.detection.evaluate import evaluate, make_detector
from sercli.evals.detection.images import Canvas, DetectionImages, Sample, trainable_images
from sercli.evals.detection.options import PRESETS, Preset, Schedule
from sercli.evals.detection.task import Options, prepare
from sercli.evals.detection.training import detect
from sercli.runs.files import hash_of
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support.coco_tree import write_coco_tree
from tests.support.detection import CPU, HEADS, frozen, small_encoder, weights, world

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
each_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(autouse=True)
def small_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", Preset(HEADS, 64, 4, "6", 1e-3))


def task_of(engine, loaded=None, *, train=None, val=None, preset="tiny", **options):
    loaded = loaded or small_encoder()
    train = train or world(num_images=8)
    val = val or world("val", num_images=6)
    return prepare(loaded, train, val, Options(engine=engine, preset=preset, **options))


def detector_of(engine, encoder=None, seed=0):
    encoder = encoder or frozen()
    task = task_of(engine, encoder.loaded, seed=seed)
    return make_detector(task, encoder), encoder


def run_dir(path):
    return RunDir.create(path, recipe=None, run={"status": "done"})


def run(task, directory, **options):
    given = {"request": StopRequest(), "training": TrainingProgress(6, quiet=True)} | options
    return evaluate(task, directory, runtime=CPU, workers=0, **given)


# -- Backbone and pyramid -------------------------------------------------------------------------


@pytest.mark.parametrize(("patch", "cls_after"), [(8, 0), (16, 2), (14, 1)])
def test_features_are_the_encoders_after_its_final_norm(patch, cls_after):
    encoder = frozen(8 * patch, patch_size=patch, cls_after=cls_after)
    images = torch.randn(2, 3, 8 * patch, 8 * patch)
    grids = encoder.grids(images)
    raw = encoder.encoder(images, (3,)).grids[3]
    expected = torch.nn.functional.layer_norm(
        raw.permute(0, 2, 3, 1).double(),
        (32,),
        encoder.encoder.norm.weight.double(),
        encoder.encoder.norm.bias.double(),
        1e-6,
    ).permute(0, 3, 1, 2)
    torch.testing.assert_close(grids.double(), expected, atol=1e-5, rtol=1e-5)
    assert not grids.requires_grad


def test_features_of_a_timm_vit_are_timms_tokens():
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    loaded = dataclasses.replace(
        small_encoder(), encoder=type(small_encoder().encoder).from_timm(vit)
    )
    encoder = FrozenEncoder(loaded, Canvas.of(224 // 32 * 32, patch_size=16), CPU)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = vit.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    torch.testing.assert_close(encoder.grids(images), expected, atol=1e-4, rtol=1e-4)


def test_the_pyramid_has_the_levels_of_vitdet():
    """Layer by layer against the definition, in float64."""
    pyramid = SimpleFeaturePyramid(32, 16).double()
    grid = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    levels = pyramid(grid)
    sides = {name: tuple(level.shape[1:]) for name, level in levels.items()}
    assert sides == {
        "p2": (16, 24, 24),
        "p3": (16, 12, 12),
        "p4": (16, 6, 6),
        "p5": (16, 3, 3),
        "p6": (16, 2, 2),
    }

    def norm(x, layer):
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    one, two, three, four = pyramid.stages
    x = norm(one[0](grid), one[1])
    x = one[3](0.5 * x * (1 + torch.erf(x / 2**0.5)))
    scaled = {
        "p2": (x, one[4:]),
        "p3": (two[0](grid), two[1:]),
        "p4": (grid, three),
        "p5": (grid.unflatten(2, (3, 2)).unflatten(4, (3, 2)).amax((3, 5)), four[1:]),
    }
    for name, (x, (reduce, first, mix, second)) in scaled.items():
        expected = norm(mix(norm(reduce(x), first)), second)
        torch.testing.assert_close(levels[name], expected)
    assert torch.equal(levels["p6"], levels["p5"][..., ::2, ::2])


@each_engine
def test_a_detector_leaves_the_encoder_alone_and_trains_all_else(engine):
    encoder = frozen()
    task = dataclasses.replace(
        task_of(engine, encoder.loaded),
        heads=dataclasses.replace(HEADS, anchors=5000),  # of every level
    )
    detector = make_detector(task, encoder)
    names = dict(detector.named_parameters())
    assert not any(p.data_ptr() in {q.data_ptr() for q in encoder.encoder.parameters()}
                   for p in names.values())  # fmt: skip
    assert all(p.requires_grad for p in names.values())
    optimiser = make_optimiser(detector)
    assert {id(p) for g in optimiser.param_groups for p in g["params"]} == set(
        map(id, names.values())
    )
    images = DetectionImages(world(), encoder.canvas)
    samples = [images[index, 0] for index in range(4)]
    detector.train()
    losses = detector(encoder.grids_of(samples), samples)
    assert len(losses) == 5
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    sum(losses.values()).backward()
    still = [name for name, p in names.items() if p.grad is None or not p.grad.abs().sum()]
    assert not still
    assert all(p.grad is None for p in encoder.encoder.parameters())
    assert not encoder.encoder.training


@pytest.mark.detectron2
def test_both_engines_pyramids_are_one():
    """Equal weights, equal outputs; and those of detectron2's own pyramid, module by module."""
    from detectron2.modeling.backbone.vit import SimpleFeaturePyramid as Theirs

    ours, encoder = detector_of("torchvision")
    other, _ = detector_of("detectron2", encoder)
    backbone = other.model.backbone
    backbone.pyramid.load_state_dict(ours.pyramid.state_dict())
    images = torch.randn(2, 3, 64, 64)
    grids = encoder.grids(images)
    expected = ours.pyramid(grids)
    for given in (images, grids):
        found = backbone(given)
        assert list(found) == list(LEVELS)
        for name, level in found.items():
            assert torch.equal(level, expected[name])

    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    class Grid(Backbone):
        def output_shape(self):
            return {"last": ShapeSpec(channels=32, stride=16)}

        def forward(self, x):
            return {"last": x}

    theirs = Theirs(Grid(), "last", 16, (4.0, 2.0, 1.0, 0.5), LastLevelMaxPool(), "LN")
    weights = list(ours.pyramid.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    for name, level in theirs(grids).items():
        torch.testing.assert_close(level, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.detectron2
def test_detectron2_builds_the_backbone_from_a_configuration_of_its_own():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    from sercli.evals.detection.detectron2 import add_config

    cfg = add_config(get_cfg(), HEADS, num_classes=3)
    cfg.MODEL.DEVICE = "cpu"
    cfg.SER.SOURCE, cfg.SER.RANDOM_INIT = "timm:vit_tiny_patch16_224", True
    cfg.SER.IMAGE_SIZE = 64
    levels = build_backbone(cfg)(torch.randn(1, 3, 64, 64))
    assert levels["p2"].shape == (1, 16, 16, 16)
    cfg.SER.SOURCE = "timm:vit_tiny_patch8_224"
    with pytest.raises(UserError):
        build_backbone(cfg)


# -- One image, whatever is beside it -------------------------------------------------------------


@each_engine
def test_an_image_gives_the_same_detections_alone_and_in_a_batch(engine, tmp_path):
    """Wide, high and square images, whose batches another reader would pad to other sizes."""
    write_coco_tree(tmp_path / "coco", num_val=6)
    source = CocoFolder(tmp_path / "coco", "val")
    detector, encoder = detector_of(engine)
    detector.eval()
    images = DetectionImages(source, encoder.canvas)
    samples = [images[index, None] for index in range(6)]
    assert len({sample.frame for sample in samples}) > 3
    together = detector.detect(encoder.grids_of(samples), samples)
    assert all(len(one.boxes) for one in together)
    for sample, expected in zip(samples, together, strict=True):
        (alone,) = detector.detect(encoder.grids_of([sample]), [sample])
        assert len(alone.boxes) == len(expected.boxes)
        for a, b in ((alone.boxes, expected.boxes), (alone.masks, expected.masks)):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
        assert torch.equal(alone.labels, expected.labels)


@each_engine
def test_pooling_and_anchors_know_the_strides(engine):
    """A box covers the same patches whether its image fills the canvas or not."""
    detector, encoder = detector_of(engine)
    detector.eval()
    grids = encoder.grids(torch.randn(1, 3, 64, 64))
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 1)
    frames = [(128.0, 128.0), (128.0, 40.0), (40.0, 128.0)]
    box = torch.tensor([[4.0, 6.0, 36.0, 30.0]])
    pooled = []
    for frame in frames:
        sample = Sample(0, None, (1, 1), frame, *empty)
        if engine == "torchvision":
            levels, listed = detector._levels(grids, [sample])
            pooled.append(detector.heads.box_roi_pool(levels, [box], listed.image_sizes))
            anchors = detector.proposals.anchor_generator(listed, list(levels.values()))[0]
        else:
            from detectron2.structures import Boxes

            levels = detector.model.backbone(grids)
            features = [levels[name] for name in LEVELS[:4]]
            pooled.append(detector.model.roi_heads.box_pooler(features, [Boxes(box)]))
            generator = detector.model.proposal_generator.anchor_generator
            anchors = torch.cat([a.tensor for a in generator(list(levels.values()))])
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        sizes = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
        assert len(anchors) == 3 * (32**2 + 16**2 + 8**2 + 4**2 + 2**2)
        assert centres[:3].abs().max() == 0
        for size, stride in zip((32, 64, 128, 256, 512), (4, 8, 16, 32, 64), strict=True):
            level = centres[(sizes - size).abs() < 2.5]
            assert len(level) == 3 * (128 // stride) ** 2
            assert level.max().item() == pytest.approx(128 - stride)
    assert torch.equal(pooled[0], pooled[1])
    assert torch.equal(pooled[0], pooled[2])


@each_engine
def test_detections_come_back_in_pixels_of_the_file(engine):
    detector, _ = detector_of(engine)
    canvas = Canvas.of(112, patch_size=14)
    width, height = 50, 100
    frame = tuple(side * canvas.units for side in reversed(canvas.fit(width, height)))
    sample = Sample(0, None, (height, width), frame, *[torch.zeros(0)] * 3)
    pixel = frame[0] / height
    boxes = torch.tensor([[10, 20, 30, 60], [-5, 80, 70, 120], [60, 0, 80, 10]]) * pixel
    masks = torch.zeros(3, 28, 28)
    masks[:, :14] = 1.0
    raw = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([2, 0, 1]), masks)
    found = in_pixels(detector, raw, sample)
    expected = torch.tensor([[10.0, 20, 30, 60], [0, 80, 50, 100]])
    torch.testing.assert_close(found.boxes, expected, atol=1e-3, rtol=0)
    assert found.masks.shape == (2, 100, 50)
    assert found.masks.dtype == torch.bool
    upper = torch.zeros(100, 50, dtype=torch.bool)
    upper[20:40, 10:30] = True
    assert (found.masks[0] ^ upper).sum() <= 60  # but for its rim
    one = to_coco(found, image_id=7, category_ids=[1, 5, 9])[0]
    assert (one["image_id"], one["category_id"]) == (7, 9)
    np.testing.assert_allclose(one["bbox"], [10, 20, 20, 40], atol=1e-3)
    assert one["segmentation"]["size"] == [100, 50]


# -- Training, stopping, going on -----------------------------------------------------------------


@each_engine
def test_a_training_interrupted_and_resumed_is_the_uninterrupted_one(engine, tmp_path):
    whole = run(task_of(engine), run_dir(tmp_path / "whole"))
    request, directory = StopRequest(), run_dir(tmp_path / "parts")

    class StopsAfter3(TrainingProgress):
        def step(self, step):
            request.preempted = step >= 3

    with pytest.raises(Preempted, match=r"after step 4 of 6; the same command goes on"):
        run(task_of(engine), directory, request=request, training=StopsAfter3(6, quiet=True))
    said = []
    parts = run(task_of(engine), directory, say=said.append)
    assert "goes on after step 4 of 6" in said
    assert_equal_heads(parts, whole)
    assert parts.result.metrics == whole.result.metrics
    again = run(task_of(engine), directory)  # nothing is trained a second time
    assert_equal_heads(again, whole)
    steps = [row["step"] for row in next(directory.detections()).read_metrics()]
    assert steps == [6]


def assert_equal_heads(one, two):
    one, two = (weights(outcome.head) for outcome in (one, two))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


@each_engine
def test_training_helps_and_the_result_says_what_was_done(engine, tmp_path):
    loaded = small_encoder()
    before = encoder_sha256(loaded.encoder)
    losses = []
    task = task_of(engine, loaded, schedule="30", train=world(num_images=4))
    directory = run_dir(tmp_path / "run")
    outcome = run(task, directory)
    assert encoder_sha256(loaded.encoder) == before
    rows = list(next(directory.detections()).read_metrics())
    losses = [row["loss"] for row in rows]
    assert [row["step"] for row in rows] == [20, 30]
    assert losses[-1] < losses[0]
    parts = [name for name in rows[0] if name.startswith("loss_")]
    assert len(parts) == 5
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][name] for name in parts), rel=1e-5)
    result = outcome.result
    assert result.name == f"coco-detect--{engine}"
    settings = result.protocol["settings"]
    assert settings["image_size"] == 64
    assert settings["schedule"]["steps"] == 30
    assert result.data["n"] == 6
    assert not result.data["partial"]
    assert set(outcome.pictured) <= set(range(6))
    trained = {name for name, _ in detector_of(engine)[0].named_parameters()}
    assert set(weights(outcome.head)) == trained
    directory.write_result(result)
    assert Result.from_file(directory.result(result.name)).metrics == result.metrics
    if engine == "detectron2":
        for name, value in result.model["detector"]["detectron2_evaluator"].items():
            assert (value is None) == (not len(outcome.arrays["box"]))
            assert value is None or value == pytest.approx(result.metrics[name], abs=1e-6)


@each_engine
def test_the_engine_and_every_setting_are_in_the_protocol(engine):
    base = task_of(engine).protocol
    assert base["variant"] == engine
    for options in ({"image_size": 96}, {"schedule": "7"}, {"lr": 2e-3}, {"flip": False},
                    {"batch_size": 2}, {"cache_features": True}):  # fmt: skip
        assert task_of(engine, **options).protocol != base
    for options in ({"seed": 3}, {"limit": 3}, {"at_once": 1}, {"metric": "faster-coco-eval"}):
        assert task_of(engine, **options).protocol == base


@each_engine
def test_cached_features_train_the_same_detector(engine, tmp_path):
    plain = run(task_of(engine, flip=False), run_dir(tmp_path / "plain"))
    directory = run_dir(tmp_path / "cached")
    said = []
    cached = run(task_of(engine, cache_features=True), directory, say=said.append)
    assert any("features of 8 images take" in text for text in said)
    for name, value in plain.result.metrics.items():
        assert cached.result.metrics[name] == pytest.approx(value, abs=1e-3)
    (file,) = (directory.path / "cache").glob("*.npy")  # its hash lies beside it
    written = file.stat().st_mtime_ns
    run(task_of(engine, cache_features=True, schedule="2"), directory)
    assert file.stat().st_mtime_ns == written


def test_the_grid_cache_is_what_the_encoder_gives(tmp_path):
    encoder, source = frozen(), world()
    indices = trainable_images(source)[::2]
    GridCache.write(tmp_path / "grids.npy", source, indices, encoder, batch_size=3, workers=0,
                    progress=None, check=lambda: None)  # fmt: skip
    cache = GridCache(tmp_path / "grids.npy", indices)
    images = DetectionImages(source, encoder.canvas)
    samples = [images[int(index), None] for index in indices[::-1]]
    torch.testing.assert_close(
        cache.grids_of(samples, torch.device("cpu")), encoder.grids_of(samples)
    )


def test_scoring_can_be_stopped(tmp_path):
    directory, request = run_dir(tmp_path / "run"), StopRequest()

    def stop(text):
        request.preempted = text.startswith("scoring")

    task = task_of("torchvision", schedule="0")
    with pytest.raises(Preempted, match="stopped while scoring; repeat the command to go on"):
        run(task, directory, request=request, say=stop)


def test_a_damaged_grid_cache_is_told_and_one_without_a_hash_believed(tmp_path):
    encoder, source = frozen(), world()
    indices = trainable_images(source)[::8]
    path, count = tmp_path / "grids.npy", len(indices)
    GridCache.write(path, source, indices, encoder, batch_size=3, workers=0,
                    progress=None, check=lambda: None)  # fmt: skip
    assert GridCache.is_whole(path, count, encoder)
    assert not GridCache.is_whole(path, count + 1, encoder)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 64]) + whole[-4:])
    assert not GridCache.is_whole(path, count, encoder)
    hash_of(path).unlink()  # as an earlier version leaves it
    assert GridCache.is_whole(path, count, encoder)
    path.write_bytes(whole[:-5])
    assert not GridCache.is_whole(path, count, encoder)


def test_writing_a_cache_can_be_stopped_and_leaves_nothing_half_written(tmp_path):
    directory, request = run_dir(tmp_path / "run"), StopRequest()

    def stop(what, done, total):
        request.interrupted = what == "features" and 0 < done < total

    task = task_of("torchvision", cache_features=True, at_once=3)
    with pytest.raises(Interrupted, match="repeat the command"):
        run(task, directory, request=request, progress=stop)
    assert not list((directory.path / "cache").iterdir())


def test_a_cache_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(detection.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(RunFailed, match="GiB are free"):
        run(task_of("torchvision", cache_features=True), run_dir(tmp_path / "run"))


@each_engine
def test_batches_in_evaluation_change_nothing(engine):
    detector, encoder = detector_of(engine)
    images = DetectionImages(world("val", num_images=5), encoder.canvas)
    found = [
        detect(detector, encoder.grids_of, images, np.arange(5), batch_size=size, workers=0,
               stopping=Stopping(None, torch.device("cpu")), progress=None)[0]
        for size in (1, 2, 5)
    ]  # fmt: skip
    assert found[0]
    for other in found[1:]:
        assert [o["category_id"] for o in other] == [o["category_id"] for o in found[0]]
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1e-3)


def test_three_steps_that_are_not_finite_end_the_run(tmp_path, monkeypatch):
    from sercli.evals.detection.torchvision import TorchvisionDetector

    forward = TorchvisionDetector.forward

    def broken(self, grids, samples):
        losses = forward(self, grids, samples)
        return {**losses, "loss_mask": losses["loss_mask"] * float("nan")}

    monkeypatch.setattr(TorchvisionDetector, "forward", broken)
    directory = run_dir(tmp_path / "run")
    message = r"loss_mask was not finite in 3 steps in a row, .* step 3 \(images shapes/coco-train/"
    with pytest.raises(RunFailed, match=message):
        run(task_of("torchvision"), directory)


def test_a_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch):
    from sercli.evals.detection.torchvision import TorchvisionDetector

    forward, calls = TorchvisionDetector.forward, []

    def once(self, grids, samples):
        losses = forward(self, grids, samples)
        calls.append(copy.deepcopy([p.detach() for p in self.parameters()]))
        scale = float("inf") if len(calls) == 3 else 1.0
        return {name: value * scale for name, value in losses.items()}

    monkeypatch.setattr(TorchvisionDetector, "forward", once)
    run(task_of("torchvision"), run_dir(tmp_path / "run"))
    same = [all(map(torch.equal, a, b)) for a, b in itertools.pairwise(calls)]
    assert same == [False, False, True, False, False]


def test_an_encoder_that_moved_fails_the_run(tmp_path, monkeypatch):
    task = task_of("torchvision", schedule="0")
    train = detection.detect

    def meddle(*args, **options):
        with torch.no_grad():
            task.loaded.encoder.blocks[0].attn.qkv.weight += 1e-3
        return train(*args, **options)

    monkeypatch.setattr(detection, "detect", meddle)
    with pytest.raises(RunFailed, match="encoder's parameters changed"):
        run(task, run_dir(tmp_path / "run"))


def test_another_training_does_not_go_on_from_these_checkpoints(tmp_path):
    directory = run_dir(tmp_path / "run")
    run(task_of("torchvision"), directory)
    run(task_of("torchvision", seed=1), directory)
    run(task_of("torchvision", small_encoder(seed=1)), directory)
    assert len(list(directory.detections())) == 3


def test_restart_trains_anew(tmp_path):
    directory = run_dir(tmp_path / "run")
    first = run(task_of("torchvision"), directory)
    stale = next(directory.detections()).path / "stale"
    stale.touch()
    assert_equal_heads(run(task_of("torchvision"), directory, restart=True), first)
    assert not stale.exists()


@pytest.mark.parametrize("way", ["damaged", "deleted"])
def test_a_detector_without_a_checkpoint_that_can_be_used_begins_anew_by_a_word_only(tmp_path, way):
    directory = run_dir(tmp_path / "run")
    run(task_of("torchvision"), directory)
    (place,) = directory.detections()
    for step in place.checkpoint_steps():
        if way == "damaged":
            place.checkpoint(step).write_bytes(b"damaged")
        else:
            place.checkpoint(step).unlink()
    before = place.metrics.read_bytes()
    with pytest.raises(UserError, match=r"no checkpoint in .*--restart"):
        run(task_of("torchvision"), directory)
    assert place.metrics.read_bytes() == before
    run(task_of("torchvision"), directory, restart=True)


# -- Schedule, options ----------------------------------------------------------------------------


def test_schedules_are_the_literatures():
    one, three = Schedule.of("1x", lr=1e-4), Schedule.of("3x", lr=1e-4)
    assert (one.total_steps, one.decay_steps) == (90_000, (60_000, 80_000))
    assert (three.total_steps, three.decay_steps) == (270_000, (210_000, 250_000))
    assert one.warmup_steps == 1000
    assert one.lr_at(0) == pytest.approx(1e-7)
    assert one.lr_at(999) == one.lr_at(59_999) == 1e-4
    assert one.lr_at(60_000) == pytest.approx(1e-5)
    assert one.lr_at(89_999) == pytest.approx(1e-6)
    short = Schedule.of("90", lr=1.0)
    assert (short.warmup_steps, short.decay_steps) == (4, (60, 80))
    assert Schedule.of("0", lr=1.0).total_steps == 0
    for wrong in ("2x", "-5", "1.5", ""):
        with pytest.raises(UserError, match="1x"):
            Schedule.of(wrong, lr=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "mmdet"}, "detectron2 or torchvision"),
        ({"preset": "huge"}, "standard or tiny"),
        ({"lr": 0.0}, "above 0"),
        ({"schedule": "forever"}, "1x"),
        ({"image_size": 60}, "use 48 or 64"),
        ({"metric": "mine"}, "faster-coco-eval"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        task_of(**({"engine": "torchvision"} | options))


@pytest.fixture
def no_detectron2(monkeypatch):
    """Whether or not it is installed; other modules are imported as ever."""
    real = importlib.import_module

    def import_module(name):
        if name.startswith("detectron2"):
            raise ModuleNotFoundError("No module named 'detectron2'", name="detectron2")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.usefixtures("no_detectron2")
def test_a_missing_detectron2_is_told_with_the_remedy():
    with pytest.raises(UserError, match=r"pip install --no-build-isolation .*--engine torchvision"):
        task_of("detectron2")


def test_a_limit_marks_the_result_partial():
    task = task_of("torchvision", limit=3)
    assert task.partial
    assert len(task.scored) == len(task.order.indices) == 3
    assert not task_of("torchvision").partial


# -- The command ----------------------------------------------------------------------------------


def saved_run(path, *, cls_after=2):
    """A run directory with an encoder, as pretraining leaves it."""
    from sercli.encoders.loading import encoder_metadata, write_encoder
    from sercli.recipe.schema import Model

    model = Model(
        name="vit_micro", width=32, depth=3, num_heads=2, patch_size=8, cls_after=cls_after
    )
    encoder = small_encoder(cls_after=cls_after).encoder
    directory = run_dir(path)
    write_encoder(
        directory.encoder, encoder_metadata(model, encoder, step=1), student=encoder, teacher=None
    )
    return directory


def command(capsys, *arguments):
    from sercli import cli

    before, sys.argv = sys.argv, ["ser", "coco-detect", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    found = capsys.readouterr()
    return ended.value.code, found.out, found.err


@pytest.fixture
def coco(tmp_path):
    return write_coco_tree(tmp_path / "coco", num_train=6, num_val=4)


SHORT = ("--preset", "tiny", "--schedule", "2", "--batch-size", "2", "--device", "cpu",
         "--workers", "0")  # fmt: skip


@pytest.mark.parametrize("kind", ["run", "timm", "file"])
@each_engine
def test_a_tree_like_cocos_runs_through_the_command(kind, engine, coco, tmp_path, capsys):
    run_of = saved_run(tmp_path / "run")
    more = ["--out", tmp_path / "out"]
    if kind == "run":
        model, more = run_of.path, []
    elif kind == "timm":
        model, more = "timm:vit_tiny_patch16_224", [*more, "--random-init"]
    else:
        vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=2)
        torch.save(vit.state_dict(), tmp_path / "vit.pth")
        model, more = tmp_path / "vit.pth", [*more, "--num-heads", 3]
    status, out, err = command(
        capsys, model, "--coco", coco.root, "--engine", engine, *SHORT, *more
    )
    assert status == 0, err
    assert out.splitlines()[0].startswith(f"engine {engine}")
    target = RunDir(run_of.path if kind == "run" else tmp_path / "out")
    name = f"coco-detect--{engine}"
    result = Result.from_file(target.result(name))
    assert result.data["n"] == 4
    assert result.data["train"] == 5  # one of six has no object
    assert {"ap", "ap50", "ap75", "ap_small", "mask_ap"} <= set(result.metrics)
    assert sum(key.startswith("ap/") for key in result.metrics) >= 80
    for file in (target.head(name), target.figures / f"{name}.png", target.predictions(name)):
        assert file.is_file()
    arrays = np.load(target.predictions(name))
    assert sorted(arrays["image_ids"]) == sorted(i["id"] for i in coco.content["val"]["images"])


@pytest.mark.usefixtures("no_detectron2")
def test_the_default_engine_for_a_directory_is_detectron2(coco, tmp_path, capsys):
    status, out, err = command(capsys, saved_run(tmp_path / "run").path, "--coco", coco.root)
    assert status == 2
    assert out.splitlines()[0] == "engine detectron2, preset standard"
    assert "pip install" in err
    assert "--engine torchvision" in err
    assert len(err.splitlines()) == 1


def broken(coco, how):
    val = coco.content["val"]
    if how == "annotations":
        coco.file("val").unlink()
    elif how == "categories":
        val["categories"] = val["categories"][1:]
        gone = coco.content["train"]["categories"][0]["id"]
        val["annotations"] = [o for o in val["annotations"] if o["category_id"] != gone]
        coco.rewrite("val")
    elif how == "zero":
        val["annotations"][0]["id"] = 0
        coco.rewrite("val")
    elif how == "folder":
        coco.image("val", 0).parent.rename(coco.root / "elsewhere")
    elif how == "truncated":
        data = coco.image("val", 0).read_bytes()
        coco.image("val", 0).write_bytes(data[: len(data) // 2])
    elif how == "half":
        coco.file("train").write_text(coco.file("train").read_text()[:-30])
    elif how == "size":
        val["images"][2]["width"] += 1
        coco.rewrite("val")
    elif how == "missing":
        coco.image("train", 3).unlink()
    elif how == "empty":
        val["annotations"] = [one for one in val["annotations"] if one["iscrowd"]]
        coco.rewrite("val")
    elif how == "crowds":
        train = coco.content["train"]
        train["annotations"] = [one for one in train["annotations"] if one["iscrowd"]]
        coco.rewrite("train")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("annotations", r"no annotations/instances_val\*\.json"),
        ("categories", "categories of train and val differ .*1 person"),
        ("zero", "annotation id 0"),
        ("folder", "neither val2017/ nor images/val2017/"),
        ("truncated", "cannot read the image .*val2017"),
        ("half", "not valid JSON"),
        ("size", "pixels, but instances_val2017.json says"),
        ("missing", r"lacks 1 of the 6 images that instances_train2017.json lists, such as 0"),
        ("empty", "instances_val2017.json: no annotation is an object to find"),
        ("crowds", "instances_train2017.json: no annotation is an object to train on"),
    ],
)
def test_a_broken_set_is_one_clear_line(how, message, coco, tmp_path, capsys):
    broken(coco, how)
    model = saved_run(tmp_path / "run").path
    status, _, err = command(capsys, model, "--coco", coco.root, "--engine", "torchvision", *SHORT)
    assert status == 2
    last = [line for line in err.splitlines() if line.startswith("ser: ")]
    assert len(last) == 1
    assert re.search(message, last[0])
    assert "Traceback" not in err
    assert not list((RunDir(model).path / "detection").glob("*/metrics.jsonl"))  # not trained yet


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image-size", "100"], "multiple of two patches (16); use 96 or 112"),
        (["--coco", "nowhere"], "nowhere does not exist"),
        (["--schedule", "2x"], "1x"),
        (["--engine", "yolo"], "is not one of 'detectron2', 'torchvision'"),
    ],
)
def test_wrong_arguments_are_one_clear_line(more, message, coco, tmp_path, capsys):
    model = saved_run(tmp_path / "run").path
    given = ["--coco", coco.root, "--engine", "torchvision", "--preset", "tiny", *more]
    status, _, err = command(capsys, model, *given)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_model_that_was_not_trained_on_shapes_needs_a_set(tmp_path, capsys):
    status, _, err = command(capsys, saved_run(tmp_path / "run").path)
    assert status == 2
    assert "--coco DIR" in err


def test_load_encoder_gives_what_the_backbone_gives(tmp_path):
    path = saved_run(tmp_path / "run").path
    encoder = load_encoder(path)
    loaded = read_encoder(path)
    backbone = FrozenEncoder(loaded, Canvas.of(64, patch_size=8), CPU)
    images = torch.randn(2, 3, 64, 64)
    grid = encoder(images, (3,)).grids[3]
    expected = encoder.norm(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone.grids(images), expected)
    assert isinstance(encoder.norm, nn.LayerNorm)
    assert json.dumps(loaded.describe())


@pytest.mark.run
def test_a_trial_does_not_lose_the_whole_result(coco, tmp_path, capsys):
    directory = saved_run(tmp_path / "run")
    given = (directory.path, "--coco", coco.root, "--engine", "torchvision", *SHORT)
    for more in ((), ("--limit", "2"), ("--limit", "2"), ("--schedule", "0")):
        status, _, err = command(capsys, *given, *more)
        assert status == 0, err
    name = "coco-detect--torchvision"
    files = sorted((directory.results / "earlier").glob("*.json"))
    kept = [Result.from_file(file) for file in files]
    assert Result.from_file(directory.result(name)).protocol["settings"]["schedule"]["steps"] == 0
    assert {(one.data["n"], one.data["partial"]) for one in kept} == {(4, False), (2, True)}
    for kind in ("npz", "safetensors"):
        assert len(list((directory.results / "earlier").glob(f"*.{kind}"))) == len(kept)
    assert [result.name for result in directory.read_results()] == [name]
