"""checkpoints/step-*.pt whose hash is right: what `--resume` takes up, and steps on from."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from random import Random
from typing import Any

import torch
from torch import nn

from sercli.engine.state import ModuleState
from sercli.engine.stepper import Position
from sercli.runs.files import hash_of
from sercli.runs.run_dir import RunDir
from tests.fuzz import checkpoint
from tests.support.fuzzing import folder, put

_OTHERS = (None, True, "x", [], {}, -1, 10**400, float("nan"), 1.5, (1, 2), {"a": 1}, {1: {}})


def _training() -> tuple[RunDir, nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    return RunDir(folder() / "training"), module, optimiser


def _step(module: nn.Module, optimiser: torch.optim.AdamW) -> None:
    optimiser.zero_grad()
    module(torch.ones(4, 3)).square().mean().backward()
    optimiser.step()


@cache
def corpus() -> list[bytes]:
    run, module, optimiser = _training()
    _step(module, optimiser)
    ModuleState(run, module, optimiser, identity={"of": "x"}).save(Position(7, 1.5))
    return [run.checkpoint(7).read_bytes()]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """A value of another kind anywhere in it, or another pickle."""
    if random.random() < 0.4:
        return checkpoint.changed(data, others, random)
    tree = torch.load(io.BytesIO(others[0]), weights_only=True)
    places: list[tuple[Any, Any]] = []
    left: list[Any] = [tree]
    while left:
        node = left.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        left += [node[key] for key in keys if isinstance(node[key], dict | list)]
    for _ in range(random.choice((1, 1, 2))):
        node, key = random.choice(places)
        what = random.randrange(5)
        if what == 0:
            node.pop(key, None) if isinstance(node, dict) else node.clear()
        elif what == 1 and isinstance(node, dict):
            node[random.choice((0, 5, -1, "x", None, (1,), True))] = node.get(key)
        elif what == 2 and isinstance(node, dict):
            odd = (torch.zeros(1), torch.zeros(2, 3).bool(), torch.full((2, 3), float("nan")))
            node[key] = random.choice((*odd, torch.zeros(2, 3).to_sparse(), torch.tensor(5.0)))
        elif isinstance(node, dict) or key < len(node):
            node[key] = random.choice(_OTHERS)
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


def target(data: bytes) -> None:
    run, module, optimiser = _training()
    path = put(f"training/checkpoints/{run.checkpoint(7).name}", data)
    hash_of(path).write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    position = ModuleState(run, module, optimiser, identity={"of": "x"}).load(lambda _: None)
    assert position is not None
    assert position.step >= 0
    _step(module, optimiser)
