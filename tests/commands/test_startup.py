"""What only reads, lists or refuses is answered without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.argv = ["ser", *sys.argv[1:]]
from sercli import cli
try:
    cli.main()
except SystemExit as stop:
    status = stop.code
heavy = {"torch", "timm", "pandas", "matplotlib"} & set(sys.modules)
print(status or 0, sorted(heavy), file=sys.stderr)
"""


def answered(place: Path, *arguments: str) -> tuple[str, str]:
    """Standard error but its last line; status and the heavy modules imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, cwd=place, check=True
    )
    *lines, last = done.stderr.decode().splitlines()
    return "\n".join(lines), last


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("pretrain", "--help"),
        ("recipe", "list"),
        ("recipe", "show", "shapes/moco-ser"),
        ("recipe", "show", "imagenet/dino-ser-crops", "--format", "yaml"),
        ("recipe", "diff", "shapes/moco-ser", "imagenet/moco-essl"),
    ],
    ids=" ".join,
)
def test_what_only_reads(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert answered(tmp_path, *arguments) == ("", "0 []")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pretrain", "--out", "."), "--out . exists"),
        (("pretrain", "--set", "train.lrr=1"), "did you mean train.lr?"),
        (("pretrain", "--set", "train.lr=-1"), "train.lr = -1 (from --set)"),
        (("pretrain", "--addon", "sre"), "--addon sre; known: none, augself"),
        (("pretrain", "--method", "mocco"), "--method mocco; known: moco"),
        (("pretrain", "--recipe", "shapes/moco-sre"), "did you mean shapes/moco-ser?"),
        (("pretrain", "--addon", "none", "--layer", "3"), "without an add-on no layer is tapped"),
        (("recipe", "show", "shapes/moco-sre"), "did you mean shapes/moco-ser?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_refused(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    errors, state = answered(tmp_path, *arguments)
    assert words in errors
    assert "\n" not in errors
    assert state == "2 []"
