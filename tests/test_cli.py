"""The command line: its surface, and one clear line with the right exit status for bad input."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sercli import cli
from sercli.runs.run_dir import RunDir
from tests.support.command_line import run_in_process, ser
from tests.support.paths import RECIPES, ROOT
from tests.support.training import SER, TINY

TINY_OPTIONS = [item for s in TINY for item in ("--set", s)]
OWN_DATA = [s for s in SER if not s.startswith("data.num")]
OWN_DATA_OPTIONS = [item for s in OWN_DATA for item in ("--set", s)]


def folder(path: Path, classes: int = 2, images: int = 4, size: int = 20) -> Path:
    draws = np.random.default_rng(0)
    for label in range(classes):
        for number in range(images):
            file = path / f"class{label}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(file)
    return path


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys; sys.argv=['ser','pretrain','--help']\n"
        "from sercli import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop\n"
        "heavy = {'torch','pandas','numpy','matplotlib','PIL','timm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - start < 5  # a few hundred milliseconds; this machine may be busy


def test_the_surface_is_what_the_design_says():
    listed = ser("--help").stdout
    for command in ("pretrain", "knn", "equiv-score", "compare", "data", "bench"):
        assert command in listed
    pretrain = ser("pretrain", "--help", COLUMNS="200").stdout
    for option in (
        "--method", "--addon", "--layer", "--views", "--recipe", "--data", "--out", "--resume",
        "--seed", "--device", "--nproc", "--set",
    ):  # fmt: skip
        assert option in pretrain
    assert ser("--version").stdout.startswith("ser ")


BAD = {
    "layer beyond the depth": (["--layer", "13"], "--layer 13; it must be in 1…12"),
    "layer without an add-on": (["--layer", "3", "--addon", "none"], "--layer 3 with --addon none"),
    "missing directory": (["--data", "missing"], "missing does not exist"),
    "unknown method": (["--method", "mocco"], "--method mocco; known: moco"),
    "unknown recipe": (["--recipe", "shapes/moco-sre"], "did you mean shapes/moco-ser?"),
    "unknown key": (["--set", "train.learning_rate=1"], "did you mean train.lr?"),
    "batch too large": (["--set", "train.batch_size=5000"], "5000 with 4,096 images"),
    "too few in b2": (["--set", "addon.fraction=0.01"], "n₂ = 1"),
    "no multiple of the patch": (["--set", "data.image_size=60"], "use 56 or 64"),
    "no such device": (["--device", "tpu"], "it must be cpu or cuda"),
    "no such option": (["--bogus"], "--bogus"),
    "wrong type": (["--set", "train.lr=fast"], "train.lr = 'fast' (from --set)"),
    "steps of no profile": (["--profile-steps", "3"], "add --profile, or leave it out"),
    "resume nothing": (["--resume", "missing"], "missing does not exist"),
    "resume with a recipe": (["--resume", "x", "--seed", "1"], "leave out all but"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_usage_is_one_clear_line_and_2(case, monkeypatch, capsys, tmp_path):
    arguments, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    status, errors = run_in_process(["pretrain", *arguments], monkeypatch, capsys)
    assert status == 2
    assert errors.startswith("ser: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bad_data_is_one_clear_line_and_2(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    folder(tmp_path / "hollow")
    (tmp_path / "hollow" / "void").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "flat" / "a.png")
    (tmp_path / "file.txt").write_text("no images")
    expected = {
        "hollow": "void",
        "empty": "empty",
        "flat": "batch_size 12 with 1 image",  # a set without labels
        "file.txt": "file.txt",
    }
    for name, message in expected.items():
        status, errors = run_in_process(
            ["pretrain", "--recipe", "shapes/moco-ser", "--data", name, *OWN_DATA_OPTIONS],
            monkeypatch, capsys)  # fmt: skip
        assert status == 2
        assert errors.count("\n") == 1
        assert message in errors
    assert not (tmp_path / "runs").exists()


def test_bad_output_is_one_clear_line_and_2(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    for out, message in {"taken": "taken exists", "file/run": "file/run"}.items():
        status, errors = run_in_process(
            ["pretrain", "--out", out, *TINY_OPTIONS, "--set", "addon.projector_width=8"],
            monkeypatch, capsys)  # fmt: skip
        assert status == 2
        assert errors.count("\n") == 1
        assert message in errors
    if os.geteuid():  # root may write anywhere
        (tmp_path / "sealed").mkdir(mode=0o500)
        status, errors = run_in_process(
            ["pretrain", "--out", "sealed/run", *TINY_OPTIONS], monkeypatch, capsys
        )
        assert (status, "sealed/run" in errors) == (2, True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "sealed") == ["file", "taken"]


@pytest.mark.parametrize("command", ["equiv-score", "knn"])
def test_a_wrong_checkpoint_is_one_clear_line_and_2(command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_text("not a checkpoint")
    arguments = [command, "x.pth", "--data", "shapes"]
    status, errors = run_in_process(arguments, monkeypatch, capsys)
    assert status == 2
    assert errors.count("\n") == 1
    assert "x.pth is no checkpoint" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize("of", ["python", "torch", "gpu"])
def test_a_lack_of_memory_is_one_clear_line_and_3(of, monkeypatch, capsys):
    def take(*_arguments, **_options):
        if of == "python":
            bytearray(1 << 60)
        elif of == "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(cli, "app", take)
    status, errors = run_in_process(["compare", "x"], monkeypatch, capsys)
    assert status == 3
    assert errors.startswith("ser: ser compare: memory is short; use a smaller batch")
    assert errors.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ser", "pretrain", "--layer", "0", "--debug"])
    with pytest.raises(Exception, match=r"addon\.layer = 0"):
        cli.main()


@pytest.mark.run
def test_pretrain_score_compare_as_typed_twice(tmp_path):
    """`ser pretrain --method moco --layer 3` (small), twice, then its scores in one table."""
    line = ["pretrain", "--method", "moco", "--layer", "3"]
    settings = [item for s in (*SER, "train.epochs=1") for item in ("--set", s)]
    for expected in ("shapes-moco-ser", "shapes-moco-ser-2"):
        result = ser(*line, *settings, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"done: runs/{expected}" in result.stdout
    run = tmp_path / "runs" / "shapes-moco-ser"
    for command in ("equiv-score", "knn"):
        result = ser(command, str(run), "--limit", "16", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    table = ser("compare", "runs/shapes-moco-ser", "--format", "json", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    json.loads(table.stdout)
    assert (run / "results" / "equiv-score.json").is_file()
    assert (run / "results" / "knn.json").is_file()
    assert {f.suffix for f in (run / "figures").iterdir()} == {".png", ".svg"}


def test_a_users_own_images_of_every_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    data, draws = tmp_path / "own", np.random.default_rng(1)
    sizes = [(1, 300), (300, 20), (16, 16), (64, 48), (500, 375)]
    modes = ["L", "P", "CMYK", "RGBA", "I;16", "RGB", "1", "LA"]
    for number in range(24):
        mode, (width, height) = modes[number % len(modes)], sizes[number % len(sizes)]
        pixels = Image.fromarray(draws.integers(0, 255, (height, width, 3), dtype=np.uint8))
        if mode == "I;16":
            image = Image.fromarray(draws.integers(0, 65535, (height, width), dtype=np.uint16))
        else:
            image = pixels.convert(mode)
        suffix = ".jpg" if mode in ("CMYK", "L", "RGB") else ".PNG"
        file = data / ("a" if number % 3 else "b") / f"{number}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    settings = [*OWN_DATA, "train.epochs=2"]
    words = ["pretrain", "--recipe", "shapes/moco-ser", "--data", data, "--out", "run"]
    words += [item for s in settings for item in ("--set", s)]
    status, errors = run_in_process(words, monkeypatch, capsys)
    assert status == 0, errors
    rows = list(RunDir(tmp_path / "run").read_metrics())
    assert len(rows) == 4
    assert "warning" not in errors
    assert 0 <= rows[-1]["knn_top1"] <= 100


@pytest.mark.run
def test_a_wheel_has_the_recipes_and_works_outside_the_checkout(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        check=True, cwd=ROOT, capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "sercli" / "py.typed").is_file()
    names = sorted(p.relative_to(RECIPES) for p in RECIPES.rglob("*.yaml"))
    packed = tmp_path / "site" / "sercli" / "recipes"
    assert names == sorted(p.relative_to(packed) for p in packed.rglob("*.yaml"))
    code = (
        "import sercli, sys; from pathlib import Path\n"
        f"assert Path(sercli.__file__).is_relative_to({str(tmp_path)!r}), sercli.__file__\n"
        "from sercli import families\n"
        "print(families.resolve('imagenet/moco-ser', (), {}).recipe.train.batch_size)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})  # fmt: skip
    assert result.stdout.strip() == "2048", result.stderr


@pytest.mark.slow
def test_imagenet_recipe_takes_two_real_steps(tmp_path):
    data, draws = tmp_path / "imagenet", np.random.default_rng(0)
    for label in range(1000):
        file = data / "train" / f"n{label:08d}" / "0.JPEG"
        file.parent.mkdir(parents=True)
        Image.fromarray(draws.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(file)
    result = ser(
        "pretrain", "--data", str(data), "--out", "run",
        *("--set", "train.batch_size=8", "--set", "addon.fraction=0.25"),
        *("--set", "train.max_steps=2", "--set", "train.log_steps=1"),
        cwd=tmp_path, SER_CACHE=str(tmp_path / "cache"))  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = list(RunDir(tmp_path / "run").read_metrics())
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite([row["loss_inv"], row["loss_equiv"]]).all() for row in rows)
