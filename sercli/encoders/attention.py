"""Attention within each image, over the tokens of images of several sizes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.encoders.tokens import Layout, Span, joined

_HALF = (torch.float16, torch.bfloat16)
Way = Callable[[Tensor, Layout], Tensor]


def attend(packed: Tensor, layout: Layout) -> Tensor:
    """Softmax(q·kᵀ/√d)·v of each image by itself.

    Images of one size are a batch to `scaled_dot_product_attention`. Those of several go through
    `torch.nn.attention.varlen` at once where it gives what the former gives, see `all_sizes_by`;
    elsewhere size by size.

    Args:
        packed: [T, 3, H, d], queries, keys and values of each head.
        layout: Where which image lies.

    Returns:
        [T, H·d].
    """
    half = packed.is_cuda and packed.dtype in _HALF
    if half and len(layout.groups) > 1:
        way = all_sizes_by(packed.device, packed.dtype, *packed.shape[2:])
        if way is not None:
            return way(packed, layout)
    return _size_by_size(packed, layout)


def _size_by_size(packed: Tensor, layout: Layout) -> Tensor:
    pieces = []
    for images in layout.by_group(packed):
        q, k, v = (x.transpose(1, 2) for x in images.unbind(2))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        pieces.append(attended.flatten(2).flatten(0, 1))
    return joined(pieces)


def _all_sizes(packed: Tensor, layout: Layout, **options: Any) -> Tensor:
    varlen: Any = importlib.import_module("torch.nn.attention.varlen")
    places, longest = layout.boundaries, layout.longest
    q, k, v = packed.unbind(1)
    attended: Tensor = varlen.varlen_attn(q, k, v, places, places, longest, longest, **options)
    return attended.flatten(1)


def _all_sizes_by_flash(packed: Tensor, layout: Layout) -> Tensor:
    """A window as long as the longest image leaves nothing out, but cuDNN takes none."""
    return _all_sizes(packed, layout, window_size=(layout.longest, layout.longest))


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@functools.lru_cache
def all_sizes_by(
    device: torch.device, dtype: torch.dtype, num_heads: int, head_dim: int
) -> Way | None:
    """How this torch, on this device, attends within images of several sizes at once.

    Each way is tried once, on a few tokens that lie as the encoder's do, forwards and backwards,
    and compared with attention size by size: which back end torch chooses, and what it takes,
    differs by device and version. Where cuDNN is the choice it fails if it is switched off or does
    not run, and Flash Attention takes its place. Waits for the device, in the first step.

    Returns:
        The first way that gives the same; None: none does.
    """
    layout = Layout((Span(2, (1, 5)), Span(1, (12, 13))), prefix=1, device=device)
    draws = torch.Generator().manual_seed(0)
    shape = (layout.num_tokens, 3, num_heads, head_dim)
    packed = torch.randn(shape, generator=draws).to(device, dtype)
    weights = torch.randn(shape[0], num_heads * head_dim, generator=draws).to(device, dtype)
    expected = _tried(_size_by_size, packed, weights, layout)
    for way in (_all_sizes, _all_sizes_by_flash):
        try:
            found = _tried(way, packed, weights, layout)
        except (ImportError, AttributeError, TypeError, RuntimeError):
            continue
        # Both are rounded to their dtype in between; what is wrong differs by about 1.
        wrong = ~((found - expected).abs() <= 0.05 * expected.abs().clamp(min=1))
        if not bool(wrong.any()):
            return way
    return None


def _tried(way: Way, packed: Tensor, weights: Tensor, layout: Layout) -> Tensor:
    """What a way gives, and its gradient."""
    with (
        torch.enable_grad(),
        torch.autocast(packed.device.type, enabled=False),
        # Of its own: activation checkpointing around this must not count what it keeps.
        torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
    ):
        given = packed.clone().requires_grad_()
        attended = way(given, layout)
        attended.backward(weights)
    assert given.grad is not None
    return torch.cat([attended.detach().flatten(), given.grad.flatten()]).float()
