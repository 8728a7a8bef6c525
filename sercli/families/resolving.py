"""A recipe resolved with the methods and add-ons there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sercli import addons, methods
from sercli.data.registry import recipes_for, require_sizes_used
from sercli.errors import UserError
from sercli.families.registry import addon_configs, method_configs
from sercli.recipe import files
from sercli.recipe.files import Resolved
from sercli.recipe.schema import Data


def resolve(name: str, settings: tuple[str, ...], flags: Mapping[str, Any]) -> Resolved:
    """Resolve a recipe with the methods, add-ons and kinds of data there are.

    Args:
        name: Name under `recipes/`, or a YAML file.
        settings: `--set` values, each "dotted.key=YAML value".
        flags: Values of named options by dotted key.

    Raises:
        UserError: No such recipe, bad YAML, unknown key (with a suggestion) or bad value.
    """
    resolved = files.load(
        name, methods=method_configs(), addons=addon_configs(), settings=settings, flags=flags
    )
    data = resolved.recipe.data
    require_sizes_used(data.path, num_train=data.num_train, num_val=data.num_val)
    return resolved


@dataclass(frozen=True)
class DefaultRecipe:
    """What is trained where no recipe is named.

    Attributes:
        recipe: Name of a recipe.
        flags: What is set on top of it, by dotted key.
    """

    recipe: str
    flags: dict[str, str]


def default_recipe(*, method: str | None, addon: str | None, data: str | None) -> DefaultRecipe:
    """The recipe of a method with an add-on; where there is none of their names, the nearest one.

    That is the method's own without an add-on, or else what the recipes of the world have in
    common.

    Args:
        method, addon: Their names; None: the default.
        data: What `--data` names; None: the embedded world.

    Raises:
        UserError: There is no such method or add-on.
    """
    chosen = {"method": method or methods.DEFAULT, "addon": addon or addons.DEFAULT}
    known = {"method": method_configs(), "addon": addon_configs()}
    for section, name in chosen.items():
        if name not in known[section]:
            raise UserError(f"--{section} {name}", f"known: {', '.join(known[section])}")
    world = recipes_for(Data().path if data is None else data)
    of_both = f"{world}/{chosen['method']}-{chosen['addon']}"
    of_method = f"{world}/{chosen['method']}-none"
    there = files.recipe_names()
    if of_both in there:
        return DefaultRecipe(of_both, {})
    if of_method in there:
        return DefaultRecipe(of_method, {"addon.name": chosen["addon"]})
    return DefaultRecipe(
        f"{world}/base", {"method.name": chosen["method"], "addon.name": chosen["addon"]}
    )
