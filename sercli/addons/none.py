"""No add-on: the invariant objective alone."""

from sercli.recipe.schema import AddonConfig


class NoneConfig(AddonConfig):
    """No settings."""
