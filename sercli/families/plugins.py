"""Methods and add-ons that do not come with ser: of a file beside the user's recipe, or a package.

A file is given by `--plugin`, by `plugins:` in a recipe, or is the copy that a run keeps. A package
has entry points `sercli.methods` and `sercli.addons`; one is loaded when its name is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TypeVar

from sercli.errors import SerError, UserError
from sercli.families.loading import (
    ADDON,
    LOADED,
    METHOD,
    Kind,
    PluginFile,
    load_entry,
    load_file,
    package_of,
)
from sercli.families.registry import addon_configs, method_configs
from sercli.recipe.schema import AddonConfig, FamilyConfig, MethodConfig, Plugin

_C = TypeVar("_C", bound=FamilyConfig)


def _installed(kind: Kind[_C]) -> dict[str, EntryPoint]:
    """Name → entry point of every package.

    Raises:
        UserError: A name is taken.
    """
    built_in = method_configs() if kind.config is MethodConfig else addon_configs()
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=kind.group), key=lambda point: point.name):
        if point.name in built_in:
            raise _taken(kind, point.name, package_of(point), "ser itself")
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise _taken(kind, point.name, package_of(point), package_of(other))
    return found


def _taken(kind: Kind[_C], name: str, one: str, other: str) -> UserError:
    return UserError(
        f"{one} has the {kind.word} {name!r}, and so has {other}",
        "a name can stand for one only",
        "give it another name, or leave one of the two out",
    )


# -- tables ----------------------------------------------------------------------------------------


class Table(Mapping[str, type[_C]]):
    """Name → settings: what comes with ser, then what files have, then what packages have.

    Those of packages are only looked for when a name is none of the others, and loaded when they
    are asked for. To ask whether there is a name loads nothing.
    """

    def __init__(self, kind: Kind[_C], built_in: Mapping[str, type[_C]]) -> None:
        self._kind = kind
        self._known = dict(built_in)
        self._whose = dict.fromkeys(built_in, "ser itself")
        self._packages: dict[str, EntryPoint] | None = None
        self.used: dict[str, EntryPoint] = {}

    def add(self, found: Mapping[str, type[_C]], whose: str, *, recorded: bool) -> None:
        """Add what a file has; a run's own copy stands before a package of the same name.

        Raises:
            UserError: A name is taken.
        """
        for name, config in found.items():
            if self._known.get(name, config) is not config:
                raise _taken(self._kind, name, whose, self._whose[name])
            if not recorded and name in self._of_packages():
                raise _taken(self._kind, name, whose, package_of(self._of_packages()[name]))
            self._known[name], self._whose[name] = config, whose

    def _of_packages(self) -> dict[str, EntryPoint]:
        if self._packages is None:
            self._packages = _installed(self._kind)
        return self._packages

    def __getitem__(self, name: str) -> type[_C]:
        if name not in self._known:
            point = self._of_packages()[name]
            self._known[name] = load_entry(self._kind, point)
            self.used[name] = point
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._of_packages()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._known, *self._of_packages()]))

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass(frozen=True)
class Families:
    """The methods and add-ons that a command can choose from.

    Attributes:
        methods, addons: Name → settings.
        files: The files they are from, as a recipe names them.
        notes: What there is to tell of them.
        missing: Those that cannot be had, and why: none, unless one may do without.
    """

    methods: Table[MethodConfig]
    addons: Table[AddonConfig]
    files: tuple[Plugin, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def packages(self) -> tuple[Plugin, ...]:
        """The packages that were needed so far."""
        points = {**self.methods.used, **self.addons.used}.values()
        found = {(point.dist.name, point.dist.version) for point in points if point.dist}
        return tuple(Plugin(distribution=name, version=version) for name, version in sorted(found))


def families(*named: Plugin, tolerant: bool = False) -> Families:
    """What comes with ser, what packages have, and what the named plug-ins have.

    Args:
        named: As recipes and options name them, by absolute paths.
        tolerant: Leave out what a run's recipe has recorded and what is not there any more.

    Raises:
        UserError: One cannot be had, or two of them have a name in common.
    """
    methods, addons = Table(METHOD, method_configs()), Table(ADDON, addon_configs())
    files: dict[str, Plugin] = {}
    notes: list[str] = []
    missing: list[str] = []
    for one in named:
        if one.file is None:
            notes += _note_on_package(one)
            continue
        path, recorded = _where(one), one.sha256 is not None
        try:
            found = load_file(path, sha256=one.sha256)
        except SerError as error:
            if not (tolerant and recorded):
                raise
            missing.append(str(error))
            continue
        methods.add(found.methods, f"the plug-in {path}", recorded=recorded)
        addons.add(found.addons, f"the plug-in {path}", recorded=recorded)
        notes += _note_on_file(one, found)
        files.setdefault(found.sha256, one.model_copy(update={"sha256": found.sha256}))
    return Families(methods, addons, tuple(files.values()), tuple(notes), tuple(missing))


def _where(one: Plugin) -> Path:
    """The file of a plug-in; for a run's copy that is lost, the file that was copied."""
    path = Path(str(one.file))
    original = None if one.copied_from is None else Path(one.copied_from)
    return original if original is not None and original.is_file() and not path.is_file() else path


def _note_on_file(one: Plugin, found: PluginFile) -> list[str]:
    """Whether the file that was copied into a run has changed since."""
    if one.copied_from is None:
        return []
    try:
        now = hashlib.sha256(Path(one.copied_from).read_bytes()).hexdigest()
    except OSError:
        return []
    if now == found.sha256:
        return []
    return [f"note: {one.copied_from} has changed since: {one.file} is used, the copy of then"]


def _note_on_package(one: Plugin) -> list[str]:
    """Whether a package is another version than that which a run was made with."""
    version = _installed_version(str(one.distribution))
    if version in (None, one.version) or one.version is None:
        return []
    return [f"note: {one.distribution} is {version} now, and was {one.version}"]


def _installed_version(distribution: str) -> str | None:
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return None


def not_installed(named: tuple[Plugin, ...]) -> list[str]:
    """The packages of a run's recipe that are not there."""
    return [
        f"{one.distribution} {one.version or ''}".strip()
        for one in named
        if one.distribution is not None and _installed_version(one.distribution) is None
    ]


# -- a run's own copies ----------------------------------------------------------------------------


def copies_for_run(plugins: tuple[Plugin, ...]) -> tuple[tuple[Plugin, ...], dict[str, bytes]]:
    """What a run's recipe says of its plug-ins, and the files it keeps: name → content."""
    records: list[Plugin] = []
    contents: dict[str, bytes] = {}
    for one in plugins:
        if one.file is None or one.sha256 is None:
            records.append(one)
            continue
        path, number = Path(one.file), 1
        name = path.name
        while name in contents:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        contents[name] = LOADED[one.sha256].content
        records.append(
            one.model_copy(
                update={"file": f"plugins/{name}", "copied_from": one.copied_from or one.file}
            )
        )
    return tuple(records), contents
