"""The objectives. A new one is one file here and one line in the table."""

from sercli.methods.base import Method
from sercli.methods.moco import MoCo

METHODS: dict[str, type[Method]] = {"moco": MoCo}

__all__ = ["METHODS", "Method"]
