"""The invariant objectives, a folder each; importing this imports no torch.

`NAME/__init__.py` has the settings (a `MethodConfig`), `NAME/model.py` the `Method`, which is
imported when it is built. `sercli.families` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sercli.methods.base import Method

DEFAULT = "moco"

__all__ = ["DEFAULT", "Method"]


def __getattr__(name: str) -> Any:
    """`Method` is a torch module: those who only read a recipe do not wait for it."""
    if name == "Method":
        from sercli.methods.base import Method

        return Method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
