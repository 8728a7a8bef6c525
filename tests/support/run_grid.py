"""Run directories made by hand, as large as real ones: one, or a grid of a thousand.

`python -m tests.support.run_grid FOLDER 1000` makes them.
"""

from __future__ import annotations

import io
import json
import os
import sys
from functools import cache
from hashlib import sha256
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from sercli.families import resolve
from sercli.runs.result import Result

ADDONS = (
    ("none", None),
    *(("ser", layer) for layer in (3, 9, 12)),
    *(("augself", layer) for layer in (3, 12)),
    *(("equimod", layer) for layer in (3, 12)),
    ("stl", 12),
    ("essl", 12),
)
METHODS = ("moco", "dino", "barlow-twins")
_ACTIONS = ("rot90", "rot180", "rot270", "rotation", "hflip", "scale0.75", "scale1.25")
_CORRUPTIONS = [f"corruption{number}" for number in range(15)]


def make_run(
    path: Path,
    *,
    method: str = "moco",
    addon: str = "none",
    layer: int | None = None,
    seed: int = 0,
    images: int = 500,
    rows: int = 200,
    predictions: bool = True,
    **record: Any,
) -> Path:
    """A run with kNN, probe, equivariance and robustness, and predictions of its images.

    Args:
        path: Where; it must not exist.
        method, addon, layer, seed: Of its recipe.
        images: How many each result scored.
        rows: Of metrics.jsonl: every tenth step.
        predictions: Write those of each image.
        record: More of run.json.
    """
    text, recipe = _recipe(method, addon, layer)
    recipe = {**recipe, "seed": seed}
    text = text.replace("seed: 0\n", f"seed: {seed}\n")
    (path / "results").mkdir(parents=True)
    (path / "recipe.yaml").write_text(text)
    told = {
        "schema": 1,
        "created": "2026-01-01T00:00:00Z",
        "status": "done",
        "exit_status": 0,
        "error": None,
        "command": "ser pretrain",
        "recipe_name": f"shapes/{method}-{addon}",
        "seed": seed,
        "device": "cpu",
        "recipe": recipe,
        "recipe_sha256": sha256(text.encode()).hexdigest(),
        "data": {"kind": "shapes", "images": 4096, "classes": 8},
        "flops": {"step": 1e9, "ratio_none": 1.04, "ratio_weight0": 1.01},
        "timings": {"train_seconds": 100.0 + seed, "steps": 10 * rows, "images_per_s": 400.0},
    }
    (path / "run.json").write_text(json.dumps({**told, **record}, indent=1))
    lines = [json.dumps(_row(10 * step)) for step in range(1, rows + 1)]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    random = np.random.default_rng(sum(os.fsencode(path.name)) + seed)
    for name, metrics in _metrics(random, images).items():
        _write_result(path, name, metrics, random, images if predictions else 0)
    return path


def make_runs(folder: Path, count: int, **more: Any) -> list[Path]:
    """So many runs in a folder: seeds of methods with add-ons at layers."""
    grid = product(range(count), METHODS, ADDONS)
    return [
        make_run(
            folder / f"{method}-{addon}-{layer}-{seed}",
            **{"method": method, "addon": addon, "layer": layer, "seed": seed, **more},
        )
        for seed, method, (addon, layer) in islice(grid, count)
    ]


@cache
def _recipe(method: str, addon: str, layer: int | None) -> tuple[str, dict[str, Any]]:
    flags = {} if layer is None else {"addon.layer": layer}
    recipe = resolve(f"shapes/{method}-{addon}", (), flags).recipe
    return recipe.to_yaml(), json.loads(recipe.model_dump_json())


def _row(step: int) -> dict[str, Any]:
    row = {"step": step, "epoch": step / 64, "loss": 5 / step, "loss_inv": 4 / step, "lr": 1e-3}
    row |= {"grad_norm": 1.5, "skipped": False, "images_per_s": 400.0, "data_wait": 0.01}
    return {**row, "knn_top1": 40 + step / 100} if step % 100 == 0 else row


def _metrics(random: np.random.Generator, images: int) -> dict[str, dict[str, float | None]]:
    """By result; accuracies are of whole images."""
    right = int(random.integers(images // 3, images))
    top1 = 100 * right / images
    ends = {"low": max(0.0, top1 - 4), "high": min(100.0, top1 + 4)}
    with_ends = {"top1": top1, **{f"top1/{end}": value for end, value in ends.items()}}
    blocks = {
        f"{family}/block{block:02d}/{action}{end}": float(random.random())
        for family in ("es", "es_random", "es_identity", "gain", "cosine_raw")
        for block in range(13)
        for action in _ACTIONS
        for end in ("", "/low", "/high")
    }
    cells = {f"top1/{name}/{level}": top1 / level for name in _CORRUPTIONS for level in range(1, 6)}
    return {
        "knn": {**with_ends, "top5": min(100.0, top1 + 20), "random/top1": 20.0},
        "linear-eval--ser": {**with_ends, "top5": min(100.0, top1 + 20), "best/top1": top1},
        "equiv-score": {**blocks, **{f"energy/block{block:02d}": 0.5 for block in range(13)}},
        "robustness--imagenet-c": {"top1": top1 / 2, "mce": 80.0, "relative_mce": 90.0, **cells},
    }


def _write_result(
    path: Path,
    name: str,
    metrics: dict[str, float | None],
    random: np.random.Generator,
    images: int,
) -> None:
    protocol, _, variant = name.partition("--")
    digest = None
    if images and "top1/low" in metrics:
        right = round(images * (metrics["top1"] or 0) / 100)
        labels = np.arange(images) % 8
        hit = np.zeros(images, bool)
        hit[random.permutation(images)[:right]] = True
        buffer = io.BytesIO()
        np.savez(
            buffer,
            image_ids=np.array([f"val/{index:06d}" for index in range(images)]),
            labels=labels,
            predictions=np.where(hit, labels, labels + 1),
        )
        (path / "results" / f"{name}.npz").write_bytes(buffer.getvalue())
        digest = sha256(buffer.getvalue()).hexdigest()
    result = Result(
        protocol={"name": protocol, "variant": variant or None, "version": 1, "settings": {}},
        model={"source": str(path), "key": "student", "matched": 150, "expected": 150},
        data={"path": "shapes", "n": images or 500, "partial": False, "seed": 0},
        metrics=metrics,
        created="2026-01-02T00:00:00Z",
        predictions_sha256=digest,
    )
    (path / "results" / f"{name}.json").write_text(json.dumps(result.to_json(), indent=1))


if __name__ == "__main__":
    make_runs(Path(sys.argv[1]), int(sys.argv[2]))
