"""Soft equivariance regularization for self-supervised ViTs: pretrain, evaluate, compare."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from sercli.encoders.loading import load_encoder
    from sercli.report import compare_runs
    from sercli.report.frame import curves, results
    from sercli.runs.result import protocol_id

__version__ = "0.1.0"
__all__ = ["__version__", "compare_runs", "curves", "load_encoder", "protocol_id", "results"]

_PUBLIC = {
    "compare_runs": "sercli.report",
    "curves": "sercli.report.frame",
    "load_encoder": "sercli.encoders.loading",
    "protocol_id": "sercli.runs.result",
    "results": "sercli.report.frame",
}


def __getattr__(name: str) -> Any:
    """Import torch only for those who load an encoder: `ser --help` must not."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sercli' has no attribute {name!r}")


class _AfterTimm(MetaPathFinder):
    """Adds `ser_vit` to timm's models once timm is imported, which `import sercli` alone is not."""

    searching = False

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name != "timm" or self.searching:
            return None
        # It stays until timm is really imported: others only ask whether timm could be.
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                importlib.import_module("sercli.encoders.timm_entry")

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("sercli.encoders.timm_entry")
else:
    sys.meta_path.insert(0, _AfterTimm())
