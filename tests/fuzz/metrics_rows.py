"""metrics.jsonl, which a kill or a full disk may leave in any state: rows are read or passed over.

Nothing is refused, but for a file that cannot be opened.
"""

from __future__ import annotations

import json
from random import Random

from sercli.errors import UserError
from sercli.runs.run_dir import RunDir
from tests.support import mutations
from tests.support.fuzzing import put

ROW = {"step": 1, "epoch": 0.5, "loss": 3.5, "loss_equiv": None, "lr": 1e-3, "skipped": False}
ROW |= {"images_per_s": 30.5, "data_wait": 0.25}


def corpus() -> list[bytes]:
    rows = [json.dumps({**ROW, "step": step}).encode() for step in range(1, 5)]
    hostile = [b"[1, 2]", b"5", b'{"step": "x"}', b'{"step": 1, "lo', bytes(range(128, 256))]
    return [b"\n".join(rows) + b"\n", rows[0], b"\n".join([*rows, *hostile])]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    lines = data.splitlines() or [b""]
    index = random.randrange(len(lines))
    lines[index] = mutations.changed(lines[index], others, random)
    return b"\n".join(lines)


def target(data: bytes) -> None:
    run = RunDir(put("metrics/metrics.jsonl", data).parent)
    for row in run.read_metrics():
        assert isinstance(row["step"], int)
        for value in row.values():
            assert value is None or isinstance(value + 0.0, float)
    if data == b"":
        raise UserError("an empty file", "it has no row")
