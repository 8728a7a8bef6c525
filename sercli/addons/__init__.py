"""The equivariance add-ons. A new one is one file here and one line in the table."""

from sercli.addons.augself import AugSelf
from sercli.addons.base import Addon, AddonInput, SummaryConfig, Tap, TermConfig
from sercli.addons.equimod import EquiMod
from sercli.addons.essl import ESSL
from sercli.addons.none import NoneConfig
from sercli.addons.ser import SER
from sercli.addons.stl import STL

ADDONS: dict[str, type[Addon]] = {
    "ser": SER,
    "augself": AugSelf,
    "stl": STL,
    "equimod": EquiMod,
    "essl": ESSL,
}

__all__ = [
    "ADDONS",
    "Addon",
    "AddonInput",
    "NoneConfig",
    "SummaryConfig",
    "Tap",
    "TermConfig",
]
