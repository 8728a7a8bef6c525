"""What only reads, lists or refuses is answered without torch: at once, not after seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs each line as `ser` would and prints exit status, what it said, and what it imported.
SCRIPT = """
import contextlib, io, json, sys
from sercli import cli
seen = []
for line in json.load(sys.stdin):
    sys.argv, said, before = ["ser", *line], io.StringIO(), set(sys.modules)
    try:
        screen = io.TextIOWrapper(io.BytesIO(), "utf-8")
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(screen):
            cli.main()
    except SystemExit as stop:
        heavy = {"torch", "timm", "matplotlib", "pandas"} & set(sys.modules) - before
        seen.append((stop.code, said.getvalue(), sorted(heavy)))
print(json.dumps(seen))
"""

MODEL_MISSING = "no model at nowhere.pth"
REFUSED = {
    # A model that is not there, or that is none.
    "knn nowhere.pth --data shapes": MODEL_MISSING,
    "linear-eval nowhere.pth --data shapes": MODEL_MISSING,
    "equiv-score nowhere.pth --data shapes": MODEL_MISSING,
    "robustness nowhere.pth --data shapes": MODEL_MISSING,
    "coco-detect nowhere.pth --coco shapes": MODEL_MISSING,
    "export nowhere.pth out.safetensors": MODEL_MISSING,
    "knn hollow --data shapes": "hollow has no run.json",
    # Images that are not there, or that nobody named.
    "knn weights.pth --data nowhere": "nowhere does not exist",
    "linear-eval weights.pth --data nowhere": "nowhere does not exist",
    "equiv-score weights.pth --data nowhere": "nowhere does not exist",
    "robustness weights.pth --data nowhere": "nowhere does not exist",
    "coco-detect weights.pth --coco nowhere": "nowhere does not exist",
    "coco-detect weights.pth --coco hollow": "hollow has no annotations/instances_train*.json",
    "knn weights.pth": "weights.pth has no recipe that names its images",
    "coco-detect weights.pth": "was not trained on the embedded world",
    "pretrain --data nowhere": "nowhere does not exist",
    "robustness weights.pth": "no set to evaluate on",
    "robustness weights.pth --all nowhere": "--all nowhere; it must be a directory",
    # Choices, numbers and combinations of flags.
    "knn weights.pth --data shapes --device tpu": "--device tpu; it must be cpu or cuda",
    "knn weights.pth --data shapes --batch-size 0": "--batch-size",
    "knn weights.pth --data shapes --positions linear": "bicubic-aligned",
    "knn weights.pth --data shapes --random-init": "it goes with timm:NAME only",
    "knn timm:vit --data shapes --teacher": "timm models have no teacher",
    "knn timm:vit --data shapes --num-heads 3": "--num-heads with timm:vit",
    "linear-eval weights.pth --data shapes --preset sre": "moco-v3",
    "linear-eval weights.pth --data shapes --lr 0": "--lr 0; a learning rate must be a number",
    "linear-eval weights.pth --data shapes --shots 3": "--shots 3; it must be a percentage",
    "equiv-score weights.pth --data shapes --layers 1,b": "--layers 1,b; it takes block numbers",
    "equiv-score weights.pth --data shapes --image-size 3x": "--image-size 3x; it takes H or HxW",
    "coco-detect weights.pth --coco shapes --engine yolo": "detectron2",
    "coco-detect weights.pth --coco shapes --schedule 2x": "--schedule 2x; it must be 1x",
    "coco-detect weights.pth --coco shapes --lr 2": "--lr 2; it must be above 0 and below 1",
    "robustness timm:vit --head own --data shapes --teacher": "with --head own",
    "robustness weights.pth --data shapes --alexnet-p x": "--alexnet-p without ImageNet-P",
    "export weights.pth out.bin": "its name must end in one of .safetensors (timm), .pth",
    "pretrain --views 4": "2+4-crops",
    "pretrain --resume hollow --seed 1": "leave out all but --device, --nproc, --bounds",
    "knn weights.pth --data shapes --device mps": "--device mps; it has no float64",
    "pretrain --device mps": "no training was tried on one; use cpu",
    "bench loss --device tpu": "--device tpu; it must be cpu or cuda",
    "bench loss --tokens 5": "--tokens 5; at least 392 are needed",
    "knn": "MODEL",
    "knn weights.pth --bogus": "No such option",
    # What is taken.
    "pretrain --out hollow": "--out hollow exists",
    "pretrain --resume nowhere": "nowhere does not exist",
    # Recipes.
    "pretrain --set train.lrr=1": "did you mean train.lr?",
    "pretrain --set train.lr=-1": "train.lr = -1 (from --set)",
    "pretrain --addon sre": "--addon sre; known: none, augself",
    "pretrain --method mocco": "--method mocco; known: moco",
    "pretrain --recipe shapes/moco-sre": "did you mean shapes/moco-ser?",
    "pretrain --addon none --layer 3": "without an add-on no layer is tapped",
    "recipe show shapes/moco-sre": "did you mean shapes/moco-ser?",
    "knn weights.pth --data shapes --out hollow": "hollow has no run.json",
    "export weights.pth there.safetensors": "there.safetensors exists",
    # Commands that need no torch at all.
    "compare nowhere": "nowhere does not exist",
    "data check nowhere": "nowhere does not exist",
}


READ = (
    "--help",
    "pretrain --help",
    "knn --help",
    "recipe list",
    "recipe show shapes/moco-ser",
    "recipe show imagenet/dino-ser-crops --format yaml",
    "recipe diff shapes/moco-ser imagenet/moco-essl",
    "recipe schema",
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """What came of all of them, in one process: they are cheap, starting Python is not."""
    place = tmp_path_factory.mktemp("startup")
    (place / "hollow").mkdir()
    for name in ("weights.pth", "there.safetensors"):
        (place / name).write_bytes(b"nothing that is read")
    root = str(Path(__file__).parents[2])
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([line.split() for line in (*REFUSED, *READ)]),
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert {file.name for file in place.iterdir()} == {"hollow", "weights.pth", "there.safetensors"}
    return dict(zip((*REFUSED, *READ), map(tuple, json.loads(answer.stdout)), strict=True))


@pytest.mark.parametrize("line", REFUSED)
def test_it_is_refused_in_one_line_without_torch(
    line: str, seen: dict[str, tuple[int, str, list[str]]]
) -> None:
    status, said, heavy = seen[line]
    assert status == 2
    assert said.startswith("ser: ")
    assert said.count("\n") == 1
    assert REFUSED[line] in said
    assert heavy == []


@pytest.mark.parametrize("line", READ)
def test_what_only_reads_needs_no_torch(
    line: str, seen: dict[str, tuple[int, str, list[str]]]
) -> None:
    assert seen[line] == (0, "", [])
