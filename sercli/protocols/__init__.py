"""The contracts of all protocols: one file each, found by being here.

A new protocol is an evaluator, its command, and a module of this folder with a `PROTOCOL`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from sercli.protocols.contract import Protocol, Quantity, Reading, unknown

__all__ = ["PROTOCOLS", "Protocol", "Quantity", "Reading", "contract_of", "find_protocols"]


def find_protocols(folders: Iterable[str]) -> dict[str, Protocol]:
    """The `PROTOCOL` of every module in this package, by name, in the order of their places.

    Args:
        folders: Where the package's modules are: its `__path__`.
    """
    modules = [
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(folders)
    ]
    found: list[Protocol] = [module.PROTOCOL for module in modules if hasattr(module, "PROTOCOL")]
    return {
        protocol.name: protocol
        for protocol in sorted(found, key=lambda protocol: (protocol.place, protocol.name))
    }


PROTOCOLS = find_protocols(__path__)


def contract_of(name: str) -> Protocol:
    """The contract of a result's protocol; for an unknown one, what shows numbers by name."""
    return PROTOCOLS.get(name) or unknown(name)
