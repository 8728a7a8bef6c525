"""Which methods and add-ons there are: the folders of `methods/` and `addons/` are the only list.

A folder's `__init__` has the settings, one subclass of `MethodConfig` or `AddonConfig`; its `model`
has the class that is built from them and names them as its `Config`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sercli.recipe.schema import AddonConfig, FamilyConfig, MethodConfig

if TYPE_CHECKING:
    from sercli.addons.base import Addon
    from sercli.methods.base import Method

_C = TypeVar("_C", bound=FamilyConfig)
_T = TypeVar("_T")


def method_configs() -> Mapping[str, type[MethodConfig]]:
    """Name → settings of every objective that comes with ser, in the order of tables."""
    return _built_in("sercli.methods", MethodConfig)


def addon_configs() -> Mapping[str, type[AddonConfig]]:
    """Name → settings of every add-on that comes with ser, "none" too, in the order of tables."""
    return _built_in("sercli.addons", AddonConfig)


def method_class(config: MethodConfig) -> type[Method]:
    """The class of an objective; imports torch."""
    found = _class_for(type(config))
    assert found is not None, f"{type(config).__module__} has no model"
    return cast("type[Method]", found)


def addon_class(config: AddonConfig) -> type[Addon] | None:
    """The class of an add-on, None where there is nothing to build; imports torch."""
    return cast("type[Addon] | None", _class_for(type(config)))


def name_of(config: type[FamilyConfig]) -> str:
    """What recipes call what the settings are for."""
    return str(config.model_fields["name"].default)


def title_of(config: type[FamilyConfig]) -> str:
    """What tables call it."""
    return config.title or name_of(config)


@functools.cache
def _built_in(package: str, kind: type[_C]) -> dict[str, type[_C]]:
    """The settings that the folders of a package define, in the order of tables."""
    found: list[type[_C]] = []
    for folder in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if folder.ispkg:
            module = importlib.import_module(f"{package}.{folder.name}")
            found += defined_in(module, kind)
    ordered = sorted(found, key=lambda config: (config.place, name_of(config)))
    return {name_of(config): config for config in ordered}


def defined_in(module: Any, kind: type[_T]) -> list[type[_T]]:
    """The subclasses of a class that a module defines itself."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, kind)
        and value.__module__ == module.__name__
    ]


def build_from(config: type[FamilyConfig], cls: type) -> None:
    """Say which class the settings of a plug-in are for."""
    _plugged_in[config] = cls


_plugged_in: dict[type[FamilyConfig], type] = {}


def _class_for(config: type[FamilyConfig]) -> type | None:
    """The class that is built from such settings: that of a plug-in, or of the `model` beside them.

    Returns:
        None where there is no `model`.
    """
    if config in _plugged_in:
        return _plugged_in[config]
    name = f"{config.__module__}.model"
    if importlib.util.find_spec(name) is None:
        return None
    for value in vars(importlib.import_module(name)).values():
        if isinstance(value, type) and vars(value).get("Config") is config:
            return value
    raise AssertionError(f"{name} has no class for {config.__name__}")
