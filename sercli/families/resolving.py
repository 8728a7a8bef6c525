"""A recipe resolved with the methods and add-ons that there are, and with those it brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import ConfigDict

from sercli import addons, methods
from sercli.data.registry import recipes_for, require_sizes_used
from sercli.errors import UserError
from sercli.families.plugins import Families, families, not_installed
from sercli.recipe import files
from sercli.recipe.files import Resolved
from sercli.recipe.schema import AddonConfig, Data, MethodConfig, Plugin, ViewSetting


def resolve(
    name: str,
    settings: tuple[str, ...],
    flags: Mapping[str, Any],
    *,
    plugins: Sequence[Path] = (),
    tolerant: bool = False,
) -> Resolved:
    """Resolve a recipe with the methods, add-ons and kinds of data there are.

    Args:
        name: Name under `recipes/`, or a YAML file.
        settings: `--set` values, each "dotted.key=YAML value".
        flags: Values of named options by dotted key.
        plugins: Files with more methods and add-ons, beside those that the recipe names.
        tolerant: Do without a plug-in of a run's recipe that is not there any more: what can be
            said without training it is said.

    Raises:
        UserError: No such recipe, bad YAML, unknown key (with a suggestion), bad value, or a
            plug-in that cannot be had.
    """
    read = files.read(name)
    named = tuple(plugin for file in read for plugin in file.plugins)
    known = families(*named, *given_files(plugins), tolerant=tolerant)
    values = {key: value for file in read for key, value in file.values.items()}
    replaced, notes = {}, list(known.notes)
    for section, table in (("method", known.methods), ("addon", known.addons)):
        why = _why_missing(section, values.get(f"{section}.name"), table, known, named)
        if why is not None:
            if not tolerant:
                raise why
            replaced[section] = {str(values[f"{section}.name"]): _STAND_INS[section]}
            notes.append(f"note: {why}; its settings are shown as they were written")
    resolved = files.resolve(
        read,
        name,
        methods=replaced.get("method", known.methods),
        addons=replaced.get("addon", known.addons),
        timm_settings=_timm_settings,
        settings=settings,
        flags=flags,
    )
    data = resolved.recipe.data
    require_sizes_used(data.path, num_train=data.num_train, num_val=data.num_val)
    kept = named if replaced else (*known.files, *known.packages())
    if not kept:
        return resolved
    origin = next((file.origin for file in reversed(read) if file.plugins), "entry points")
    return replace(
        resolved,
        recipe=resolved.recipe.model_copy(update={"plugins": kept}),
        origins={**resolved.origins, "plugins": "--plugin" if plugins else origin},
        notes=tuple(notes),
    )


def _timm_settings(name: str) -> dict[str, Any]:
    """Those of a ViT of timm's, which takes torch: imported for recipes that have one."""
    from sercli.encoders.describing import settings_of_timm

    return settings_of_timm(name)


def given_files(paths: Sequence[Path]) -> tuple[Plugin, ...]:
    """What `--plugin` gives."""
    return tuple(Plugin(file=str(path.absolute())) for path in paths)


def addon_names(plugins: Sequence[Path] = ()) -> list[str]:
    """What add-ons there are: ser's in the order of tables, "none" first, files', packages'."""
    return list(families(*given_files(plugins)).addons)


def _why_missing(
    section: str,
    name: Any,
    table: Mapping[str, Any],
    known: Families,
    named: tuple[Plugin, ...],
) -> UserError | None:
    """Why a run's recipe has a method or an add-on that is not there, if it is a plug-in's."""
    recorded = [one for one in named if one.sha256 is not None or one.distribution is not None]
    if not recorded or name is None:
        return None
    try:
        if name in table:
            table[name]
            return None
    except UserError as error:  # it is there, and cannot be imported
        return error
    packages = [str(one) for one in not_installed(named)]
    if packages:
        return UserError(
            f"the {section} {name} is of the package {', '.join(packages)}",
            "which is not installed",
            "install it",
        )
    return UserError(f"the {section} {name}: {known.missing[0]}") if known.missing else None


class _AnyMethod(MethodConfig):
    """Whatever a run's recipe says of a method that is missing."""

    model_config = ConfigDict(extra="allow")

    takes_more_views: ClassVar[bool] = True


class _AnyAddon(AddonConfig):
    """Whatever a run's recipe says of an add-on that is missing."""

    model_config = ConfigDict(extra="allow")

    view_settings: ClassVar[tuple[ViewSetting, ...]] = get_args(ViewSetting)


_STAND_INS: dict[str, Any] = {"method": _AnyMethod, "addon": _AnyAddon}


@dataclass(frozen=True)
class DefaultRecipe:
    """What is trained where no recipe is named.

    Attributes:
        recipe: Name of a recipe.
        flags: What is set on top of it, by dotted key.
    """

    recipe: str
    flags: dict[str, str]


def default_recipe(
    *, method: str | None, addon: str | None, data: str | None, plugins: Sequence[Path] = ()
) -> DefaultRecipe:
    """The recipe of a method with an add-on; where there is none of their names, the nearest one.

    That is the method's own without an add-on, or else what the recipes of the world have in
    common.

    Args:
        method, addon: Their names; None: the default.
        data: What `--data` names; None: the embedded world.
        plugins: Files with more methods and add-ons.

    Raises:
        UserError: There is no such method or add-on, or a file cannot be had.
    """
    chosen = {"method": method or methods.DEFAULT, "addon": addon or addons.DEFAULT}
    there = families(*given_files(plugins))
    tables: dict[str, Mapping[str, Any]] = {"method": there.methods, "addon": there.addons}
    for section, name in chosen.items():
        if name not in tables[section]:
            raise UserError(f"--{section} {name}", f"known: {', '.join(tables[section])}")
    world = recipes_for(Data().path if data is None else data)
    of_both = f"{world}/{chosen['method']}-{chosen['addon']}"
    of_method = f"{world}/{chosen['method']}-none"
    names = files.recipe_names()
    if of_both in names:
        return DefaultRecipe(of_both, {})
    if of_method in names:
        return DefaultRecipe(of_method, {"addon.name": chosen["addon"]})
    return DefaultRecipe(
        f"{world}/base", {"method.name": chosen["method"], "addon.name": chosen["addon"]}
    )
