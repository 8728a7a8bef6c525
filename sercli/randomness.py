"""Stateless randomness: every draw is a function of a seed and of what it is for.

Nothing depends on how many draws came before, on the rank or on the number of workers, so that a
resumed run and a run on more processes see the same views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in 0…2⁶³−1 from `seed` and the purpose, e.g. `derive(0, "actions", step)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, *purpose)))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Inside, torch's global CPU generator is seeded for `purpose`; outside it is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *purpose))
        yield


def truncated_normal_(tensor: Tensor, *, std: float) -> None:
    """Fill a tensor in place from a normal distribution, as timm and DINO draw their weights.

    Earlier releases of torch (2.10 among them) invert the distribution function of a uniform
    number, which at its end gives the limit that the callers know, ±2: 100 standard deviations,
    for about one weight in ten million. Here it is 8, which later releases do not reach.

    Args:
        tensor: Of any shape.
        std: Standard deviation.
    """
    nn.init.trunc_normal_(tensor, std=std)
    with torch.no_grad():
        tensor.clamp_(-8 * std, 8 * std)
