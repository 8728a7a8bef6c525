"""results/*.json, in a table beside the result of a baseline."""

from __future__ import annotations

import json
from contextlib import suppress

from sercli import compare_runs
from sercli.runs.result import protocol_id
from tests.fuzz import run_json
from tests.support.fuzzing import put

RESULT = {
    "schema": 1,
    "protocol": {
        "name": "knn",
        "variant": None,
        "version": 1,
        "settings": {"temperature": 0.07, "neighbours": [10, 20], "chosen": 20, "resize": 55},
    },
    "protocol_id": "",
    "model": {
        "source": "runs/ser",
        "key": "student",
        "matched": 150,
        "expected": 150,
        "positions": "bicubic",
    },
    "data": {"path": "shapes", "n": 32, "partial": False, "train": 32},
    "metrics": {"top1": 20.0, "top1/low": 10.0, "top1/high": 30.5, "top5": 60, "random/top1": None},
    "created": "2026-01-01T00:00:00Z",
}


def corpus() -> list[bytes]:
    variants = [
        RESULT,
        {**RESULT, "protocol": {**RESULT["protocol"], "name": "linear-eval", "variant": "ser"}},
        {**RESULT, "warnings": ["may not have converged"]},
        {**RESULT, "data": {**RESULT["data"], "partial": True}},
    ]
    return [json.dumps(_identified(one)).encode() for one in variants] + [run_json.DEEP]


def _identified(value: dict) -> dict:
    return {**value, "protocol_id": protocol_id(value["protocol"])}


def target(data: bytes) -> None:
    # Most changes would end at the protocol's hash, which an evil file has right.
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        data = json.dumps(_identified(json.loads(data))).encode()
    run = put("result/run.json", run_json.corpus()[0]).parent
    put("result/results/knn.json", data)
    compare_runs([run])
