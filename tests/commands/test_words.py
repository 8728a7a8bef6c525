"""What people read of commands: help that flows, errors in one line, a live line that fits."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from sercli.cli import app
from sercli.engine.progress import LiveLine, row_texts
from sercli.screen import Screen
from tests.support.command_line import run_in_process
from tests.support.paths import GOLDEN

LISTED = (GOLDEN / "options.txt").read_text(encoding="utf-8").splitlines()
COMMANDS = [line for line in LISTED if line.startswith("ser")]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_paragraphs_of_help_flow(command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    text = CliRunner().invoke(app, [*command.split()[1:], "--help"]).stdout
    about = [line.strip() for line in text.split("╭")[0].split("Usage:")[1].splitlines()[1:]]
    code = False
    for line, below in itertools.pairwise(about):
        code = (code or line.startswith("import torch")) and not line.startswith("torch.save")
        if not line or not below or code or below.startswith("import torch"):
            continue
        first = below.split()[0]
        assert cell_len(f" {line} {first}") > width - 2, f"{line!r} has room for {first!r}"
    assert max(map(cell_len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["knn"], "ser knn"),
        (["knn", "--bogus"], "ser knn"),
        (["data", "check"], "ser data check"),
        (["recipe", "show"], "ser recipe show"),
        (["compare"], "ser compare"),
        (["data", "chek"], "ser data"),
        (["--recipe", "[/]"], "ser"),
    ],
)
def test_wrong_usage_names_the_commands_own_help(
    words: list[str], command: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    status, errors = run_in_process(words, monkeypatch, capsys)
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.endswith(f" See `{command} --help`.\n")
    assert re.search(r"[.?!] See ", errors)


# -- Paths -----------------------------------------------------------------------------------------

LONG, DEEP, NUL = "a" * 300, "/".join(["a" * 200] * 25), "a\0b"
PATHS = [
    "compare X", "compare runs --baseline X", "knn X", "knn timm:x --random-init --out X",
    "knn timm:x --random-init --data X", "linear-eval X", "equiv-score X", "robustness X --all X",
    "robustness timm:x --random-init --all X", "coco-detect timm:x --random-init --coco X",
    "features X", "features timm:x --random-init --data shapes --out X",
    "export X o.safetensors", "export timm:x X", "pretrain --out X", "pretrain --resume X",
    "pretrain --data X", "pretrain --recipe X", "pretrain --plugin X", "data check X",
    "data shapes X", "recipe show X", "recipe diff X base", "recipe check X", "recipe schema "
    "--plugin X", "recipe check shapes/moco-ser --data X",
]  # fmt: skip


@pytest.mark.parametrize(
    "path", [LONG, DEEP, NUL, "", "no\x1b[31m[/b]"], ids=["long", "deep", "nul", "empty", "escape"]
)
@pytest.mark.parametrize("line", PATHS)
def test_a_path_that_cannot_be_is_one_line_and_2(
    line: str, path: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if path.startswith("no") and ("--out" in line or "shapes X" in line or "timm:x X" in line):
        pytest.skip("a place to write may be called so")
    monkeypatch.chdir(tmp_path)
    words = [path if word == "X" else word for word in line.split()]
    status, errors = run_in_process(words, monkeypatch, capsys)
    assert (status, errors.count("\n")) == (2, 1), errors
    assert errors.startswith("ser: ")
    assert "\x1b" not in errors
    assert not list(tmp_path.iterdir())


def test_an_option_without_its_value_is_not_taken_for_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["knn", "timm:x", "--data", ""], ["knn", "timm:x", "--data="]):
        status, errors = run_in_process(words, monkeypatch, capsys)
        assert (status, "--data" in errors, "is empty" in errors) == (2, True, True)


# -- Encodings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--help"], ["knn", "--help"], ["recipe", "show", "shapes/moco-ser"], ["recipe", "list"]],
)
def test_output_in_ascii_is_spelled(words: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "sercli", *words],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.isascii()


# -- The live line ---------------------------------------------------------------------------------

ROW = {
    "step": 12345, "epoch": 3.4, "loss": 7.1, "loss_inv": 1.2, "loss_equiv": 5.9,
    "knn_top1": 45.1, "images_per_s": 1234.0, "data_wait": 0.04,
    "data_read": 0.1, "data_decode": 0.6, "data_crop": 0.1, "data_idle": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_live_line_keeps_steps_and_time_left(width: int) -> None:
    out = io.StringIO()
    console = Screen(file=out, width=width)
    line = LiveLine(console=console)
    task = line.add_task("train", total=500_000, epoch="3.4", texts=row_texts(ROW))
    line.update(task, completed=12345)
    console.print(line.make_tasks_table(line.tasks))
    shown = out.getvalue()
    assert shown.count("\n") == 1
    assert cell_len(shown.rstrip("\n")) <= width
    assert "12345/500000" in shown
    assert "-:--:--" in shown  # as rich says it before it knows
    assert ("loss" in shown) == (width >= 60)
    assert ("data 4%" in shown) == (width >= 120)
