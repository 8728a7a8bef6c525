"""The linear probe: what it reads and when, its choice, going on, processes, the command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import typer
from PIL import Image
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from sercli.commands import linear_eval as command
from sercli.data import ShapesSource, open_source
from sercli.data.loading import image_to_tensor, resize_and_crop
from sercli.data.source import ImageSource
from sercli.encoders.loading import LoadedEncoder, encoder_metadata, write_encoder
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import Runtime
from sercli.errors import Interrupted, Preempted, RunFailed, UserError
from sercli.evals.common import hold_out
from sercli.evals.linear.evaluate import ProbeOutcome, evaluate
from sercli.evals.linear.features import CENTRAL, ProbeImages, Reader
from sercli.evals.linear.heads import load_head
from sercli.evals.linear.kept import cached, fingerprint
from sercli.evals.linear.options import PRESETS, Options
from sercli.evals.linear.probe import Probe, prepare, split_images
from sercli.recipe.schema import Model
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from sercli.statistics import wilson_interval
from tests.support.processes import run_ranks
from tests.support.signals import handled

MODEL = Model(name="vit_micro", patch_size=8, width=16, depth=5, num_heads=2)
CPU = Runtime(torch.device("cpu"), None)
HALF = Runtime(torch.device("cpu"), torch.bfloat16)
QUICK = Options(learning_rates=(0.1, 1.0, 10.0), epochs=3, batch_size=16)


class Logged(ImageSource):
    """A source that notes which images were loaded, in which order, in this process."""

    def __init__(self, source: ImageSource, log: list[tuple[str, int]]) -> None:
        self.name, self.split = source.name, source.split
        self.classes, self.labels = source.classes, source.labels
        self.source, self.log = source, log

    def load(self, index: int) -> Image.Image:
        self.log.append((self.split, index))
        return self.source.load(index)

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def identifier(self, index: int) -> str:
        return self.source.identifier(index)


def shapes(split: str, count: int) -> ShapesSource:
    return ShapesSource(split, image_size=16, num_images=count)


def loaded(seed: int = 1, cls_after: int = 0) -> LoadedEncoder:
    encoder = Encoder.from_model(MODEL, image_size=16, cls_after=cls_after).initialise(seed)
    return LoadedEncoder(encoder.eval(), "somewhere", "student", 9, 9, 16)


def probe(
    options: Options = QUICK, *, train: ImageSource | None = None, val: ImageSource | None = None,
    **arguments: Any,
) -> ProbeOutcome:  # fmt: skip
    train, val = train or shapes("train", 60), val or shapes("val", 40)
    return evaluate(prepare(loaded(), train, val, options), runtime=CPU, workers=0, **arguments)


def colours(root: Path, counts: dict[str, int]) -> Path:
    """Class folders of plain colours, alike within a class."""
    draws = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            base = np.array([[255, 40, 0], [0, 255, 90], [30, 0, 255]][label % 3])
            noisy = base + draws.normal(0, 25, (20, 22, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return root


# -- Which images ---------------------------------------------------------------------------------


def test_hold_out_is_a_share_of_each_class_and_disjoint() -> None:
    train, val = shapes("train", 13000), shapes("val", 30)  # 1300 of each class: 2 % are 26
    split = split_images(train, val, Options())
    assert (np.bincount(train.labels[split.hold_out]) == 26).all()
    assert sorted([*split.train, *split.hold_out]) == list(range(13000))
    assert split.test.tolist() == list(range(30))
    assert not split.partial
    few = split_images(shapes("train", 100), val, Options())  # 10 of each: a fifth
    assert (np.bincount(train.labels[few.hold_out]) == 2).all()
    middle = split_images(shapes("train", 4000), val, Options())  # 400 of each: at least 20
    assert (np.bincount(train.labels[middle.hold_out]) == 20).all()
    again = split_images(train, val, Options())
    other = split_images(train, val, Options(seed=1))
    assert again.hold_out.tolist() == split.hold_out.tolist() != other.hold_out.tolist()


def test_classes_too_small_to_hold_one_out(tmp_path: Path) -> None:
    root = colours(tmp_path / "set", {"a": 1, "b": 2, "c": 7})
    train = open_source(str(root), "train", image_size=16)
    split = split_images(train, shapes("val", 10), Options())
    assert np.bincount(train.labels[split.hold_out], minlength=3).tolist() == [0, 1, 1]
    lonely = open_source(str(colours(tmp_path / "one", {"a": 1, "b": 1})), "train", image_size=16)
    with pytest.raises(UserError, match="no two of one class"):
        split_images(lonely, shapes("val", 10), Options())


@pytest.mark.parametrize(("share", "each"), [(0.01, 4), (0.1, 40), (0.001, 2)])
def test_few_shots_are_as_many_of_each_class(share: float, each: int) -> None:
    train, val = shapes("train", 4000), shapes("val", 30)
    split = split_images(train, val, Options(shots=share))
    used = np.concatenate([split.train, split.hold_out])
    assert (np.bincount(train.labels[used]) == each).all()
    assert len(set(used.tolist())) == 10 * each
    assert len(split.hold_out) >= 10
    assert not split.partial
    assert len(split.test) == 30


def test_without_val_the_test_images_are_knns(tmp_path: Path) -> None:
    root = colours(tmp_path / "set", {"a": 10, "b": 10, "c": 5})
    train = open_source(str(root), "train", image_size=16)
    split = split_images(train, None, Options())
    rest, queries = hold_out(train)
    assert split.test.tolist() == queries.tolist()
    assert sorted([*split.train, *split.hold_out]) == rest.tolist()


def test_a_limit_is_marked() -> None:
    split = split_images(shapes("train", 100), shapes("val", 50), Options(limit=30))
    assert (len(split.train) + len(split.hold_out), len(split.test)) == (30, 30)
    assert split.partial
    assert not split_images(shapes("train", 99), shapes("val", 50), Options(limit=99)).partial
    trial = probe(dataclasses.replace(QUICK, limit=50))
    assert (trial.result.data["partial"], trial.head.facts.partial) == (True, True)
    assert not probe().head.facts.partial


def test_hold_out_is_never_trained_on_and_val_is_read_once_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[tuple[str, int]] = []
    seen: list[tuple[int, int]] = []
    original = ProbeImages.__getitem__

    def noting(self: ProbeImages, key: tuple[int, int]) -> torch.Tensor:
        if self.source.split == "train":
            seen.append(key)
        return original(self, key)

    monkeypatch.setattr(ProbeImages, "__getitem__", noting)
    train, val = Logged(shapes("train", 60), log), Logged(shapes("val", 40), log)
    split = split_images(train, val, QUICK)
    probe(train=train, val=val)
    trained = [key for key in seen if key[1] != CENTRAL]
    for epoch in range(3):  # every image of train once an epoch, and no other
        assert sorted(index for index, of in trained if of == epoch) == split.train.tolist()
    assert [i for i, of in trained if of == 0] != [i for i, of in trained if of == 1]
    assert len(trained) == 3 * len(split.train)
    central = [index for index, of in seen if of == CENTRAL]
    assert central == split.hold_out.tolist()
    assert [item for item in log if item[0] == "val"] == [("val", i) for i in range(40)]
    assert {name for name, _ in log[-40:]} == {"val"}


def test_training_crops_are_functions_of_seed_epoch_and_index() -> None:
    def images(seed: int) -> ProbeImages:
        return ProbeImages(shapes("train", 40), 16, interpolation="bicubic", seed=seed)

    first = images(0)
    assert torch.equal(first[7, 2], images(0)[7, 2])
    assert not torch.equal(first[7, 2], first[7, 3])
    assert not torch.equal(first[7, 2], images(1)[7, 2])
    picture = shapes("train", 40).load(7)
    plain = image_to_tensor(resize_and_crop(picture, resize=18, crop=16))
    assert torch.equal(first[7, CENTRAL], plain)
    bilinear = ProbeImages(shapes("train", 40), 16, interpolation="bilinear", seed=0)[7, CENTRAL]
    expected = resize_and_crop(
        picture.resize((18, 18), Image.Resampling.BILINEAR), resize=18, crop=16
    )
    assert torch.equal(bilinear, image_to_tensor(expected))
    assert not torch.equal(bilinear, plain)


def test_half_of_the_crops_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    from sercli.evals.linear import features as linear_features

    monkeypatch.setattr(linear_features, "random_crop", lambda w, h, **_options: (0, 0, w, h))
    images = ProbeImages(shapes("train", 40), 16, interpolation="bicubic", seed=0)
    plain = image_to_tensor(shapes("train", 40).load(3))
    mirrored = [torch.equal(images[3, epoch], plain.flip(-1)) for epoch in range(200)]
    assert all(m or torch.equal(images[3, e], plain) for e, m in enumerate(mirrored))
    assert 70 < sum(mirrored) < 130


# -- The protocol ---------------------------------------------------------------------------------


def test_presets_are_the_published_ones() -> None:
    ser, dino, moco = (PRESETS[name] for name in ("ser", "dino", "moco-v3"))
    assert (len(ser.learning_rates), len(ser.feature_sets)) == (13, 3)
    assert (ser.epochs, ser.batch_size, ser.interpolation) == (50, 2048, "bicubic")
    assert (dino.feature_sets, dino.learning_rates, dino.epochs) == (("cls4",), (0.001,), 100)
    assert dino.feature_sets_wide == ("cls1+pooled",)
    assert (moco.feature_sets, moco.learning_rates, moco.epochs) == (("cls1",), (3.0,), 90)
    assert moco.interpolation == "bilinear"
    with pytest.raises(UserError, match="--preset sre; known: ser, dino, moco-v3"):
        Options(preset="sre").resolve()
    with pytest.raises(UserError, match="--lr -1; a learning rate must be a number above 0"):
        Options(learning_rates=(1.0, -1.0)).resolve()


@pytest.mark.parametrize(
    ("images", "given", "expected"), [(40000, None, 2048), (4000, None, 128), (90, None, 32),
                                      (90, 7, 7), (40000, 4096, 4096)],
)  # fmt: skip
def test_batches_are_smaller_on_small_sets(images: int, given: int | None, expected: int) -> None:
    options = Options(batch_size=given)
    from sercli.evals.linear.probe import batch_size_for

    assert batch_size_for(options.resolve(), options, images) == expected


def test_the_identity_of_the_protocol_is_its_rule() -> None:
    def identity(count: int = 60, cls_after: int = 0, **options: Any) -> dict[str, Any]:
        made = prepare(
            loaded(cls_after=cls_after), shapes("train", count), shapes("val", 30),
            dataclasses.replace(Options(), **options),
        )  # fmt: skip
        return made.protocol

    usual = identity()
    assert usual == identity(count=400) == identity(cls_after=3) == identity(limit=20)
    assert usual == identity(at_once=3)
    other = loaded()
    other.encoder.pos_resize = "bicubic-offset"  # a fact of the model, not of the rule
    assert usual == prepare(other, shapes("train", 60), shapes("val", 30), Options()).protocol
    assert usual["variant"] == "ser"
    for change in (
        {"epochs": 3}, {"batch_size": 16}, {"learning_rates": (1.0,)}, {"seed": 1},
        {"augment": False}, {"shots": 0.1}, {"preset": "moco-v3"},
    ):  # fmt: skip
        assert identity(**change) != usual
    assert identity(shots=0.01)["variant"] == "ser-1pct"
    assert identity(augment=False, shots=0.1)["variant"] == "ser-no-augment-10pct"


def test_dinos_preset_probes_a_vit_b_as_dino_does() -> None:
    """[CLS] of the last four blocks up to ViT-S, of the last with the mean patch for ViT-B."""

    def made(width: int) -> Probe:
        model = Model(name="vit_micro", width=width, depth=5, num_heads=12, patch_size=8)
        encoder = Encoder.from_model(model, image_size=16).eval()
        wide = dataclasses.replace(loaded(), encoder=encoder)
        return prepare(wide, shapes("train", 60), shapes("val", 30), Options(preset="dino"))

    small, base = made(384), made(768)
    assert small.plan.sets == {"cls4": ("cls@2", "cls@3", "cls@4", "cls")}
    assert base.plan.sets == {"cls1+pooled": ("cls", "pooled@5")}
    assert small.protocol == base.protocol  # one rule: they meet in a table


def test_metrics_are_those_of_the_predictions_and_of_the_head() -> None:
    outcome = probe()
    values, facts = outcome.result.metrics, outcome.result.data
    right = outcome.arrays["labels"] == outcome.arrays["predictions"]
    assert values["top1"] == pytest.approx(100 * right.mean())
    interval = wilson_interval(int(right.sum()), 40)
    assert values["top1/low"] == pytest.approx(100 * interval.low)
    assert values["top1/high"] == pytest.approx(100 * interval.high)
    assert values["best/top1"] == values["top1"]
    assert values[f"{facts['chosen']['feature_set']}/top1"] == values["top1"]
    assert {"last/top1", "cls1/top1", "cls4/top1", "cls1+pooled/top1", "top5/high"} <= set(values)
    assert all(v is not None and 0 <= v <= 100 for v in values.values())
    assert values["top5"] > values["top1"]  # type: ignore[operator]
    assert outcome.arrays["image_ids"].tolist() == [f"val/{i}" for i in range(40)]
    encoder = loaded().encoder
    table = Reader(loaded(), _plan("cls1"), CPU, "bicubic", 0, workers=0)
    assert table.loaded.image_size == 16
    dataset = ProbeImages(shapes("val", 40), 16, interpolation="bicubic", seed=0)
    from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, normalise

    pixels = torch.stack([dataset[i, CENTRAL] for i in range(40)]).float() / 255
    with torch.no_grad():
        found = encoder(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD), outcome.head.layers)
        predictions = outcome.head(found).argmax(1)
    assert predictions.tolist() == outcome.arrays["predictions"].tolist()
    assert outcome.head.facts.protocol_id == outcome.result.protocol_id
    assert outcome.chance == pytest.approx(10)


def _plan(*names: str) -> Any:
    from sercli.evals.linear.features import plan_features

    return plan_features(loaded().encoder, names)


def test_the_choice_is_the_best_of_the_table() -> None:
    outcome = probe()
    chosen = outcome.result.data["chosen"]
    best = max(value for row in outcome.table.values() for value in row if value is not None)
    assert chosen["hold_out_top1"] == best
    index = (0.1, 1.0, 10.0).index(chosen["learning_rate"])
    assert outcome.table[chosen["feature_set"]][index] == best
    assert 1 <= chosen["epoch"] <= 3


def test_a_choice_at_the_edge_of_the_grid_is_told(tmp_path: Path) -> None:
    root = colours(tmp_path / "set", {"a": 20, "b": 20, "c": 20})
    train = open_source(str(root), "train", image_size=16)
    for rates, edge in (
        ((1e-9, 1e-10, 1.0), "highest"),
        ((0.3, 1e42), "lowest"),
        ((1e-9, 0.3, 1e42), None),
        ((0.3,), None),
    ):
        options = Options(learning_rates=rates, epochs=4, batch_size=8, augment=False)
        outcome = evaluate(prepare(loaded(), train, None, options), runtime=CPU, workers=0)
        assert outcome.edge == outcome.result.data["chosen"]["edge"] == edge
        assert (None in outcome.table["cls4"]) == (max(rates) > 1)


def test_easy_images_are_learnt_as_scikit_learn_learns_them(tmp_path: Path) -> None:
    root = colours(tmp_path / "set", {"a": 30, "b": 30, "c": 30})
    train = open_source(str(root), "train", image_size=16)
    # Rates low enough that heads approach the optimum smoothly, and long enough.
    options = Options(preset="moco-v3", learning_rates=(0.5, 2.0), epochs=200, batch_size=80,
                      augment=False)  # fmt: skip
    made = prepare(loaded(), train, None, options)
    outcome = evaluate(made, runtime=CPU, workers=0)
    reader = Reader(made.loaded, made.plan, CPU, "bilinear", 0, workers=0)
    dumped, unseen = (
        made.plan.join("cls1", reader.table(train, rows, what="x")).double().numpy()
        for rows in (made.split.train, made.split.test)
    )
    oracle = LogisticRegression(C=1e4, max_iter=10000).fit(dumped, train.labels[made.split.train])
    expected = oracle.predict(unseen)
    assert len(expected) == 18
    assert (outcome.arrays["predictions"] == expected).mean() >= 17 / 18
    assert outcome.result.metrics["top1"] == pytest.approx(
        100 * (expected == train.labels[made.split.test]).mean(), abs=6
    )
    assert outcome.result.metrics["top1"] > 90  # type: ignore[operator]


def test_long_training_on_kept_features_ends_at_scikit_learns_optimum() -> None:
    train, val = shapes("train", 500), shapes("val", 200)  # a random encoder: classes overlap
    options = Options(preset="moco-v3", learning_rates=(1.0,), epochs=600, batch_size=500,
                      augment=False)  # fmt: skip
    made = prepare(loaded(5), train, val, options)
    values = evaluate(made, runtime=CPU, workers=0).result.metrics
    reader = Reader(made.loaded, made.plan, CPU, "bilinear", 0, workers=0)
    dumped, unseen = (
        made.plan.join("cls1", reader.table(source, rows, what="x")).double().numpy()
        for source, rows in ((train, made.split.train), (val, made.split.test))
    )
    mean, std = dumped.mean(0), dumped.std(0)
    oracle = LogisticRegression(C=1e8, max_iter=20000)
    oracle.fit((dumped - mean) / std, train.labels[made.split.train])
    accuracy = 100 * oracle.score((unseen - mean) / std, val.labels)
    assert 15 < accuracy < 80
    assert values["last/top1"] == pytest.approx(accuracy, abs=2.1)  # of 200 images, 4


def test_images_at_a_time_do_not_change_the_number() -> None:
    for augment in (True, False):
        options = dataclasses.replace(QUICK, augment=augment)
        one, other = (probe(dataclasses.replace(options, at_once=size)) for size in (7, 256))
        assert one.result.metrics == other.result.metrics
        assert one.result.protocol_id == other.result.protocol_id
        torch.testing.assert_close(one.head.weight, other.head.weight, rtol=1e-4, atol=1e-5)


def test_loader_processes_do_not_change_the_number() -> None:
    made = prepare(loaded(), shapes("train", 60), shapes("val", 40), QUICK)
    one, other = (evaluate(made, runtime=CPU, workers=workers) for workers in (0, 2))
    assert torch.equal(one.head.weight, other.head.weight)
    assert one.result.metrics == other.result.metrics


def test_another_image_size_is_the_heads_and_another_protocol() -> None:
    options = dataclasses.replace(QUICK, image_size=32)
    usual, larger = probe(), probe(options)
    assert (usual.result.data["image_size"], larger.result.data["image_size"]) == (16, 32)
    assert (larger.head.facts.image_size, larger.head.facts.resize) == (32, 37)
    assert larger.result.protocol["settings"]["image_size"] == 32
    assert larger.result.protocol_id != usual.result.protocol_id
    with pytest.raises(UserError, match="--image-size 33; it must be a multiple of the patch"):
        probe(dataclasses.replace(QUICK, image_size=33))


def test_delayed_cls_has_its_sets_and_says_so() -> None:
    made = prepare(loaded(cls_after=3), shapes("train", 60), shapes("val", 40), QUICK)
    assert made.plan.notes == (
        "cls4 is the [CLS] of 2 of the last 4 blocks: it joins after block 3 of 5",
    )
    outcome = evaluate(made, runtime=CPU, workers=0)
    assert outcome.result.data["parts"]["cls4"] == ["cls@4", "cls"]


def test_an_encoder_that_moves_fails_the_run() -> None:
    made = prepare(loaded(), shapes("train", 60), shapes("val", 40), QUICK)

    def moving(what: str, done: int, _total: int) -> None:
        if (what, done) == ("probe", 2):
            with torch.no_grad():
                made.loaded.encoder.blocks[2].mlp.fc1.bias[3] += 1e-6

    with pytest.raises(RunFailed, match="parameters changed"):
        evaluate(made, runtime=CPU, workers=0, progress=moving)


def test_features_and_heads_that_are_not_finite_fail_the_run() -> None:
    made = prepare(loaded(), shapes("train", 60), shapes("val", 40), QUICK)
    with torch.no_grad():
        made.loaded.encoder.norm.bias[0] = torch.nan
    with pytest.raises(RunFailed, match="features that are not finite"):
        evaluate(made, runtime=CPU, workers=0)
    with pytest.raises(RunFailed, match="all heads diverged"):
        probe(dataclasses.replace(QUICK, learning_rates=(1e42,)))


# -- Kept features --------------------------------------------------------------------------------


def test_kept_features_are_read_again_and_belong_to_encoder_and_images(tmp_path: Path) -> None:
    options, path = dataclasses.replace(QUICK, augment=False), tmp_path / "cache" / "x.safetensors"
    log: list[tuple[str, int]] = []
    train = Logged(shapes("train", 60), log)
    first = probe(options, train=train, cache=path)
    read = len(log)
    log.clear()
    again = probe(dataclasses.replace(options, epochs=1), train=train, cache=path)
    assert len(log) <= 2 * 8 < read  # only a few images, to tell that they are the same
    assert again.result.protocol_id != first.result.protocol_id
    log.clear()
    repeated = probe(options, train=train, cache=path)
    assert torch.equal(repeated.head.weight, first.head.weight)
    other = prepare(loaded(seed=2), train, shapes("val", 40), options)
    log.clear()
    evaluate(other, runtime=CPU, workers=0, cache=path)
    assert len(log) >= 60
    log.clear()
    evaluate(other, runtime=HALF, workers=0, cache=path)  # of another precision
    assert len(log) >= 60
    path.write_bytes(b"damaged")
    assert torch.equal(probe(options, cache=path).head.weight, first.head.weight)


def test_a_fingerprint_sees_ids_labels_and_pixels() -> None:
    some = np.arange(40)
    usual = fingerprint(shapes("train", 40), some)
    assert usual == fingerprint(shapes("train", 40), some)
    others = [
        fingerprint(ShapesSource("train", image_size=16, num_images=40, seed=5), some),
        fingerprint(ShapesSource("train", image_size=24, num_images=40), some),
        fingerprint(shapes("val", 40), some),
        fingerprint(shapes("train", 40), some[:-1]),
    ]
    assert usual not in others
    assert cached(None, "key", lambda: torch.ones(2, 1, 1), shape=(2, 1, 1)).sum() == 2


# -- Stopping and going on ------------------------------------------------------------------------


def stopping_at(request: StopRequest, step: int, *, field: str = "preempted") -> Any:
    def progress(what: str, done: int, _total: int) -> None:
        if (what, done) == ("probe", step):
            setattr(request, field, True)

    return progress


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("step", [2, 3, 7])  # of 9: in an epoch, at its end, in the last one
def test_interrupted_and_resumed_is_bit_equal(augment: bool, step: int, tmp_path: Path) -> None:
    options = dataclasses.replace(QUICK, augment=augment, batch_size=17)
    whole = probe(options)
    path, request = tmp_path / "heads" / "x.unfinished", StopRequest()
    with pytest.raises(Preempted, match=rf"stopped after step {step} of 9; the same command"):
        probe(options, unfinished=path, request=request, progress=stopping_at(request, step))
    told: list[str] = []
    steps: list[int] = []

    def counting(what: str, done: int, _total: int) -> None:
        if what == "probe":
            steps.append(done)

    resumed = probe(options, unfinished=path, say=told.append, progress=counting)
    assert told == [f"going on after step {step}"]
    assert steps == list(range(step + 1, 10))
    assert torch.equal(resumed.head.weight, whole.head.weight)
    assert resumed.table == whole.table
    assert resumed.result.metrics == whole.result.metrics
    assert resumed.arrays["predictions"].tolist() == whole.arrays["predictions"].tolist()


def test_a_stop_while_the_test_images_are_read_keeps_the_heads(tmp_path: Path) -> None:
    path, request = tmp_path / "x.unfinished", StopRequest()

    def at_test(what: str, _done: int, _total: int) -> None:
        request.interrupted = request.interrupted or (what == "probe" and _done == _total)

    # The step that ends the training asks first, so the stop is told there …
    with pytest.raises(Interrupted, match="after step 12 of 12"):
        probe(unfinished=path, request=request, progress=at_test)
    path.unlink()
    request.interrupted = False

    def in_test(what: str, done: int, _total: int) -> None:
        request.interrupted = request.interrupted or (what == "test" and done == 7)

    # … and within the test at the next batch.
    options = dataclasses.replace(QUICK, at_once=7)
    with pytest.raises(Interrupted, match="stopped while reading images"):
        probe(options, unfinished=path, request=request, progress=in_test)
    told: list[str] = []
    resumed = probe(options, unfinished=path, say=told.append)
    assert told == ["going on after step 12"]
    assert resumed.result.metrics == probe(options).result.metrics


def test_an_unfinished_probe_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    path, request = tmp_path / "x.unfinished", StopRequest()
    with pytest.raises(Preempted):
        probe(unfinished=path, request=request, progress=stopping_at(request, 2))
    with pytest.raises(UserError, match=r"another protocol.*--restart"):
        probe(dataclasses.replace(QUICK, epochs=5), unfinished=path)
    with pytest.raises(UserError, match="another set of images"):
        probe(train=ShapesSource("train", image_size=16, num_images=60, seed=8), unfinished=path)
    made = prepare(loaded(seed=4), shapes("train", 60), shapes("val", 40), QUICK)
    with pytest.raises(UserError, match="another encoder"):
        evaluate(made, runtime=CPU, workers=0, unfinished=path)
    same = prepare(loaded(), shapes("train", 60), shapes("val", 40), QUICK)
    with pytest.raises(UserError, match="another precision"):
        evaluate(same, runtime=HALF, workers=0, unfinished=path)
    path.write_bytes(path.read_bytes()[:100])
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"cannot be read.*--restart"):
        probe(unfinished=path)
    assert path.read_bytes() == before


def test_a_long_probe_is_written_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sercli.evals.linear import training as linear_training

    monkeypatch.setattr(linear_training, "SAVE_SECONDS", 0.0)
    path = tmp_path / "x.unfinished"

    def killed(what: str, done: int, _total: int) -> None:
        if (what, done) == ("probe", 6):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(unfinished=path, progress=killed)
    told: list[str] = []
    resumed = probe(unfinished=path, say=told.append)
    assert told == ["going on after step 4"]  # the end of the first epoch
    assert torch.equal(resumed.head.weight, probe().head.weight)


# -- Several processes ----------------------------------------------------------------------------


def in_process(rank: int, folder: str) -> None:
    """What each of two processes does: augmented and cached probes, and one that is stopped."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                            world_size=2, timeout=timedelta(seconds=120))  # fmt: skip
    path = Path(folder) / "x.unfinished"
    for augment in (True, False):
        request = StopRequest()
        options = dataclasses.replace(QUICK, augment=augment, batch_size=15)
        # Only rank 1 hears of the signal: both must stop, at the same step.
        stop = stopping_at(request, 5, field="interrupted") if rank else None
        with pytest.raises(Interrupted, match="after step 5 of 12"):
            probe(options, unfinished=path, request=request, progress=stop)
        outcome = probe(options, unfinished=path, cache=Path(folder) / "cache.safetensors")
        torch.save(
            {"metrics": outcome.result.metrics, "weight": outcome.head.weight,
             "predictions": outcome.arrays["predictions"], "table": outcome.table},
            f"{folder}/{augment}-{rank}.pt",
        )  # fmt: skip
        dist.barrier()
        if rank == 0:
            path.unlink()
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.run
def test_two_processes_give_the_number_of_one(tmp_path: Path) -> None:
    run_ranks(in_process, str(tmp_path))
    for augment in (True, False):
        # 48 images in batches of 15: the last has 3, so that ranks hold 2 and 1 of it.
        one = probe(dataclasses.replace(QUICK, augment=augment, batch_size=15))
        found = [torch.load(tmp_path / f"{augment}-{r}.pt", weights_only=False) for r in (0, 1)]
        assert torch.equal(found[0]["weight"], found[1]["weight"])
        for ours in found:
            torch.testing.assert_close(ours["weight"], one.head.weight, rtol=1e-4, atol=1e-5)
            assert ours["metrics"] == one.result.metrics
            assert ours["table"] == one.table
            assert ours["predictions"].tolist() == one.arrays["predictions"].tolist()


# -- The command ----------------------------------------------------------------------------------


def run_directory(path: Path) -> RunDir:
    recipe = "seed: 3\ndata: {path: shapes, image_size: 16, num_train: 60, num_val: 30}"
    encoder = Encoder.from_model(MODEL, image_size=16).initialise(1)
    run = RunDir.create(path, recipe=recipe, run={"status": "done"})
    metadata = encoder_metadata(MODEL, encoder, step=1)
    write_encoder(run.encoder, metadata, student=encoder, teacher=encoder.random_twin(2))
    return run


def invoke(*arguments: str | Path) -> tuple[str, str]:
    """Standard output and standard error; errors are raised."""
    app = typer.Typer()
    app.command()(command.linear_eval)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


SHORT = ("--epochs", "2", "--batch-size", "16")


def test_command_writes_result_predictions_and_head(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    output, errors = invoke(run.path, *SHORT)
    (result,) = run.read_results()
    assert result.name == "linear-eval--ser"
    assert f"top-1  {result.metrics['top1']:.2f} %" in output
    assert "Hold-out accuracy, percent of 10 images of train" in output
    assert len([line for line in output.splitlines() if line.startswith("0.00")]) == 3
    assert "13 learning rates x 3 feature sets, 2 epochs of 4 steps of 16 images" in errors
    assert result.data["n"] == 30
    with np.load(run.predictions(result.name)) as stored:
        share = (stored["predictions"] == stored["labels"]).mean()
        assert 100 * share == pytest.approx(result.metrics["top1"])
        assert stored["image_ids"].shape == (30,)
    head = load_head(run.head(result.name))
    assert head.facts.protocol_id == result.protocol_id
    assert len(head.classes) == 10
    assert not run.unfinished_head(result.name).exists()


def test_command_variants_stand_side_by_side(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    invoke(run.path, *SHORT, "--preset", "moco-v3")
    output, _ = invoke(run.path, *SHORT, "--cached-features", "--lr", "1e-9", "--lr", "1")
    assert run.feature_cache("train").is_file()
    invoke(run.path, *SHORT, "--shots", "50%", "--teacher", "--limit", "20", "--lr", "1")
    names = [result.name for result in run.read_results()]
    assert names == ["linear-eval--moco-v3", "linear-eval--ser-50pct",
                     "linear-eval--ser-no-augment"]  # fmt: skip
    few = json.loads(run.result("linear-eval--ser-50pct").read_text())
    assert few["model"]["key"] == "teacher"
    assert few["data"]["partial"]
    assert few["protocol"]["settings"]["shots"] == 0.5
    assert len([line for line in output.splitlines() if line.startswith(("1e-09 ", "1 "))]) == 2


def test_command_warns_at_the_edge(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    root = colours(tmp_path / "set", {"a": 20, "b": 20, "c": 20})
    rates = ("--lr", "1e-9", "--lr", "1")
    _, errors = invoke(run.path, "--data", root, "--epochs", "4", "--cached-features", *rates)
    assert "warning: the chosen learning rate 1 is the highest of the grid" in errors
    assert errors.count("warning: the probe may not have converged: it took 8 steps") == 1
    assert errors.count("--epochs 400") == 1  # 2 steps each
    result = json.loads(run.result("linear-eval--ser-no-augment").read_text())
    warnings = result["data"]["warnings"]
    assert [f"warning: {text}" for text in warnings] == errors.splitlines()[-2:]
    head = load_head(run.head("linear-eval--ser-no-augment"))
    assert head.facts.warnings == tuple(warnings)
    many = ("--epochs", "400", "--preset", "moco-v3", "--lr", "0.3")  # one rate has no edge
    _, errors = invoke(run.path, "--data", root, "--cached-features", *many)
    assert "warning" not in errors
    result = json.loads(run.result("linear-eval--moco-v3-no-augment").read_text())
    assert result["data"]["warnings"] == []


@contextmanager
def killing(step: int) -> Iterator[Any]:
    def show(what: str, done: int, _total: int) -> None:
        if (what, done) == ("probe", step):
            os.kill(os.getpid(), signal.SIGTERM)

    yield show


def test_sigterm_is_75_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_directory(tmp_path / name) for name in ("whole", "stopped")]
    invoke(runs[0].path, *SHORT)
    with monkeypatch.context() as patched:
        patched.setattr(command, "progress_of", lambda _first: killing(3))
        with handled(), pytest.raises(Preempted, match="the same command goes on") as stop:
            invoke(runs[1].path, *SHORT)
    assert stop.value.exit_status == 75
    name = "linear-eval--ser"
    assert runs[1].unfinished_head(name).is_file()
    assert not runs[1].results.exists()
    with pytest.raises(UserError, match="--restart"):
        invoke(runs[1].path, "--epochs", "3", "--batch-size", "16")
    _, errors = invoke(runs[1].path, *SHORT)
    assert "going on after step 3" in errors
    whole, stopped = (run.read_results()[0] for run in runs)
    assert whole.metrics == stopped.metrics
    heads = [load_head(run.head(name)) for run in runs]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not runs[1].unfinished_head(name).exists()


def test_restart_drops_what_is_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_directory(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(command, "progress_of", lambda _first: killing(3))
        with handled(), pytest.raises(Preempted):
            invoke(run.path, *SHORT)
    _, errors = invoke(run.path, "--epochs", "1", "--batch-size", "16", "--restart")
    assert "going on" not in errors
    assert run.read_results()[0].protocol["settings"]["epochs"] == 1


def test_wrong_usage_is_told_before_any_work(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    for arguments, message in (
        (("--lr", "-1"), "--lr -1; a learning rate must be a number above 0"),
        (("--shots", "150%"), "--shots 150%; it must be a percentage below 100"),
        (("--shots", "few"), "--shots few"),
        (("--lr", "0.1", "--lr", "nan"), "--lr nan;"),
        (("--lr", "0"), "--lr 0; a learning rate must be a number above 0"),
        (("--device", "tpu"), "it must be cpu or cuda"),
        (("--data", tmp_path / "nowhere", "--out", tmp_path / "new"), "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            invoke(run.path, *arguments)
    assert not (tmp_path / "new").exists()
    assert not run.heads.exists()


def test_a_set_without_val_and_a_file_as_model(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    root = colours(tmp_path / "set", {"a": 20, "b": 20, "c": 20})
    output, errors = invoke(run.encoder, "--data", root, "--out", tmp_path / "made", *SHORT)
    assert "has no val/: the test set is a fifth of train" in errors
    (result,) = RunDir.open(tmp_path / "made").read_results()
    assert (result.data["n"], result.data["train"], result.data["hold_out"]) == (12, 39, 9)
    assert result.protocol["settings"]["test"] == "a seeded 20% of each class of train"
    assert f"{result.metrics['top1']:.2f}" in output
    assert load_head(tmp_path / "made" / "heads" / "linear-eval--ser.safetensors").classes == (
        "a", "b", "c",
    )  # fmt: skip
