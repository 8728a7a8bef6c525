"""`ser robustness` as typed, on trees of the published shape, with a stub whose answers are known.

The upper half of a picture has the colour of the class that the stub calls best, the lower half
that of the second best. Expected numbers are counted here from what was painted.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn

from sercli import cli
from sercli.data.robustness import published as robustness_published
from sercli.data.robustness.videos import write_video
from tests.support.alexnet import ALEXNET_ERRORS

WNIDS = (resources.files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
CORRUPTIONS = tuple(ALEXNET_ERRORS)
PERTURBATIONS = (
    *("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow"),
    *("brightness", "translate", "rotate", "tilt", "scale"),
)


def listed(name: str) -> list[int]:
    text = (resources.files("timm") / "data" / "_info" / f"imagenet_{name}_indices.txt").read_text()
    return [int(line) for line in text.split()]


R, A = listed("r"), listed("a")

# -- The stub -------------------------------------------------------------------------------------

STEP = 25


def colour(label: int) -> tuple[int, int, int]:
    return tuple(STEP * digit + STEP // 2 for digit in (label // 100, label // 10 % 10, label % 10))  # type: ignore[return-value]


def painted(best: int, second: int, side: int = 32) -> Image.Image:
    picture = Image.new("RGB", (side, side), colour(second))
    picture.paste(colour(best), (0, 0, side, side // 2))
    return picture


class ColourStub(nn.Module):
    """Logits 2 for the class painted above, 1 for that painted below, 0 for all others."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {
            "input_size": (3, 224, 224),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
        }

    def forward(self, images: Tensor) -> Tensor:
        logits = images.new_zeros(len(images), self.num_classes)
        rows = torch.arange(len(images))
        for value, half in ((1.0, slice(130, 210)), (2.0, slice(14, 94))):
            digits = (images[:, :, half].mean((2, 3)) * 255 / STEP - 0.5).round().long()
            logits[rows, digits @ torch.tensor([100, 10, 1])] = value
        return logits


def colour_stub(pretrained: bool = False, **_options: Any) -> ColourStub:  # noqa: ARG001
    return ColourStub(1000)


def colour_stub_999(pretrained: bool = False, **_options: Any) -> ColourStub:  # noqa: ARG001
    return ColourStub(999)


register_model(colour_stub)
register_model(colour_stub_999)

# -- Trees ----------------------------------------------------------------------------------------


def right(label: int, number: int) -> bool:
    """What is painted rightly: about 70 %, another share in each class."""
    return (7 * label + 3 * number) % 10 < 7


def other(label: int) -> int:
    return (label + 501) % 1000


def tree(
    root: Path,
    names: Sequence[str],
    labels: Sequence[int],
    paint: Callable[[int, int], Image.Image],
    *,
    each: int = 1,
    stem: str = "picture_{}.JPEG",
) -> Path:
    """Class folders made in shuffled order; `paint(label, number)` makes each picture."""
    order = list(zip(names, labels, strict=True))
    random.Random(str(root)).shuffle(order)
    for name, label in order:
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(each):
            picture = paint(label, number)
            picture.save(folder / stem.format(number), quality=100, subsampling=0)
    return root


def plain(label: int, number: int) -> Image.Image:
    return painted(label if right(label, number) else other(label), other(label))


def behind_another(inside: Sequence[int]) -> Callable[[int, int], Image.Image]:
    """Best is a class that the set does not have; the right one, or a wrong one, comes second."""
    outside = sorted(set(range(1000)) - {*inside})

    def paint(label: int, number: int) -> Image.Image:
        first = outside[(label + number) % len(outside)]
        wrong = inside[(inside.index(label) + 1) % len(inside)]
        return painted(first, label if right(label, number) else wrong)

    return paint


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All sets in their real shape, but one or two images a class."""
    root = tmp_path_factory.mktemp("published")
    tree(root / "imagenet-r", [WNIDS[i] for i in R], R, behind_another(R), each=2)
    tree(root / "imagenet-a", [WNIDS[i] for i in A], A, behind_another(A))
    tree(root / "sketch", WNIDS, range(1000), plain)
    names = [str(i) for i in range(1000)]
    for variant in ("matched-frequency", "threshold0.7", "top-images"):
        place = root / "imagenetv2" / f"imagenetv2-{variant}-format-val"
        always = variant == "top-images"
        tree(
            place,
            names,
            range(1000),
            (lambda label, _number: painted(label, other(label))) if always else plain,
            stem="{}.jpeg",
        )
    tree(root / "imagenet/val", WNIDS, range(1000), plain, stem="ILSVRC2012_val_0000000{}.JPEG")
    for severity in range(1, 6):

        def harder(label: int, _number: int, s: int = severity) -> Image.Image:
            found = label if label % 5 >= s else other(label)
            return painted(found, other(label), 224)

        tree(root / "cells" / str(severity), WNIDS, range(1000), harder, stem="val_{}.JPEG")
    cells = [(c, s) for c in CORRUPTIONS for s in range(1, 6)]
    random.Random(2).shuffle(cells)
    for corruption, severity in cells:
        (root / "imagenet-c" / corruption).mkdir(parents=True, exist_ok=True)
        os.symlink(root / "cells" / str(severity), root / "imagenet-c" / corruption / str(severity))
    with pytest.MonkeyPatch.context() as patch:
        for kind, total in (("imagenet-r", 400), ("imagenet-a", 200), ("imagenet-sketch", 1000)):
            patch.setitem(robustness_published._NUM_IMAGES, kind, total)
        for kind in ("imagenet-sketch", "imagenet-v2", "imagenet-c"):
            patch.setitem(robustness_published._PER_CLASS, kind, (1,))
        patch.setenv("SER_CACHE", str(root / "cache"))
        yield root


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """`ser robustness timm:colour_stub --head own …`: exit status, last line of error, results."""

    def typed(
        *arguments: str | Path, model: str = "colour_stub"
    ) -> tuple[int, str, dict[str, Any]]:
        out = tmp_path / "out"
        line = ["ser", "robustness", f"timm:{model}", "--head", "own", "--random-init"]
        line += ["--out", str(out), "--workers", "0", "--device", "cpu", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ser: ")]
        results = {
            file.stem.removeprefix("robustness--"): json.loads(file.read_text())
            for file in sorted((out / "results").glob("*.json"))
        }
        assert "Traceback" not in "".join(errors)
        return int(stop.value.code or 0), "\n".join(errors), results

    return typed


def share(labels: Sequence[int], each: int = 1) -> float:
    told = [right(label, number) for label in labels for number in range(each)]
    return 100 * sum(told) / len(told)


# -- Numbers --------------------------------------------------------------------------------------


@pytest.mark.run
def test_every_set_gives_the_accuracy_that_was_painted(published: Path, run: Any) -> None:
    status, error, results = run(
        *("--imagenet-r", published / "imagenet-r", "--imagenet-a", published / "imagenet-a"),
        *("--sketch", published / "sketch", "--v2", published / "imagenetv2"),
        *("--data", published / "imagenet"),
    )
    assert (status, error) == (0, "")
    everything = share(range(1000))
    assert {name: result["metrics"]["top1"] for name, result in results.items()} == {
        "imagenet-r": pytest.approx(share(R, 2)),  # without its mask 0
        "imagenet-a": pytest.approx(share(A)),
        "imagenet-sketch": pytest.approx(everything),
        "imagenet-v2-matched-frequency": pytest.approx(everything),
        "imagenet-v2-threshold-0.7": pytest.approx(everything),
        "imagenet-v2-top-images": 100,  # with folders in the order of strings 1.2
        "val": pytest.approx(everything),
    }
    as_strings = sorted(map(str, range(1000)))
    assert sum(as_strings[i] == str(i) for i in range(1000)) == 12
    assert not any(result["data"]["partial"] for result in results.values())
    assert [results[name]["data"]["classes"] for name in ("imagenet-r", "imagenet-a")] == [200, 200]


@pytest.mark.parametrize(
    "limit",
    [pytest.param(10, marks=pytest.mark.run), pytest.param(1000, marks=pytest.mark.slow)],
)
def test_all_seventy_five_cells(published: Path, run: Any, tmp_path: Path, limit: int) -> None:
    status, error, results = run("--imagenet-c", published / "imagenet-c", "--limit", str(limit))
    assert (status, error) == (0, "")
    result = results["imagenet-c"]
    assert (result["data"]["n"], result["data"]["cells"]) == (75 * limit, 75)
    assert result["data"]["partial"] == (limit < 1000)
    with np.load(tmp_path / "out/results/robustness--imagenet-c.npz") as stored:
        labels = [WNIDS.index(name.split("/")[0]) for name in stored["image_ids"].tolist()]
        assert stored["labels"].tolist() == labels
    assert len(set(labels)) == limit
    errors = [float(np.mean([label % 5 < s for label in labels])) for s in range(1, 6)]
    for corruption in CORRUPTIONS:
        for severity in range(1, 6):
            found = result["metrics"][f"top1/{corruption}/{severity}"]
            assert found == pytest.approx(100 * (1 - errors[severity - 1]))
    mce = np.mean([100 * sum(errors) / (5 * alexnet) for alexnet in ALEXNET_ERRORS.values()])
    assert result["metrics"]["mce"] == pytest.approx(mce)
    assert {file.suffix for file in (tmp_path / "out/figures").iterdir()} == {".png", ".svg"}


def test_videos_whose_flips_were_painted(tmp_path: Path, run: Any) -> None:
    pytest.importorskip("av")
    # In words: right, right, wrong, right. Neighbours: 0 + 1 + 1 of 3; with the first: 0 + 1 + 0.
    label, wrong = 3, 444
    shown = [painted(label, wrong, 224), painted(label, wrong, 224)]
    shown += [painted(wrong, label, 224), painted(label, wrong, 224)]
    video = tmp_path / "video.mp4"
    write_video(video, np.stack([np.array(one) for one in shown]))
    for perturbation in random.Random(0).sample(PERTURBATIONS, 10):
        place = tmp_path / "imagenet-p" / perturbation / WNIDS[label]
        place.mkdir(parents=True)
        os.link(video, place / "ILSVRC2012_val_00000001.mp4")
    status, error, results = run("--imagenet-p", tmp_path / "imagenet-p")
    assert status == 2
    assert "999 classes missing" in error
    status, error, results = run("--imagenet-p", tmp_path / "imagenet-p", "--allow-partial")
    assert (status, error) == (0, "")
    metrics = results["imagenet-p"]["metrics"]
    for perturbation in PERTURBATIONS:
        noise = perturbation in ("gaussian_noise", "shot_noise")
        flips = (1 if noise else 2) / 3
        assert metrics[f"fp/{perturbation}"] == pytest.approx(flips), perturbation
        # Best and second best change places, which is a distance of 2.
        assert metrics[f"ut5d/{perturbation}"] == pytest.approx(2 * flips), perturbation
        assert metrics[f"top1/{perturbation}"] == pytest.approx(75)
    # A video cut short is one clear error.
    cut = tmp_path / "imagenet-p/tilt" / WNIDS[label] / "ILSVRC2012_val_00000001.mp4"
    content = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(content[: len(content) // 2])
    status, error, _ = run("--imagenet-p", tmp_path / "imagenet-p", "--allow-partial")
    assert status == 2
    assert "cannot read the video" in error
    assert str(cut) in error


# -- What is caught -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "place", "words"),
    [
        ("--imagenet-r", "imagenet-a", ["imagenet-a: 114 folders", "those of ImageNet-A"]),
        ("--imagenet-a", "imagenet-r", ["imagenet-r: 114 folders", "those of ImageNet-R"]),
        ("--imagenet-r", "imagenet", ["(val)", "exactly 200 classes"]),
        ("--imagenet-r", "imagenet/val", ["800 folders", "all 1000"]),
        ("--sketch", "imagenet/val", ["ImageNet's own val"]),
        ("--sketch", "imagenet-r", ["800 classes missing"]),
        ("--v2", "imagenet/val", ["none of ImageNet-V2's sets"]),
        ("--imagenet-c", "imagenet-c/fog", ["<corruption>/<1…5>/<class>"]),
        ("--imagenet-c", "imagenet/val", ["<corruption>/<1…5>/<class>"]),
        ("--imagenet-p", "imagenet-c", ["5 folders that are no classes of it"]),
        ("--data", "sketch/nowhere", ["does not exist"]),
    ],
)
def test_another_set_is_one_clear_line(
    published: Path, run: Any, option: str, place: str, words: list[str]
) -> None:
    status, error, results = run(option, published / place)
    assert status == 2
    assert not results
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error


def damaged(published: Path, copy: Path, name: str) -> Path:
    shutil.copytree(published / name, copy / name, symlinks=True)
    return copy / name


def test_missing_and_extra_classes_and_cut_files(published: Path, run: Any, tmp_path: Path) -> None:
    sketch = damaged(published, tmp_path, "sketch")
    (sketch / "n99999999").mkdir()
    status, error, _ = run("--sketch", sketch)
    assert status == 2
    assert "1 folder that is no class of it (n99999999)" in error
    (sketch / "n99999999").rmdir()
    file = sketch / WNIDS[700] / "picture_0.JPEG"
    file.write_bytes(file.read_bytes()[:300])
    status, error, results = run("--sketch", sketch)
    assert status == 2
    assert str(file) in error
    assert not results
    shutil.rmtree(sketch / WNIDS[700])
    status, error, _ = run("--sketch", sketch)
    assert status == 2
    assert f"1 class missing ({WNIDS[700]})" in error
    status, error, results = run("--sketch", sketch, "--allow-partial")
    assert status == 0
    assert results["imagenet-sketch"]["data"]["partial"]
    expected = share([label for label in range(1000) if label != 700])
    assert results["imagenet-sketch"]["metrics"]["top1"] == pytest.approx(expected)


def test_missing_corruptions_and_other_sides(published: Path, run: Any, tmp_path: Path) -> None:
    grid = damaged(published, tmp_path, "imagenet-c")
    (grid / "snow/2").unlink()
    painted(5, 6, 256).save(tmp_path / "large.jpg")
    shutil.copytree(published / "cells/2", grid / "snow/2")
    shutil.copy(tmp_path / "large.jpg", grid / "snow/2" / WNIDS[0] / "val_0.JPEG")
    status, error, results = run("--imagenet-c", grid)
    assert status == 2
    assert "256 × 256 pixels instead of 224 × 224" in error
    assert not results
    shutil.rmtree(grid / "snow")
    status, error, _ = run("--imagenet-c", grid)
    assert status == 2
    assert "1 corruption missing (snow)" in error


def test_a_head_of_999_classes(published: Path, run: Any) -> None:
    status, error, results = run("--sketch", published / "sketch", model="colour_stub_999")
    assert status == 2
    assert "999 classes" in error
    assert "1000" in error
    assert not results


def test_folders_renamed_in_the_order_of_strings_are_no_classes(
    published: Path, run: Any, tmp_path: Path
) -> None:
    """Whoever `fixes` V2 by zeros, or by wnids, has another set: neither is taken."""
    v2 = tmp_path / "top-images"
    shutil.copytree(published / "imagenetv2/imagenetv2-top-images-format-val", v2)
    for number in range(1000):
        (v2 / str(number)).rename(v2 / f"_{number:04}")
    for number in range(1000):
        (v2 / f"_{number:04}").rename(v2 / f"{number:04}")
    status, error, _ = run("--v2", v2)
    assert status == 2
    assert "folders that are no classes of it" in error
    for number, wnid in zip(sorted(range(1000), key=str), WNIDS, strict=True):
        (v2 / f"{number:04}").rename(v2 / wnid)
    status, error, results = run("--v2", v2)
    assert status == 2
    assert "none of ImageNet-V2's sets" in error
    assert not results
