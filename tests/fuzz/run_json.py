"""run.json: by itself, as the parent of several processes reads it, and compared."""

from __future__ import annotations

import json
from contextlib import suppress

from sercli import compare_runs
from sercli.engine.launch import raise_for_status
from sercli.errors import SerError
from sercli.runs.run_dir import RunDir
from tests.support.fuzzing import put

RUN = {
    "schema": 1,
    "created": "2026-01-01T00:00:00Z",
    "status": "done",
    "exit_status": 0,
    "error": None,
    "command": ["ser", "pretrain"],
    "recipe_name": "shapes/moco-ser",
    "seed": 0,
    "titles": {"method": "MoCo-v3", "addon": "SER"},
    "versions": {"sercli": "0.1", "python": "3.11.1", "torch": "2.9.0"},
    "git_commit": None,
    "device": "cpu",
    "world_size": 1,
    "threads": 1,
    "parameters": {"trainable": 1000},
    "flops": {"step": 10.5, "step_none": 8, "ratio_none": 1.3, "ratio_weight0": None},
    "timings": {"train_seconds": 3.5, "steps": 4, "images_per_s": 9.0, "data_wait": 0.1},
}
DEEP = b'{"schema": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def corpus() -> list[bytes]:
    collects = {"schema": 1, "status": "done", "command": ["ser"], "evaluates": "timm:vit"}
    failed = {**RUN, "status": "failed", "exit_status": 3, "error": "the loss is not finite"}
    return [*(json.dumps(value).encode() for value in (RUN, collects, failed)), DEEP]


def target(data: bytes) -> None:
    run = RunDir(put("run_json/run.json", data).parent)
    run.read_run()
    with suppress(SerError):  # what it says the run ended with
        raise_for_status(run)
    compare_runs([run.path])
