"""Soft equivariance regularization for self-supervised ViTs: pretrain, evaluate, compare."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from sercli.encoders.loading import load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    """Import torch only for those who load an encoder: `ser --help` must not."""
    if name == "load_encoder":
        from sercli.encoders.loading import load_encoder

        return load_encoder
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
