"""From a Python file or an entry point to the settings of what it has, and the class behind them.

Either way a plug-in is a subclass of `Method` or `Addon` that names its settings as `Config`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from pydantic import create_model
from pydantic_core import PydanticUndefined

from sercli.errors import UserError, from_os_error
from sercli.families.registry import build_from, defined_in, name_of
from sercli.recipe.schema import AddonConfig, FamilyConfig, MethodConfig

_C = TypeVar("_C", bound=FamilyConfig)
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Kind(Generic[_C]):
    """Methods or add-ons.

    Attributes:
        word: What one is called.
        group: The entry points of packages.
        config: The base of its settings.
    """

    word: str
    group: str
    config: type[_C]

    @property
    def base(self) -> type:
        """The base of its classes; imports torch."""
        from sercli.addons.base import Addon
        from sercli.methods.base import Method

        return Method if self.config is MethodConfig else Addon

    @property
    def settings(self) -> type[FamilyConfig]:
        """What its `Config` must be a subclass of."""
        from sercli.addons.settings import TermConfig

        return MethodConfig if self.config is MethodConfig else TermConfig


METHOD = Kind("method", "sercli.methods", MethodConfig)
ADDON = Kind("addon", "sercli.addons", AddonConfig)


# -- files -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PluginFile:
    """A Python file, run.

    Attributes:
        path: Where it was read.
        content: Its bytes.
        methods, addons: Name → settings of those it has.
    """

    path: Path
    content: bytes
    methods: Mapping[str, type[MethodConfig]]
    addons: Mapping[str, type[AddonConfig]]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


LOADED: dict[str, PluginFile] = {}  # by hash: equal files are one plug-in, whatever run has them


def load_file(path: Path, *, sha256: str | None = None) -> PluginFile:
    """Run a Python file and find its methods and add-ons.

    Args:
        path: The file.
        sha256: What it must be, if that is known.

    Raises:
        UserError: It cannot be read or run, is another file, or has nothing that can be built.
    """
    if not path.is_file():
        raise UserError(f"there is no plug-in {path}", "a Python file is needed")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise UserError(
            f"the plug-in {path} is not what the recipe was written for",
            f"its SHA-256 must be {sha256}, and is {digest}",
            "restore the file, or take `sha256` out of the recipe to go by what it is now",
        )
    if digest not in LOADED:
        module = _run(path, content, f"ser_plugin_{digest[:16]}")
        methods, addons = (_settings_in(module, kind, path) for kind in (METHOD, ADDON))
        if not methods and not addons:
            del sys.modules[module.__name__]
            raise UserError(
                f"the plug-in {path} has no class of its own",
                "a subclass of sercli.methods.Method or sercli.addons.Addon is needed",
            )
        LOADED[digest] = PluginFile(path, content, methods, addons)
    return LOADED[digest]


def _run(path: Path, content: bytes, name: str) -> ModuleType:
    """The file as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f"the plug-in {path} is no Python file", "its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(content, str(path), "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _does_not_run(f"the plug-in {path}", error, str(path)) from error
    return module


def _does_not_run(what: str, error: BaseException, file: str = "") -> UserError:
    """One line on a plug-in that raises when it is imported."""
    if isinstance(error, SyntaxError):
        place = f" (line {error.lineno})"
    else:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        place = f" (line {lines[-1]})" if lines else ""
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{what} cannot be imported{place}: {type(error).__name__}: {reason}")


def _settings_in(module: ModuleType, kind: Kind[_C], path: Path) -> dict[str, type[_C]]:
    """Name → settings of the classes of a kind that a module defines to be built."""
    found: dict[str, type[_C]] = {}
    for cls in cast("list[Any]", defined_in(module, kind.base)):
        if inspect.isabstract(cls) and "Config" not in vars(cls):
            continue  # what others of the file have in common
        config = _bound(cls, kind, what=f"{cls.__name__} of the plug-in {path}")
        name = name_of(config)
        if name in found:
            raise UserError(f"the plug-in {path} has two {kind.word}s {name}", "names are unique")
        found[name] = config
    return found


def _bound(cls: Any, kind: Kind[_C], *, what: str, name: str | None = None) -> type[_C]:
    """The settings that build this very class: a subclass of its `Config`.

    Args:
        cls: A subclass of `Method` or `Addon`.
        kind: Which of them.
        what: What errors call it.
        name: What it must be called; None: as it says.

    Raises:
        UserError: It cannot be built.
    """
    given = getattr(cls, "Config", None)
    base = kind.settings
    if not isinstance(given, type) or not issubclass(given, base):
        shown = given.__name__ if isinstance(given, type) else repr(given)
        raise UserError(
            f"{what} has the Config {shown}", f"it must be a subclass of {base.__name__}"
        )
    if inspect.isabstract(cls):
        raise UserError(
            f"{what} is abstract: it lacks {', '.join(sorted(cls.__abstractmethods__))}"
        )
    lacking = [key for key in inspect.get_annotations(kind.base) if not hasattr(cls, key)]
    if lacking:
        raise UserError(f"{what} lacks {', '.join(lacking)}", f"see sercli.{kind.word}s")
    own = given.model_fields["name"].default
    called = getattr(cls, "name", None if own is PydanticUndefined else own) or name
    if not isinstance(called, str) or not _NAME.fullmatch(called):
        raise UserError(
            f"{what} is called {called!r}",
            "a name of small letters, digits and hyphens is needed",
            'give its Config one, e.g. name: str = "mine"',
        )
    if name not in (None, called):
        raise UserError(f"{what} is called {called!r}", f"its entry point is called {name!r}")
    config = cast(
        "type[_C]",
        create_model(
            given.__name__, __base__=given, __module__=given.__module__, name=(str, called)
        ),
    )
    # What it inherits from a class of ser's is not its own.
    titles = (vars(one).get("title") for one in (*cls.__mro__, *given.__mro__) if not _ours(one))
    config.title, config.place = next(filter(None, titles), ""), math.inf
    build_from(config, cls)
    return config


def _ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "sercli"


# -- packages --------------------------------------------------------------------------------------


def package_of(point: EntryPoint) -> str:
    dist = point.dist
    return "a package" if dist is None else f"the package {dist.name} {dist.version}"


def load_entry(kind: Kind[_C], point: EntryPoint) -> type[_C]:
    """The settings of what an entry point names: a class, or the module that has it."""
    what = f"the {kind.word} {point.name} of {package_of(point)}"
    try:
        value = point.load()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _does_not_run(what, error) from error
    if isinstance(value, type) and issubclass(value, kind.base):
        return _bound(value, kind, what=what, name=point.name)
    raise UserError(
        f"{what} is {point.value}", f"it must be a subclass of sercli's {kind.base.__name__}"
    )
