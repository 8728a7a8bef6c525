"""The objectives. A new one is one file here and one line in the table."""

from sercli.methods.barlow_twins import BarlowTwins
from sercli.methods.base import Method
from sercli.methods.dino import DINO
from sercli.methods.moco import MoCo

METHODS: dict[str, type[Method]] = {
    "moco": MoCo,
    "dino": DINO,
    "barlow-twins": BarlowTwins,
}

__all__ = ["METHODS", "Method"]
