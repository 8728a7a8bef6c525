"""The methods and add-ons there are, and recipes resolved with them; all of it without torch.

- `registry.py`: the built-in ones, found by their folders, and the class that settings are for.
- `plugins.py`: those of files and of installed packages.
- `resolving.py`: a recipe by name, with all of them.
"""

from sercli.families.registry import (
    addon_class,
    addon_configs,
    method_class,
    method_configs,
    title_of,
)
from sercli.families.resolving import DefaultRecipe, addon_names, default_recipe, resolve

__all__ = [
    "DefaultRecipe",
    "addon_class",
    "addon_configs",
    "addon_names",
    "default_recipe",
    "method_class",
    "method_configs",
    "resolve",
    "title_of",
]
