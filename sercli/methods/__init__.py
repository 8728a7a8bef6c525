"""The invariant objectives, a folder each; importing this imports no torch.

`NAME/__init__.py` has the settings (a `MethodConfig`), `NAME/model.py` the `Method`, which is
imported when it is built. `sercli.families` lists them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sercli.distributed import gather_rows, share_of
    from sercli.heads import mlp
    from sercli.methods.base import Method, MethodInput

DEFAULT = "moco"

# What an objective of one's own needs, and its file.
_FROM = {
    "Method": "sercli.methods.base",
    "MethodInput": "sercli.methods.base",
    "gather_rows": "sercli.distributed",
    "mlp": "sercli.heads",
    "share_of": "sercli.distributed",
}

__all__ = ["DEFAULT", "Method", "MethodInput", "gather_rows", "mlp", "share_of"]


def __getattr__(name: str) -> Any:
    """These need torch: those who only read a recipe do not wait for it."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM[name]), name)
