"""Soft equivariance regularization for self-supervised ViTs: pretrain, evaluate, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sercli.checkpoints import load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    """Import torch only for those who load an encoder: `ser --help` must not."""
    if name == "load_encoder":
        from sercli.checkpoints import load_encoder

        return load_encoder
    raise AttributeError(f"module 'sercli' has no attribute {name!r}")
