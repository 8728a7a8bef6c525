"""Which methods and add-ons there are: the folders of `methods/` and `addons/` are the only list.

A folder's `__init__` has the settings, one subclass of `MethodConfig` or `AddonConfig`; its `model`
has the class that is built from them and names them as its `Config`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sercli.recipe.schema import AddonConfig, FamilyConfig, MethodConfig

if TYPE_CHECKING:
    from sercli.addons.base import Addon
    from sercli.methods.base import Method

_C = TypeVar("_C", bound=FamilyConfig)


def method_configs() -> Mapping[str, type[MethodConfig]]:
    """Name → settings of every objective there is, in the order of tables."""
    return _built_in("sercli.methods", MethodConfig)


def addon_configs() -> Mapping[str, type[AddonConfig]]:
    """Name → settings of every add-on there is, and of "none", in the order of tables."""
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
            found += _defined_in(module, kind)
    ordered = sorted(found, key=lambda config: (config.place, name_of(config)))
    return {name_of(config): config for config in ordered}


def _defined_in(module: Any, kind: type[_C]) -> list[type[_C]]:
    """The subclasses that a module defines itself."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, kind)
        and value.__module__ == module.__name__
    ]


def _class_for(config: type[FamilyConfig]) -> type | None:
    """The class whose `Config` these settings are, if there is one.

    It is in the `model` beside them, or, where they are in a single file, in that.
    """
    module = sys.modules[config.__module__]
    if hasattr(module, "__path__"):
        name = f"{config.__module__}.model"
        if importlib.util.find_spec(name) is None:
            return None
        module = importlib.import_module(name)
    for value in vars(module).values():
        if isinstance(value, type) and vars(value).get("Config") is config:
            return value
    raise AssertionError(f"{module.__name__} has no class for {config.__name__}")
