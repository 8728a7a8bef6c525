"""No add-on: the invariant objective alone, so there is no `model` here."""

from typing import ClassVar

from sercli.recipe.schema import AddonConfig


class NoneConfig(AddonConfig):
    """No settings."""

    place: ClassVar[float] = 0

    name: str = "none"
