"""Recipes from YAML files: found by name, merged, and resolved with where each value came from.

Order: defaults < recipe (one `extends:` a file) < `--set` < named flags. Unknown keys, values out
of range and settings that would be ignored are errors.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from sercli.errors import UserError
from sercli.recipe.class_lists import read_class_list
from sercli.recipe.keys import explain, given_way, is_timms, refuse_unknown, text_keys
from sercli.recipe.model import ARCHITECTURE
from sercli.recipe.schema import AddonConfig, MethodConfig, Plugin, Recipe
from sercli.recipe.training import USUAL, Train
from sercli.recipe.values import Section
from sercli.runs.places import require_place
from sercli.runs.reading import shown
from sercli.runs.text import parse_yaml, read_mapping, spelt

GRIDS = "grids"  # of the folder of recipes: what is in it are grids of runs (`sercli.grids`)
_CLASSES = "data.classes"
_OPTIMISER = Train().optimiser  # where nothing is said
_LONGEST_CHAIN = 32


@dataclass(frozen=True)
class Resolved:
    """A recipe with its history.

    Attributes:
        recipe: Every setting, typed and checked.
        name: Name or file it was read from.
        origins: Dotted key → where the value came from ("default" where nobody set it).
        notes: What there is to tell of it, a line each.
    """

    recipe: Recipe
    name: str
    origins: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeFile:
    """What one file of those that make a recipe says; or the command line, which comes last.

    Attributes:
        origin: What it is called.
        values: Dotted key → what it says.
        plugins: Those it names, by absolute paths.
        texts: Dotted key → how it spells that, where it spells it.
    """

    origin: str
    values: dict[str, Any]
    plugins: tuple[Plugin, ...] = ()
    texts: Mapping[str, Any] = field(default_factory=dict)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise UserError(f"recipe key {key}", f"{parent} is a value, not a section")
            node = child
        node[leaf] = value
    return tree


def recipes_root() -> Path:
    """The folder of the recipes that come with ser: in the wheel, or in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with ser, e.g. `shapes/moco-ser`."""
    root = recipes_root()
    names = (file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(f"{GRIDS}/"))


def _find(name: str, *, beside: Path | None = None) -> Path:
    require_place(name, "recipe")
    for candidate in (
        *([beside / f"{name}.yaml", beside / name] if beside else []),
        recipes_root() / f"{name}.yaml",
        Path(name),
    ):
        if os.path.isfile(candidate):  # False for a name that no file can have
            return candidate
    close = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else "`ser recipe list` shows them"
    raise UserError(
        f"no recipe {shown(name)}", "a name under recipes/ or a YAML file is needed", hint
    )


def _full_name(file: Path, given: str) -> str:
    """What a file is called as an origin: a recipe of ser by its full name, else as given."""
    file, root = file.resolve(), recipes_root().resolve()
    return file.relative_to(root).with_suffix("").as_posix() if root in file.parents else given


def read(name: str) -> list[RecipeFile]:
    """Read a recipe and what it extends, the most basic first.

    Args:
        name: Name under `recipes/`, or a YAML file.

    Raises:
        UserError: No such recipe, bad YAML, or more of them than anybody would chain.
    """
    files: list[RecipeFile] = []
    seen: set[Path] = set()
    beside: Path | None = None
    while True:
        file = _find(name, beside=beside)
        if file.resolve() in seen:
            raise UserError(f"{file} extends itself", "recipes must not extend in a circle")
        if len(seen) == _LONGEST_CHAIN:
            raise UserError(
                f"{files[-1].origin} is extended by {_LONGEST_CHAIN} recipes one after another",
                f"at most {_LONGEST_CHAIN} are read",
            )
        seen.add(file.resolve())
        this, parent = _read_file(file, name)
        files.append(this)
        if parent is None:
            return files[::-1]
        name, beside = parent, file.parent


def _read_file(file: Path, name: str) -> tuple[RecipeFile, str | None]:
    """What one file says, and what it extends."""
    tree = read_mapping(file)
    parent = tree.pop("extends", None)
    plugins = plugins_of(tree.pop("plugins", None), beside=file)
    pairs = list(flatten(tree))
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise UserError(f"{file} sets {twice} twice", "a key may stand once, dotted or nested")
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{file} extends {shown(parent)}", "`extends:` takes one recipe name")
    texts = dict(flatten(spelt(file.read_text(encoding="utf-8-sig"))))
    values = _with_class_list(values, texts, file.parent)
    return RecipeFile(_full_name(file, name), values, plugins, texts), parent


def _with_class_list(values: dict[str, Any], texts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`data.classes: FILE` becomes the names in it: what a run is does not change with the file.

    Args:
        values: Dotted key → what a recipe says.
        texts: How it spells that; what is no longer as it was spelt leaves it.
        folder: What the file's path is relative to.
    """
    given = values.get(_CLASSES)
    if given is None or isinstance(given, list):
        return values
    file = folder / str(texts.pop(_CLASSES, given))
    return {**values, _CLASSES: list(read_class_list(file))}


def plugins_of(given: Any, *, beside: Path) -> tuple[Plugin, ...]:
    """What `plugins:` of a recipe file says, with absolute paths.

    Raises:
        UserError: It is no list of files or packages.
    """
    if given is None:
        return ()
    try:
        plugins = TypeAdapter(tuple[Plugin, ...]).validate_python(given)
    except ValidationError as error:
        raise UserError(
            f"{beside}: plugins: {error.errors()[0]['msg']}",
            "a list of Python files is needed",
            "e.g. plugins: [mine.py], by paths relative to the recipe",
        ) from error
    folder = beside.absolute().parent
    return tuple(
        one if one.file is None else one.model_copy(update={"file": str(folder / one.file)})
        for one in plugins
    )


def _merge(
    files: Sequence[RecipeFile], addons: Mapping[str, type[AddonConfig]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Later files win, and what was said of something else gives way, see `given_way`.

    A flag drops nothing of `--set`: both are of one command line.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for one in files:
        for key in given_way(one.values, values, addons):
            if origins[key] != "--set":
                del values[key]
        values.update(one.values)
        origins.update(dict.fromkeys(one.values, one.origin))
    return values, {key: origins[key] for key in values}


def resolve(
    files: Sequence[RecipeFile],
    name: str,
    *,
    methods: Mapping[str, type[MethodConfig]],
    addons: Mapping[str, type[AddonConfig]],
    timm_settings: Callable[[str], Mapping[str, Any]] | None = None,
    settings: tuple[str, ...] = (),
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """Resolve a recipe that is read.

    Its plug-ins are left out: it takes more than a recipe to load them (`families.resolve`).

    Args:
        files: As `read` gives them.
        name: Name under `recipes/`, or a YAML file.
        methods: Method name → its settings.
        addons: Add-on name → its settings.
        timm_settings: `timm:NAME` → the settings of that ViT, all of `ARCHITECTURE`; asked only
            where the recipe does not say them all.
        settings: `--set` values, each "dotted.key=YAML value".
        flags: Values of named options by dotted key.

    Raises:
        UserError: Unknown key (with a suggestion) or bad value.
    """
    parsed = [_parse_setting(text) for text in settings]
    told = dict(flatten({key: value for key, value, _ in parsed}))
    texts = dict(flatten({key: text for key, _, text in parsed}))
    if any(key.partition(".")[0] == "plugins" for key in told):
        raise UserError("--set plugins", "plug-ins are loaded before settings", "use --plugin FILE")
    told = _with_class_list(told, texts, Path())
    everything = [
        *files,
        RecipeFile("--set", told, texts=texts),
        RecipeFile("flag", dict(flags or {})),
    ]
    values, origins = _merge(everything, addons)
    _refuse_layer_without_addon(values, origins)
    spellings: dict[str, Any] = {}
    for one in everything:
        spellings |= {key: one.texts.get(key, value) for key, value in one.values.items()}
    vit = values.get("model.name")
    missing = [key for key in sorted(ARCHITECTURE) if f"model.{key}" not in values]
    if timm_settings is not None and isinstance(vit, str) and is_timms(vit) and missing:
        found = timm_settings(vit)
        values |= {f"model.{key}": found[key] for key in missing}
        origins |= {f"model.{key}": vit for key in missing}
    return _resolve(values, origins, name, methods=methods, addons=addons, spellings=spellings)


def from_mapping(
    tree: Mapping[str, Any],
    *,
    methods: Mapping[str, type[MethodConfig]],
    addons: Mapping[str, type[AddonConfig]],
    name: str = "recipe",
) -> Resolved:
    """Resolve settings given as nested mappings (as `Recipe.model_dump` gives them)."""
    values, origins = _merge([RecipeFile(name, dict(flatten(tree)))], addons)
    return _resolve(values, origins, name, methods=methods, addons=addons)


def _resolve(
    values: dict[str, Any],
    origins: dict[str, str],
    name: str,
    *,
    methods: Mapping[str, type[MethodConfig]],
    addons: Mapping[str, type[AddonConfig]],
    spellings: Mapping[str, Any] | None = None,
) -> Resolved:
    tree = _unflatten(values)
    method = _choice(tree, "method", methods)
    addon = _choice(tree, "addon", addons)
    if spellings:
        # YAML makes a number of `1_0`; where a text is wanted, it is what was written.
        texts = text_keys(method, addon) & spellings.keys()
        written = {key: spellings[key] for key in texts if values.get(key) is not None}
        values = {**values, **written}
        tree = _unflatten(values)
    refuse_unknown(values, method, addon, origins)
    section = ""
    try:
        expanded = addon.expand(tree["addon"], method=tree["method"]["name"])
        section = "method"
        tree["method"] = method.model_validate(tree["method"])
        section = "addon"
        tree["addon"] = addon.model_validate({**expanded, **tree["addon"]})
        section = ""
        recipe = Recipe.model_validate(tree, context={"methods": methods})
    except ValidationError as error:
        raise UserError(explain(error, origins, section)) from error
    chosen = tree["addon"].model_dump().get("preset")
    reason = f"method {recipe.method.name}" if chosen is None else f"preset {chosen}"
    filled = dict.fromkeys((f"addon.{key}" for key in expanded), reason)
    if (optimiser := recipe.train.optimiser) != _OPTIMISER:
        filled |= dict.fromkeys((f"train.{k}" for k in USUAL[optimiser]), f"optimiser {optimiser}")
    origins = {**filled, **origins}
    everything = dict(flatten(recipe.model_dump(mode="json")))
    return Resolved(recipe, name, {key: origins.get(key, "default") for key in everything})


def _parse_setting(text: str) -> tuple[str, Any, Any]:
    """The key, the value, and how it is spelt."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {shown(text)}", "it takes key=value", "e.g. --set train.lr=1e-3")
    try:
        return key.strip(), parse_yaml(value), spelt(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {shown(text)}", "the value is no valid YAML") from error


def _refuse_layer_without_addon(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    if values.get("addon.name") == "none" and "addon.layer" in values:
        source = "--layer" if origins["addon.layer"] == "flag" else "addon.layer"
        raise UserError(
            f"{source} {values['addon.layer']} with --addon none",
            "without an add-on no layer is tapped",
            f"leave {source} out, or choose an add-on",
        )


_S = TypeVar("_S", bound=Section)


def _choice(tree: dict[str, Any], section: str, table: Mapping[str, type[_S]]) -> type[_S]:
    given = tree.get(section)
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(name, str) or name not in table:
        close = difflib.get_close_matches(str(name), list(table), n=1)
        hint = f"did you mean {close[0]}?" if close else ""
        raise UserError(f"{section}.name {shown(name)}", f"known: {', '.join(table)}", hint)
    return table[name]
