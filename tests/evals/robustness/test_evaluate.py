"""`ser robustness`: a classifier whose answers are known, each image read once, files and errors.

A picture of the fakes says itself what the stub predicts: its red level is the best class, its
green level the second best.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import typer
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from sercli.commands.robustness import robustness
from sercli.data.corruptions.catalogue import SEVERITIES
from sercli.data.loading import resize_and_crop
from sercli.data.robustness.imagenet_classes import imagenet_classes
from sercli.data.robustness.videos import write_video
from sercli.data.shapes.outlines import CLASSES
from sercli.data.source import ImageSource
from sercli.encoders.loading import encoder_metadata, encoder_sha256, read_encoder, write_encoder
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed, UserError
from sercli.evals.linear.heads import HeadFacts, ProbeHead, load_head
from sercli.evals.robustness.classifier import CentreView, Classifier, own_head
from sercli.evals.robustness.evaluate import (
    evaluate,
    evaluate_corruptions,
    evaluate_images,
    evaluate_perturbed,
    normalised,
)
from sercli.evals.robustness.opening import Sets
from sercli.evals.robustness.reading import InOrder, Reading
from sercli.evals.robustness.scores import Normalisers
from sercli.evals.robustness.tables import blocks, corruption_rows
from sercli.recipe.schema import Model
from sercli.report.compare.columns import catalogue
from sercli.report.compare.runs import read_runs
from sercli.report.figures.corruptions import CorruptionRow, corruption_figure
from sercli.report.figures.style import save_figure
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from tests.support.alexnet import ALEXNET_ERRORS
from tests.support.processes import run_ranks

CPU = torch.device("cpu")
SIDE = 8
NAMES = tuple(f"class{i}" for i in range(10))
QUIET = Reading(workers=0)

# -- Fakes ----------------------------------------------------------------------------------------


class Stub(nn.Module):
    """Logits 3 for the class that the red level names, 2 for that of the green, else falling."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        levels = (images.mean((2, 3)) * 255 / 20).round().long()
        logits = torch.linspace(1, 0, len(NAMES)).repeat(len(images), 1)
        rows = torch.arange(len(images))
        logits[rows, levels[:, 1]] = 2
        logits[rows, levels[:, 0]] = 3
        return logits


def stub(**changes: Any) -> Classifier:
    classifier = Classifier(
        network=Stub(),
        classes=NAMES,
        image_size=SIDE,
        view=CentreView(SIDE, SIDE),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        device=CPU,
        rule={"head": "stub"},
        model={"source": "stub", "key": "student", "matched": 1, "expected": 1},
    )
    return replace(classifier, **changes)


def picture(first: int, second: int, side: int = SIDE) -> Image.Image:
    return Image.new("RGB", (side, side), (20 * first, 20 * second, 0))


class Pictures(ImageSource):
    """`answers`: what the stub will say of each image, best and second best."""

    def __init__(
        self, answers: Sequence[tuple[int, int]], labels: Sequence[int], *, prefix: str = ""
    ) -> None:
        self.name, self.split, self.classes = "somewhere", "val", NAMES
        self.labels = np.array(labels, dtype=np.int64)
        self.answers, self.prefix = answers, prefix
        self.side = SIDE
        self.loads: Counter[int] = Counter()

    def load(self, index: int) -> Image.Image:
        self.loads[index] += 1
        return picture(*self.answers[index], self.side)

    def describe(self, index: int) -> str:
        return f"somewhere/{self.identifier(index)}"

    def identifier(self, index: int) -> str:
        return f"{self.prefix}{NAMES[self.labels[index]]}/{index}.JPEG"


@dataclass(frozen=True)
class FakeSet:
    source: ImageSource
    name: str = "somewhere"
    subset: NDArray[np.int64] | None = None
    variant: str = "x"
    partial: bool = False
    notes: tuple[str, ...] = ()


def right_and_wrong(right: int, wrong: int, **options: Any) -> Pictures:
    """The first `right` images are class 1 and called so, the others are 2 but called 3."""
    answers = [(1, 5)] * right + [(3, 6)] * wrong
    return Pictures(answers, [1] * right + [2] * wrong, **options)


class FakeCorrupted:
    """Cell (c, s): of ten images, 10 − 2 (s − 1) are right; "fog" has 1 fewer."""

    def __init__(self, corruptions: Sequence[str] = tuple(ALEXNET_ERRORS)) -> None:
        self.corruptions, self.partial, self.notes = tuple(corruptions), False, ("a note",)
        self.made: dict[tuple[str, int], Pictures] = {}

    def right(self, corruption: str, severity: int) -> int:
        return 10 - 2 * (severity - 1) - (corruption == "fog")

    def source(self, corruption: str, severity: int) -> Pictures:
        # Labels must be those of each image in every cell: alternate what the stub says instead.
        right = self.right(corruption, severity)
        answers = [(1, 5)] * right + [(3, 6)] * (10 - right)
        made = Pictures(answers, [1] * 10, prefix=f"{corruption}/{severity}/")
        return self.made.setdefault((corruption, severity), made)


class FakePerturbed:
    perturbations = ("gaussian_noise", "tilt")
    partial = False
    notes: tuple[str, ...] = ()
    # Best class of each frame; the second best is always class 8. True class: 1.
    videos: dict[str, list[list[int]]] = {  # noqa: RUF012
        "gaussian_noise": [[1, 2, 2, 2], [1, 1, 1, 1]],
        "tilt": [[1, 2, 2, 2], [4, 4, 4, 4]],
    }

    def __init__(self) -> None:
        self.reads: Counter[tuple[str, int]] = Counter()

    def num_videos(self, perturbation: str) -> int:
        return len(self.videos[perturbation])

    def labels(self, perturbation: str) -> NDArray[np.int64]:
        return np.ones(self.num_videos(perturbation), dtype=np.int64)

    def identifier(self, perturbation: str, index: int) -> str:
        assert index < self.num_videos(perturbation)
        return f"class1/{index}.mp4"

    def frames(self, perturbation: str, index: int) -> NDArray[np.uint8]:
        self.reads[perturbation, index] += 1
        shown = [np.array(picture(c, 8)) for c in self.videos[perturbation][index]]
        return np.stack(shown)


# -- Labelled sets --------------------------------------------------------------------------------


def test_accuracy_of_a_set_each_image_read_once() -> None:
    source = right_and_wrong(6, 4)
    outcome = evaluate_images(stub(), FakeSet(source), variant="imagenet-sketch", reading=QUIET)
    result = outcome.result
    assert result.name == "robustness--imagenet-sketch"
    assert result.metrics["top1"] == 60
    assert result.metrics["top5"] == 100  # class 2 has the third largest of the other logits
    assert result.metrics["top1/low"] < 60 < result.metrics["top1/high"]  # type: ignore[operator]
    assert set(source.loads.values()) == {1}
    assert len(source.loads) == 10
    assert (result.data["n"], result.data["partial"], result.data["classes"]) == (10, False, 10)
    assert outcome.arrays["predictions"].tolist() == [1] * 6 + [3] * 4
    assert outcome.arrays["labels"].tolist() == [1] * 6 + [2] * 4
    assert outcome.arrays["image_ids"][7] == "class2/7.JPEG"


def test_logits_are_restricted_before_argmax() -> None:
    # Called 3, which is not in the set, the second best is right: class 2.
    source = Pictures([(3, 2)] * 4 + [(2, 1)] * 2, [2] * 6)
    masked = FakeSet(source, subset=np.array([1, 2, 7]))
    free, restricted = (
        evaluate_images(stub(), one, variant="imagenet-r", reading=QUIET)
        for one in (FakeSet(source), masked)
    )
    assert free.result.metrics["top1"] == pytest.approx(100 / 3)
    assert restricted.result.metrics["top1"] == 100
    assert restricted.arrays["predictions"].tolist() == [2] * 6  # in the classes of the head
    assert restricted.result.data["classes"] == 3
    assert free.result.protocol_id != restricted.result.protocol_id


def test_neither_batches_nor_workers_change_a_number() -> None:
    draws = np.random.default_rng(0)
    answers = [(int(a), int((a + 1) % 10)) for a in draws.integers(0, 10, 23)]
    source = Pictures(answers, draws.integers(0, 10, 23).tolist())
    outcomes = [
        evaluate_images(
            stub(), FakeSet(source), variant="val", reading=Reading(size, workers=workers)
        )
        for size, workers in ((1, 0), (5, 0), (100, 0), (4, 2))
    ]
    for outcome in outcomes[1:]:
        assert outcome.result.metrics == outcomes[0].result.metrics
        assert outcome.result.protocol_id == outcomes[0].result.protocol_id
        assert outcome.arrays["predictions"].tolist() == outcomes[0].arrays["predictions"].tolist()


def test_a_limit_is_a_seeded_sample_and_marked() -> None:
    source = right_and_wrong(20, 20)
    reading = Reading(workers=0, limit=8)
    one, again = (
        evaluate_images(stub(), FakeSet(source), variant="val", reading=reading) for _ in range(2)
    )
    assert (one.result.data["n"], one.result.data["partial"]) == (8, True)
    assert one.arrays["image_ids"].tolist() == again.arrays["image_ids"].tolist()
    assert 0 < one.result.metrics["top1"] < 100  # type: ignore[operator]
    whole = evaluate_images(stub(), FakeSet(source), variant="val", reading=QUIET).result
    assert whole.protocol_id == one.result.protocol_id
    enough = Reading(workers=0, limit=40)
    exact = evaluate_images(stub(), FakeSet(source), variant="val", reading=enough).result
    assert not exact.data["partial"]
    incomplete = FakeSet(source, partial=True, notes=("3 images are missing",))
    marked = evaluate_images(stub(), incomplete, variant="val", reading=QUIET).result
    assert marked.data["partial"]
    assert marked.data["notes"] == ["3 images are missing"]


def test_progress_ends_at_the_number_of_images() -> None:
    told: list[tuple[str, int, int]] = []
    reading = Reading(4, workers=0, progress=lambda *args: told.append(args))
    evaluate_images(stub(), FakeSet(right_and_wrong(6, 4)), variant="val", reading=reading)
    assert told == [("val", 4, 10), ("val", 8, 10), ("val", 10, 10)]
    told.clear()
    evaluate_corruptions(
        stub(), FakeCorrupted(["fog"]), variant="imagenet-c", path="c", clean=None, reading=reading
    )
    assert told[-1] == ("imagenet-c", 50, 50)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_heads_that_do_not_fit_are_refused() -> None:
    images = FakeSet(right_and_wrong(1, 1))
    with pytest.raises(UserError, match="10 logits for 9 classes"):
        evaluate_images(stub(classes=NAMES[:9]), images, variant="val", reading=QUIET)
    broken = stub(network=lambda images: torch.full((len(images), 10), torch.nan))
    with pytest.raises(RunFailed, match="not finite"):
        evaluate_images(broken, images, variant="val", reading=QUIET)


def test_a_logit_of_a_later_batch_that_is_not_finite_fails_the_set() -> None:
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return torch.full((len(images), 10), torch.inf if len(seen) == 2 else 0.0)

    reading = dataclasses.replace(QUIET, batch_size=2)
    with pytest.raises(RunFailed, match="not finite"):
        evaluate_images(
            stub(network=network), FakeSet(right_and_wrong(3, 3)), variant="val", reading=reading
        )
    assert len(seen) > 2  # asked once at the end, as to ask is to wait for the device


def test_labels_are_looked_up_by_name() -> None:
    source = right_and_wrong(3, 2)
    turned = InOrder(source, NAMES[::-1])
    assert turned.labels.tolist() == [8, 8, 8, 7, 7]
    assert turned.identifier(4) == source.identifier(4)
    with pytest.raises(UserError, match="class0 is not in both"):
        InOrder(source, NAMES[1:])


# -- ImageNet-C -----------------------------------------------------------------------------------


def corrupted_outcome(corrupted: FakeCorrupted, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "variant": "imagenet-c",
        "path": "c",
        "clean": None,
        "reading": QUIET,
    }
    return evaluate_corruptions(stub(), corrupted, **settings | options)


def test_grid_of_a_classifier_whose_errors_are_known() -> None:
    corrupted = FakeCorrupted()
    clean = evaluate_images(
        stub(), FakeSet(right_and_wrong(9, 1)), variant="val", reading=QUIET
    ).result
    outcome = corrupted_outcome(corrupted, clean=clean)
    values, arrays = outcome.result.metrics, outcome.arrays
    assert [values[f"top1/snow/{s}"] for s in SEVERITIES] == [100, 80, 60, 40, 20]
    assert values["top1/fog/1"] == 90
    assert values["top1"] == pytest.approx((14 * 60 + 50) / 15)
    errors = {name: 0.5 if name == "fog" else 0.4 for name in ALEXNET_ERRORS}
    assert values["mce"] == pytest.approx(
        np.mean([100 * errors[name] / ALEXNET_ERRORS[name] for name in errors])
    )
    assert values["relative_mce"] == pytest.approx(
        np.mean([100 * (errors[n] - 0.1) / (ALEXNET_ERRORS[n] - 0.43478) for n in errors])
    )
    assert (outcome.result.data["n"], outcome.result.data["cells"]) == (750, 75)
    assert all(set(made.loads.values()) == {1} for made in corrupted.made.values())
    assert arrays["predictions"].shape == (75, 10)
    assert arrays["cells"][0] == "gaussian_noise/1"
    assert arrays["image_ids"].tolist() == [f"class1/{i}.JPEG" for i in range(10)]
    fog = arrays["cells"].tolist().index("fog/2")
    assert arrays["predictions"][fog].tolist() == [1] * 7 + [3] * 3
    assert any("units of AlexNet's errors" in note for note in outcome.result.data["notes"])


def test_limited_grid_takes_the_same_images_of_each_cell() -> None:
    outcome = corrupted_outcome(FakeCorrupted(["snow", "fog"]), reading=Reading(limit=4, workers=0))
    assert outcome.arrays["predictions"].shape == (10, 4)
    assert (outcome.arrays["predictions"] >= 0).all()
    assert outcome.result.data["partial"]
    assert outcome.result.metrics["mce"] is None


def test_a_limited_clean_error_makes_the_grid_partial() -> None:
    reading = Reading(limit=2, workers=0)
    clean = evaluate_images(
        stub(), FakeSet(right_and_wrong(9, 1)), variant="val", reading=reading
    ).result
    assert corrupted_outcome(FakeCorrupted(["fog"]), clean=clean).result.data["partial"]
    assert not corrupted_outcome(FakeCorrupted(["fog"])).result.data["partial"]


def test_cells_with_other_images_share_a_list() -> None:
    class Shrinking(FakeCorrupted):
        def source(self, corruption: str, severity: int) -> Pictures:
            whole = super().source(corruption, severity)
            return Pictures(whole.answers[severity:], whole.labels[severity:].tolist())

    arrays = corrupted_outcome(Shrinking(["fog"])).arrays
    assert arrays["predictions"].shape == (5, 9)
    assert (arrays["predictions"] == -1).sum(1).tolist() == [0, 1, 2, 3, 4]
    assert arrays["labels"].tolist() == [1] * 9


def test_corrupted_files_are_never_resized() -> None:
    corrupted = FakeCorrupted(["fog"])
    corrupted.source("fog", 2).side = SIDE + 2
    with pytest.raises(UserError, match=r"fog/2/class1/0\.JPEG has 10×10 pixels.* takes 8×8"):
        corrupted_outcome(corrupted)


def test_on_the_fly_is_another_protocol() -> None:
    files, made = (
        corrupted_outcome(FakeCorrupted(["fog"]), variant=variant).result
        for variant in ("imagenet-c", "imagenet-c-otf")
    )
    assert made.name == "robustness--imagenet-c-otf"
    assert made.protocol_id != files.protocol_id


# -- ImageNet-P -----------------------------------------------------------------------------------


def test_sequences_whose_flips_are_known() -> None:
    perturbed = FakePerturbed()
    outcome = evaluate_perturbed(stub(), perturbed, path="p", reading=QUIET)
    values = outcome.result.metrics
    assert values["fp/gaussian_noise"] == 0.5  # all three differ from the first; none
    assert values["fp/tilt"] == pytest.approx(1 / 6)
    assert values["fp"] == pytest.approx((1 / 2 + 1 / 6) / 2)
    # Best: 1 8 0 2 3, then 2 8 0 1 3: two places, three apart each.
    assert values["ut5d/gaussian_noise"] == pytest.approx(6 / 2)
    assert values["ut5d/tilt"] == pytest.approx(6 / 3 / 2)
    assert values["top1/tilt"] == pytest.approx(100 / 8)
    assert values["top1"] == pytest.approx(100 * (5 / 8 + 1 / 8) / 2)
    assert set(perturbed.reads.values()) == {1}
    assert (outcome.result.data["n"], outcome.result.data["frames"]) == (4, 16)
    arrays = outcome.arrays
    assert arrays["image_ids"].tolist() == [
        f"{name}/class1/{i}.mp4" for name in ("gaussian_noise", "tilt") for i in range(2)
    ]
    assert arrays["flips"].tolist() == pytest.approx([1, 0, 1 / 3, 0])
    assert arrays["predictions"][0].tolist() == [1, 2, 2, 2]


def test_sequences_in_any_batches() -> None:
    whole, *parts = (
        evaluate_perturbed(stub(), FakePerturbed(), path="p", reading=Reading(size, workers=0))
        for size in (256, 3, 64)
    )
    for part in parts:
        assert part.result.metrics == whole.result.metrics
    few = evaluate_perturbed(
        stub(), FakePerturbed(), path="p", reading=Reading(limit=1, workers=0)
    ).result
    assert (few.data["n"], few.data["partial"]) == (2, True)


def test_frames_must_have_the_models_side() -> None:
    larger = stub(image_size=SIDE + 1)
    with pytest.raises(UserError, match=r"sequence 0 of gaussian_noise has 8×8 pixels"):
        evaluate_perturbed(larger, FakePerturbed(), path="p", reading=QUIET)


def test_flip_rates_are_a_result_of_their_own() -> None:
    base = evaluate_perturbed(stub(), FakePerturbed(), path="p", reading=QUIET).result
    table = Normalisers(fp={"gaussian_noise": 0.25, "tilt": 0.5})
    made = normalised(base, table)
    assert made.name == "robustness--imagenet-p-mfr"
    assert made.metrics["mfr"] == pytest.approx((200 + 100 / 3) / 2)
    other = normalised(base, Normalisers(fp={"gaussian_noise": 0.25, "tilt": 0.6}))
    assert other.protocol_id != made.protocol_id


# -- Tables and the heat map ----------------------------------------------------------------------


def all_results() -> dict[str, Result]:
    sets = Sets(
        {"val": FakeSet(right_and_wrong(9, 1)), "imagenet-r": FakeSet(right_and_wrong(5, 5))},
        {"imagenet-c": ("c", FakeCorrupted([*ALEXNET_ERRORS, "saturate"]))},
        ("p", FakePerturbed()),
    )
    table = Normalisers(fp={"gaussian_noise": 0.25, "tilt": 0.5})
    outcomes = evaluate(stub(), sets, reading=QUIET, alexnet=table)
    return {one.result.protocol["variant"]: one.result for one in outcomes}


def test_tables_show_every_number() -> None:
    results = all_results()
    assert list(results) == ["val", "imagenet-r", "imagenet-c", "imagenet-p", "imagenet-p-mfr"]
    assert results["imagenet-c"].metrics["top1/clean"] == 90
    labelled, corrupted, perturbed = blocks(results, "runs/x")
    assert [row[0] for row in labelled.rows] == ["val", "imagenet-r"]
    assert labelled.rows[1][3] == "50.00"
    assert len(corrupted.rows) == 16
    assert corrupted.rows[-1][0] == "saturate *"
    assert "relative mCE" in corrupted.title
    assert perturbed.rows[-1][0] == "mean"
    assert perturbed.headings[-1] == "FR"
    for block in (labelled, corrupted, perturbed):
        assert all(len(row) == len(block.headings) for row in block.rows)


def test_heat_map_shows_every_cell(tmp_path: Path) -> None:
    rows = [CorruptionRow(**vars(r)) for r in corruption_rows(all_results()["imagenet-c"].metrics)]
    assert [row.group for row in rows] == (
        ["noise"] * 3 + ["blur"] * 4 + ["weather"] * 4 + ["digital"] * 4 + ["extra"]
    )
    title = "ImageNet-C on the fly of a-run-with-a-name (student)\ntop-1 50.00 %, mCE 100.00 %"
    rows[1] = CorruptionRow("shot_noise", "noise", False, [None] * 5, None, None)
    figure = corruption_figure(rows, title=title)
    axes, bar = figure.axes
    written = [text.get_text() for text in axes.texts]
    assert written.count("–") == 6
    assert len(written) == 16 * 6 + 15
    assert [label.get_text() for label in axes.get_yticklabels()][::15] == [
        "gaussian noise",
        "saturate*",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*"12345", "mean", "CE (%)"]
    assert "%" in bar.get_ylabel()
    png, svg = save_figure(figure, tmp_path, "map")
    with Image.open(png) as image:
        assert image.width > 900
    assert "gaussian noise" in svg.read_text()


# -- Own heads ------------------------------------------------------------------------------------


def test_own_head_has_its_own_transform_and_imagenets_classes() -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    classifier = own_head("timm:test_vit", runtime=Runtime(CPU, None), random_init=True)
    assert classifier.model["key"] == "random"
    assert len(classifier.classes) == 1000
    assert classifier.classes[:2] == ("n01440764", "n01443537")
    model = timm.create_model("test_vit")
    config = resolve_data_config({}, model=model)
    assert classifier.image_size == config["input_size"][1]
    draws = np.random.default_rng(0)
    image = Image.fromarray(draws.integers(0, 255, (200, 261, 3), dtype=np.uint8))
    usual = create_transform(**{**config, "is_training": False})(image)
    mine = classifier.view(image)
    assert mine.dtype == torch.uint8
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (classifier.mean, classifier.std))
    torch.testing.assert_close((mine / 255 - mean) / std, usual)
    assert classifier(mine[None]).shape == (1, 1000)


def test_a_classifier_in_a_folder_as_the_hub_has_it(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("test_vit").eval()
    nn.init.normal_(model.head.weight)
    save_for_hf(model, tmp_path / "mine")
    name = f"timm:local-dir:{tmp_path / 'mine'}"
    classifier = own_head(name, runtime=Runtime(CPU, None))
    images = torch.randint(0, 255, (2, 3, 160, 160), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (classifier.mean, classifier.std))
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), model((images / 255 - mean) / std))
        features = read_encoder(name).encoder((images / 255 - mean) / std)
        torch.testing.assert_close(model.forward_features((images / 255 - mean) / std)[:, 0],
                                   features.cls, rtol=1e-4, atol=1e-5)  # fmt: skip
    fewer = timm.create_model("test_vit", num_classes=999)
    save_for_hf(fewer, tmp_path / "fewer")
    with pytest.raises(UserError, match="has 999 classes"):
        own_head(f"timm:local-dir:{tmp_path / 'fewer'}", runtime=Runtime(CPU, None))
    with pytest.raises(UserError, match=r"there is no .*none/config\.json"):
        own_head(f"timm:local-dir:{tmp_path / 'none'}", runtime=Runtime(CPU, None))
    for file in (tmp_path / "fewer").glob("*model.*"):  # older timm writes torch's format too
        file.write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"fewer.*(is no checkpoint that can be read|is no safetensors|cannot be read)",
    ):
        own_head(f"timm:local-dir:{tmp_path / 'fewer'}", runtime=Runtime(CPU, None))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/x", "only a classifier of timm's"),
        ("timm:nothing", r"timm knows no model 'nothing'.*list_models"),
        ("timm:vit_tiny_patch16_2", r"did you mean timm:vit_tiny_patch16_\d+\?"),
        ("timm:test_vit.nothing", "knows no weights"),
    ],
)
def test_models_without_such_a_head_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        own_head(name, runtime=Runtime(CPU, None), random_init=True)


# -- Several processes ----------------------------------------------------------------------------


def many_outcomes() -> list[tuple[dict[str, float | None], dict[str, NDArray[Any]]]]:
    sets = Sets(
        {
            "val": FakeSet(right_and_wrong(6, 5)),
            "imagenet-r": FakeSet(right_and_wrong(1, 0)),  # fewer images than processes
            "imagenet-a": FakeSet(right_and_wrong(4, 3), subset=np.array([1, 2, 6])),
        },
        {"imagenet-c": ("c", FakeCorrupted(["fog"]))},
        ("p", FakePerturbed()),
    )
    reading = Reading(4, limit=9, workers=0)
    outcomes = evaluate(stub(), sets, reading=reading)
    return [(outcome.result.metrics, outcome.arrays) for outcome in outcomes]


def in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = many_outcomes()
    if rank == 0:
        with open(f"{folder}/found", "wb") as file:
            pickle.dump(found, file)
    dist.destroy_process_group()


@pytest.mark.run
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    run_ranks(in_process, str(tmp_path))
    together = pickle.loads((tmp_path / "found").read_bytes())
    alone = many_outcomes()
    assert len(together) == len(alone) == 5
    for (metrics, arrays), (usual_metrics, usual_arrays) in zip(together, alone, strict=True):
        assert metrics == usual_metrics
        for name, array in usual_arrays.items():
            assert arrays[name].tolist() == array.tolist(), name


# -- The command ----------------------------------------------------------------------------------

MODEL = Model(name="vit_micro", patch_size=8, width=16, depth=2, num_heads=2)
SIZE = 32
RECIPE = "seed: 3\ndata: {path: shapes, image_size: 32, num_train: 20, num_val: 30}"


def run_directory(path: Path, *, classes: Sequence[str] = CLASSES) -> RunDir:
    """A run with an untrained encoder and a random probe."""
    encoder = Encoder.from_model(MODEL, image_size=SIZE).initialise(1).eval()
    run = RunDir.create(path, recipe=RECIPE, run={"status": "done"})
    metadata = encoder_metadata(MODEL, encoder, step=1)
    write_encoder(run.encoder, metadata, student=encoder, teacher=encoder.random_twin(2))
    facts = HeadFacts(
        classes=tuple(classes),
        feature_set="cls1",
        parts=("cls",),
        learning_rate=0.1,
        epoch=1,
        encoder_sha256=encoder_sha256(encoder),
        image_size=SIZE,
        resize=37,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        protocol_id="0" * 12,
    )
    weight = torch.randn(len(classes), 16, generator=torch.Generator().manual_seed(4))
    ProbeHead(facts, weight, torch.zeros(len(classes)), encoder.norm).save(
        run.head("linear-eval--ser")
    )
    return run


def folders(root: Path, names: Sequence[str], *, side: int = SIZE, images: int = 1) -> Path:
    draws = np.random.default_rng(len(str(root)))
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            levels = draws.integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(levels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ser data shapes` writes, but noise, and an ImageNet-C of two corruptions."""
    root = tmp_path_factory.mktemp("world")
    folders(root / "imagenet-r", CLASSES[2:6], images=3, side=40)
    folders(root / "sketch", CLASSES, side=50)
    folders(root / "val", CLASSES, images=2)
    folders(root / "train", CLASSES)
    for variant in ("matched-frequency", "threshold-0.7", "top-images"):
        folders(root / "imagenet-v2" / variant, [str(i) for i in range(len(CLASSES))])
    for corruption in ("fog", "snow"):
        for severity in SEVERITIES:
            folders(root / "imagenet-c" / corruption / str(severity), CLASSES)
    return root


def invoke(*arguments: str | Path) -> tuple[str, str]:
    """Standard output and standard error; errors are raised."""
    app = typer.Typer()
    app.command()(robustness)
    options = [*map(str, arguments), "--workers", "0", "--device", "cpu"]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_all_sets_below_a_directory(tmp_path: Path, world: Path) -> None:
    run = run_directory(tmp_path / "run")
    text, remarks = invoke(run.path, "--all", world, "--allow-partial")
    results = {result.protocol["variant"]: result for result in run.read_results()}
    assert set(results) == {
        *("val", "imagenet-r", "imagenet-sketch", "imagenet-c"),
        *(f"imagenet-v2-{v}" for v in ("matched-frequency", "threshold-0.7", "top-images")),
    }
    partial = {name for name, result in results.items() if result.data["partial"]}
    assert partial == {"imagenet-c"}
    assert "corruptions missing" in remarks
    for result in results.values():
        with np.load(run.predictions(result.name)) as stored:
            assert {"image_ids", "labels", "predictions"} <= set(stored.files)
    assert {file.name for file in run.figures.iterdir()} == {
        "robustness--imagenet-c.png",
        "robustness--imagenet-c.svg",
    }
    assert results["imagenet-c"].metrics["mce"] is None
    assert results["imagenet-c"].metrics["top1/clean"] == results["val"].metrics["top1"]
    assert results["imagenet-r"].data["classes"] == 4
    assert results["imagenet-r"].model["head"]["feature_set"] == "cls1"
    for word in ("imagenet-v2-top-images", "fog", "mCE needs all fifteen", "95 % interval"):
        assert word in text
    assert catalogue_headings(run) >= {"ImageNet-R top-1", "ImageNet-C top-1", "Clean val top-1"}


def catalogue_headings(run: RunDir) -> set[str]:
    return {spec.column.heading for spec in catalogue(read_runs([run.path]), None)}


def test_the_probe_is_applied_by_its_own_rule(tmp_path: Path, world: Path) -> None:
    run = run_directory(tmp_path / "run")
    invoke(run.path, "--imagenet-r", world / "imagenet-r", "--batch-size", "5")
    with np.load(run.predictions("robustness--imagenet-r")) as stored:
        found = dict(zip(stored["image_ids"].tolist(), stored["predictions"].tolist(), strict=True))
    loaded, probe = read_encoder(run.path), load_head(run.head("linear-eval--ser"))
    assert len(found) == 12
    for identifier, prediction in found.items():
        image = Image.open(world / "imagenet-r" / identifier)
        levels = np.array(resize_and_crop(image, resize=37, crop=SIZE))
        pixels = torch.from_numpy(levels).permute(2, 0, 1)[None] / 255
        logits = probe(loaded.encoder((pixels - 0.5) / 0.2))[0]
        allowed = [CLASSES.index(name) for name in CLASSES[2:6]]
        assert prediction == max(allowed, key=lambda label: logits[label].item())


def test_what_the_probe_warns_of_stands_in_every_result(tmp_path: Path, world: Path) -> None:
    run = run_directory(tmp_path / "run")
    head = load_head(run.head("linear-eval--ser"))
    assert head.facts.warnings == ()
    head.facts = replace(head.facts, warnings=("the probe may not have converged",))
    head.save(run.head("linear-eval--ser"))
    invoke(run.path, "--imagenet-r", world / "imagenet-r", "--imagenet-c-otf", "--limit", "2")
    results = run.read_results()
    assert len(results) > 2
    for result in results:
        assert result.data["warnings"] == ["the probe may not have converged"]


def test_the_head_of_a_trial_makes_every_result_partial(tmp_path: Path, world: Path) -> None:
    run = run_directory(tmp_path / "run")
    head = load_head(run.head("linear-eval--ser"))
    head.facts = replace(head.facts, partial=True)
    head.save(run.head("linear-eval--ser"))
    _, remarks = invoke(
        run.path, "--imagenet-r", world / "imagenet-r", "--sketch", world / "sketch"
    )
    results = run.read_results()
    assert len(results) == 2
    assert all(result.data["partial"] for result in results)
    assert "the head was trained on a part of the images" in remarks


def test_on_the_fly_takes_the_runs_own_images(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    text, _ = invoke(run.path, "--imagenet-c-otf", "--limit", "2")
    results = {result.protocol["variant"]: result for result in run.read_results()}
    assert set(results) == {"val", "imagenet-c-otf"}
    made = results["imagenet-c-otf"]
    assert made.protocol["version"] == 3  # as ImageMagick and OpenCV make them
    assert results["val"].protocol["version"] == 2
    assert (made.data["n"], made.data["path"], made.data["partial"]) == (150, "shapes", True)
    assert made.metrics["relative_mce"] is not None
    assert "on the fly of run (student) (partial): top-1" in text
    assert (run.figures / "robustness--imagenet-c-otf.png").is_file()


def test_own_head_of_a_timm_model(tmp_path: Path) -> None:
    val = folders(tmp_path / "imagenet" / "val", imagenet_classes(), side=8)
    command = ("timm:test_vit", "--head", "own", "--random-init", "--data", val.parent)
    out = tmp_path / "out"
    for _ in range(2):  # the second finds its own directory
        invoke(*command, "--out", out, "--limit", "3")
    (result,) = RunDir.open(out).read_results()
    assert result.name == "robustness--val"
    assert (result.data["n"], result.data["classes"]) == (3, 1000)
    assert result.model["head"] == "own"
    assert result.protocol["settings"]["head"] == "own"
    with pytest.raises(UserError, match="class0 is not in both"):
        invoke(*command[:-1], folders(tmp_path / "other" / "val", ["class0", "n01440764"]).parent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no set to evaluate on"),
        (("--data", "shapes", "--head", "own"), "only a classifier of timm's"),
        (("--data", "shapes", "--head", "own", "--teacher"), "with --head own"),
        (("--data", "shapes", "--num-heads", "2"), "--num-heads"),
        (("--data", "shapes", "--teacher"), "a head belongs to one encoder"),
        (("--data", "shapes", "--head", "nothing"), "run `ser linear-eval` first"),
        (("--data", "shapes", "--alexnet-p", "x.json"), "without ImageNet-P"),
        (("--all", "nowhere"), "it must be a directory"),
        (("--imagenet-r", "nowhere"), "nowhere does not exist"),
    ],
)
def test_wrong_options_are_one_clear_line(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    run = run_directory(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        invoke(run.path, *options)
    assert not run.results.exists()


def test_without_a_probe_it_says_how_to_get_one(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    run.head("linear-eval--ser").unlink()
    with pytest.raises(UserError, match="run `ser linear-eval` first"):
        invoke(run.path, "--data", "shapes")


def test_the_heads_of_detectors_are_no_probes(tmp_path: Path, world: Path) -> None:
    run = run_directory(tmp_path / "run")
    other = run.head("linear-eval--ser-no-augment")
    run.head("linear-eval--ser").rename(other)
    detector = run.head("coco-detect--torchvision")
    safetensors.torch.save_file({"x": torch.zeros(1)}, detector, {"format": "ser-detector"})
    invoke(run.path, "--sketch", world / "sketch")
    (result,) = run.read_results()
    assert result.model["head"]["file"] == str(other)
    with pytest.raises(UserError, match=r"no probe head of ser .* heads/linear-eval--\*"):
        invoke(run.path, "--sketch", world / "sketch", "--head", detector)


def test_the_sets_must_be_the_heads(tmp_path: Path, world: Path) -> None:
    short = run_directory(tmp_path / "short", classes=imagenet_classes()[:999])
    with pytest.raises(UserError, match="999 classes, 999 of them ImageNet's"):
        invoke(short.path, "--sketch", world / "sketch")
    run = run_directory(tmp_path / "run")
    with pytest.raises(UserError, match="13 corruptions missing"):
        invoke(run.path, "--imagenet-c", world / "imagenet-c")
    large = tmp_path / "imagenet-c"
    for severity in SEVERITIES:
        folders(large / "fog" / str(severity), CLASSES, side=48)
    with pytest.raises(UserError, match="48×48 pixels, the model takes 32×32"):
        invoke(run.path, "--imagenet-c", large, "--sketch", world / "sketch", "--allow-partial")
    assert not run.results.exists()  # told before any set is evaluated
    top = world / "imagenet-v2" / "top-images"
    with pytest.raises(UserError, match="two directories hold imagenet-v2-top-images"):
        invoke(run.path, "--v2", top, "--v2", world / "imagenet-v2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds none of the sets"):
        invoke(run.path, "--all", tmp_path / "empty")


def test_videos_of_imagenet_p(tmp_path: Path) -> None:
    pytest.importorskip("av")
    draws = np.random.default_rng(0)
    for perturbation in ("gaussian_noise", "tilt"):
        for name in CLASSES:
            file = tmp_path / "imagenet-p" / perturbation / name / "0.mp4"
            file.parent.mkdir(parents=True)
            write_video(file, draws.integers(0, 255, (4, SIZE, SIZE, 3), dtype=np.uint8))
    table = tmp_path / "alexnet.json"
    table.write_text('{"fp": {"gaussian_noise": 0.2, "tilt": 0.1}}')
    run = run_directory(tmp_path / "run")
    text, _ = invoke(
        *(run.path, "--imagenet-p", tmp_path / "imagenet-p"),
        *("--allow-partial", "--alexnet-p", table),
    )
    ratios, result = run.read_results()  # by the files' names
    assert (result.data["n"], result.data["frames"], result.data["partial"]) == (20, 80, True)
    fp = [result.metrics[f"fp/{name}"] for name in ("gaussian_noise", "tilt")]
    assert ratios.metrics["mfr"] == pytest.approx((fp[0] / 0.2 + fp[1] / 0.1) * 50)  # type: ignore[operator]
    assert "FR" in text
    with np.load(run.predictions(result.name)) as stored:
        assert stored["image_ids"][0] == f"gaussian_noise/{CLASSES[0]}/0.mp4"
        assert stored["predictions"].shape == (20, 4)
