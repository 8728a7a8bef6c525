"""`ser bench loss`: the tiled patch loss against a vectorised one with the full matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.benchmarks.measure import Measured, measure
from sercli.losses import patch_nt_xent

WIDTH, TEMPERATURE, TOKENS_PER_IMAGE = 512, 0.4, 196


def full_matrix_loss(anchors: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """The same loss ("cross-view") with the whole logit matrix: a vectorised mask, logsumexp."""
    images, tokens, dim = anchors.shape
    a = F.normalize(anchors.reshape(-1, dim), dim=1)
    k = F.normalize(keys.reshape(-1, dim), dim=1)
    logits = a @ k.T / temperature
    image = torch.arange(images, device=a.device).repeat_interleave(tokens)
    positive = torch.arange(len(a), device=a.device)
    masked = image[:, None] == image[None, :]
    masked[positive, positive] = False
    rest = logits.masked_fill(masked, -torch.inf)
    return (rest.logsumexp(dim=1) - logits.diagonal()).mean()


def _tiled(anchors: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    return patch_nt_xent(anchors, keys, temperature=temperature)


_VARIANTS = {
    "full matrix": (full_matrix_loss, torch.float32),
    "tiled": (_tiled, torch.float32),
    "tiled, bf16 products": (_tiled, torch.bfloat16),
}


def prepare(variant: str, images: int, device: str) -> Callable[[], float]:
    """Inputs of `images` × 196 tokens and a call that runs forward and backward."""
    loss, dtype = _VARIANTS[variant]
    torch.manual_seed(0)
    shape = (images, TOKENS_PER_IMAGE, WIDTH)
    anchors, keys = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))

    def call() -> float:
        anchors.grad = keys.grad = None
        value = loss(anchors, keys, temperature=TEMPERATURE)
        value.backward()
        return value.item()

    return call


@dataclass(frozen=True)
class LossRow:
    """One variant at one number of tokens; `speed` is relative to the full matrix."""

    variant: str
    tokens: int
    measured: Measured
    speed: float | None


def run(
    token_counts: Sequence[int],
    *,
    full_up_to: int,
    device: str,
    threads: int,
    repeats: int,
    report: Callable[[LossRow], None],
) -> list[LossRow]:
    """Measure every variant at every size, in turn; the full matrix only up to `full_up_to`."""
    rows: list[LossRow] = []
    for tokens in token_counts:
        reference: float | None = None
        for variant in _VARIANTS:
            if variant == "full matrix" and tokens > full_up_to:
                continue
            measured = measure(
                prepare,
                variant,
                max(2, round(tokens / TOKENS_PER_IMAGE)),
                device=device,
                threads=threads,
                repeats=repeats,
            )
            if variant == "full matrix":
                reference = measured.seconds
            speed = None if reference is None else reference / measured.seconds
            rows.append(LossRow(variant, tokens, measured, speed))
            report(rows[-1])
    return rows
