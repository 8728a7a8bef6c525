"""What small text files and options say: class lists, leases, `--alexnet-p`, `--bounds`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sercli.engine.bounds import read_bounds
from sercli.errors import SerError
from sercli.evals.robustness.scores import Normalisers
from sercli.recipe.class_lists import read_class_list
from sercli.runs.lease import refuse_if_leased
from sercli.runs.owner import Owner
from sercli.runs.run_dir import RunDir
from tests.support.fuzzing import put

_OWNER = {"host": "there", "boot": "b", "pid": 7, "started": 5, "job": "", "beat": 3}
_BOUNDS = b"bounds: "


def corpus() -> list[bytes]:
    return [
        b"# ImageNet-100\nn01440764 tench, Tinca tinca\nn01443537\n",
        b"a\nb\nc # the last\n",
        b"".join(b"%d\n" % i for i in range(20_000)) + b"7\n",
        json.dumps(_OWNER).encode().ljust(200),
        json.dumps({**_OWNER, **vars(Owner.here())}).encode(),
        b'{"fp": {"gaussian_noise": 0.2, "tilt": 1}, "ut5d": {"tilt": 2.5}}',
        b'{"gaussian_noise": 0.2}',
        _BOUNDS + b"step=300,save=1800",
        _BOUNDS + b"start=1e400, compile=nan",
    ]


def target(data: bytes) -> None:
    if data.startswith(_BOUNDS):
        read_bounds(os.fsdecode(data.removeprefix(_BOUNDS)))
        return
    run = RunDir(put("texts/lease.json", data).parent)
    with suppress(SerError):
        refuse_if_leased(run)
    file = put("texts/file", data)
    json_, plain = Normalisers.from_file, read_class_list
    readers: list[Callable[[Path], object]] = [json_, plain] if data[:1] == b"{" else [plain, json_]
    with suppress(SerError):
        readers[1](file)
    readers[0](file)
