"""No add-on: the invariant objective alone."""

from sercli.recipe import AddonConfig


class NoneConfig(AddonConfig):
    """No settings."""
