"""metrics.jsonl, which a kill or a full disk may leave in any state: rows are read or passed over.

Nothing is refused but a file that cannot be opened.
"""

from __future__ import annotations

import json
import math
from random import Random

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
    steps = [row["step"] for row in run.read_metrics()]
    assert all(isinstance(step, int) and step >= 0 for step in steps)
    for key in ("images_per_s", "data_wait", "loss"):
        assert math.isfinite(sum(min(value, 1.0) for value in run.logged(key)))
