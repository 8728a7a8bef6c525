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
    from sercli.distributed import gather_rows, share_of
    from sercli.encoders.vit import Features
    from sercli.heads import mlp
    from sercli.views.making import ViewParameters, ViewRecord, Views
    from sercli.views.plan import PairedViews, ViewRequest

DEFAULT = "ser"

# What an add-on of one's own needs, and its file.
_FROM = {
    "Addon": "sercli.addons.base",
    "AddonInput": "sercli.addons.base",
    "Features": "sercli.encoders.vit",
    "PairedViews": "sercli.views.plan",
    "SummaryConfig": "sercli.addons.settings",
    "Tap": "sercli.addons.base",
    "TermConfig": "sercli.addons.settings",
    "ViewParameters": "sercli.views.making",
    "ViewRecord": "sercli.views.making",
    "ViewRequest": "sercli.views.plan",
    "Views": "sercli.views.making",
    "contrast": "sercli.addons.base",
    "gather_rows": "sercli.distributed",
    "mlp": "sercli.heads",
    "share_of": "sercli.distributed",
}

__all__ = [
    "DEFAULT",
    "Addon",
    "AddonInput",
    "Features",
    "PairedViews",
    "SummaryConfig",
    "Tap",
    "TermConfig",
    "ViewParameters",
    "ViewRecord",
    "ViewRequest",
    "Views",
    "contrast",
    "gather_rows",
    "mlp",
    "share_of",
]


def __getattr__(name: str) -> Any:
    """Each from its file: a recipe can be read without torch, and help be shown without either."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM[name]), name)
