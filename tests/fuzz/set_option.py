"""What `--set` is given."""

from __future__ import annotations

import os

from sercli.families.resolving import resolve


def corpus() -> list[bytes]:
    return [
        b"train.lr=1e-3",
        b"seed=1",
        b"addon={name: ser, layer: 3}",
        b"views.local.area=[0.05, 0.25]",
        b"data.path=1_0",
        b"model.width=64",
        b"train={epochs: 1, batch_size: 8}",
        b"seed=" + b"[" * 3000,
        b"a." * 3000 + b"b=1",
        b"seed=&a [*a, *a]",
    ]


def target(data: bytes) -> None:
    resolve("shapes/moco-ser", (os.fsdecode(data),), {})
