"""The invariant objectives, a folder each; importing this imports no torch.

`NAME/__init__.py` has the settings (a `MethodConfig`), `NAME/model.py` the `Method`, which is
imported when it is built. `sercli.families` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sercli.methods.base import Method, MethodInput

DEFAULT = "moco"

__all__ = ["DEFAULT", "Method", "MethodInput"]


def __getattr__(name: str) -> Any:
    """These need torch: those who only read a recipe do not wait for it."""
    if name in ("Method", "MethodInput"):
        from sercli.methods import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
