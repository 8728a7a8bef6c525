"""The equivariance add-ons. A new one is one file here and one line in the table."""

from sercli.addons.base import Addon, AddonInput, TermConfig
from sercli.addons.none import NoneConfig
from sercli.addons.ser import SER

ADDONS: dict[str, type[Addon]] = {"ser": SER}

__all__ = ["ADDONS", "Addon", "AddonInput", "NoneConfig", "TermConfig"]
