"""A folder of runs, one of which holds anything: it is passed over and named, or read."""

from __future__ import annotations

import json
from random import Random

from sercli import compare_runs
from sercli.runs.finding import find_runs
from sercli.survey.details import details_of
from sercli.survey.pruning import plan_for
from sercli.survey.standing import standings
from tests.fuzz import metrics_rows, recipe, result_json, run_json
from tests.support import mutations
from tests.support.fuzzing import folder, put

FILES = {
    "run.json": run_json.corpus,
    "recipe.yaml": recipe.corpus,
    "metrics.jsonl": metrics_rows.corpus,
    "results/knn.json": result_json.corpus,
    "lease.json": lambda: [LEASE],
}
LEASE = json.dumps(
    {"host": "node7", "boot": "x/1", "pid": 47, "started": 9, "job": "", "beat": 3}
).encode()


def corpus() -> list[bytes]:
    """The name of a file, a line end, and what it holds."""
    return [name.encode() + b"\n" + data for name, corpus in FILES.items() for data in corpus()]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    name, _, content = data.partition(b"\n")
    rest = [other.partition(b"\n")[2] for other in others]
    return name + b"\n" + mutations.changed(content, rest, random)


def target(data: bytes) -> None:
    name, _, content = data.partition(b"\n")
    good = put("folder/good/run.json", run_json.corpus()[0]).parent
    whole = {"run.json": run_json.corpus()[0], "recipe.yaml": b"seed: 1\n", "lease.json": LEASE}
    for file in FILES:
        path = put(f"folder/bad/{file}", whole.get(file, b""))
        if file not in whole:
            path.unlink()
    if name.decode(errors="replace") in FILES:
        put(f"folder/bad/{name.decode()}", content)
    read, skipped = standings(find_runs([folder() / "folder"]))
    assert {one.facts.directory.path.name for one in read} | {one.path.name for one in skipped} == {
        "good",
        "bad",
    }
    for one in read:
        details_of(one)
        plan_for(one)
    table = compare_runs([folder() / "folder"])
    assert len(table.rows) == 2 or any("Passed over" in note.text for note in table.notes)
    assert good.is_dir()
