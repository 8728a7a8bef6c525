"""The equivariance add-ons, a folder each; importing this imports no torch.

`NAME/__init__.py` has the settings (a `TermConfig`), `NAME/model.py` the `Addon`, which is imported
when it is built. `sercli.families` lists them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sercli.addons.base import Addon, AddonInput, Tap, contrast
    from sercli.addons.settings import SummaryConfig, TermConfig

DEFAULT = "ser"

__all__ = [
    "DEFAULT",
    "Addon",
    "AddonInput",
    "SummaryConfig",
    "Tap",
    "TermConfig",
    "contrast",
]


def __getattr__(name: str) -> Any:
    """Each from its file: a recipe can be read without torch, and help be shown without either."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = "settings" if name.endswith("Config") else "base"
    return getattr(importlib.import_module(f"sercli.addons.{file}"), name)
