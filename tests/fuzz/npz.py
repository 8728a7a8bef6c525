"""results/*.npz without their hash: predictions of a run that is compared with its baseline."""

from __future__ import annotations

import io
import json

import numpy as np

from sercli import compare_runs
from sercli.runs.arrays import read_arrays
from tests.fuzz import result_json, run_json
from tests.support.fuzzing import put

NAMES = ("image_ids", "labels", "predictions")
COUNT = 32
_RECIPE = "method: {name: moco}\nviews: {setting: 2}\ndata: {path: mine}\nmodel: {name: vit_tiny}\n"


def corpus() -> list[bytes]:
    labels = np.arange(COUNT) % 4
    right = np.arange(COUNT) % 5 == 0
    ids = np.array([f"class/{index}.png" for index in range(COUNT)])
    plain = {"image_ids": ids, "labels": labels, "predictions": np.where(right, labels, 9)}
    grid = {**plain, "predictions": np.zeros((COUNT, 3), np.int64)}
    short = {**plain, "labels": labels[:5]}
    bomb = {**plain, "image_ids": np.zeros(500_000, "U1")}
    objects = {**plain, "labels": np.array([None] * COUNT)}
    return [
        *(_packed(one, packed=False) for one in (plain, grid, short, {"other": ids})),
        *(_packed(one, packed=True) for one in (plain, bomb, objects)),
    ]


def _packed(arrays: dict, *, packed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)
    return file.getvalue()


def target(data: bytes) -> None:
    result = json.loads(result_json.corpus()[0])
    result["metrics"] = {"top1": 21.875}
    result["data"]["path"] = "mine"
    runs = []
    for name, addon in (("npz/ser", "{name: ser, layer: 3}"), ("npz/none", "{name: none}")):
        run = put(f"{name}/run.json", run_json.corpus()[0]).parent
        put(f"{name}/recipe.yaml", f"{_RECIPE}addon: {addon}\n".encode())
        put(f"{name}/results/knn.json", json.dumps(result).encode())
        put(f"{name}/results/knn.npz", data)
        runs.append(run)
    read_arrays(runs[0] / "results" / "knn.npz", NAMES, sha256=None)
    compare_runs(runs)
