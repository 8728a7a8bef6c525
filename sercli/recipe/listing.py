"""What there is to say about recipes: which come with ser, what each is, where two differ.

A recipe file opens with comments: what it is, what has been published for it, and its command.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sercli.errors import UserError, from_os_error
from sercli.recipe.files import Resolved, recipe_names, recipes_root
from sercli.recipe.schema import Recipe

_COMMAND = re.compile(r"(ser|torchrun) ")
_PUBLISHED = re.compile(r"\s*\bPublished:\s*(?P<what>.*?)\s*(?:\.(?=\s|$)|$)")


@dataclass(frozen=True)
class Head:
    """The comments that a recipe file opens with.

    Attributes:
        recipe: Name or file of the recipe.
        about: What it is; empty if the file does not say.
        published: The published result, with its protocol; empty if there is none.
        command: The command that trains it; empty if the file does not say.
    """

    recipe: str
    about: str
    published: str
    command: str


def read_head(name: str) -> Head:
    """The head of a recipe that comes with ser, or of a YAML file.

    Raises:
        UserError: The file cannot be read.
    """
    packaged = recipes_root() / f"{name}.yaml"
    file = packaged if packaged.is_file() else Path(name)
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise from_os_error(error, f"cannot read {file}") from error
    about: list[str] = []
    command, told = "", False
    for line in _comments(text):
        if _COMMAND.match(line):
            command = command or line
            told = bool(about)
        elif not line:
            told = bool(about)
        elif not told:
            about.append(line)
    description = " ".join(about)
    found = _PUBLISHED.search(description)
    if found is None:
        return Head(name, description, "", command)
    rest = description[: found.start()] + description[found.end() :]
    return Head(name, rest.strip(), found["what"], command)


def markdown_table(heads: Sequence[Head]) -> str:
    """The recipes as a Markdown table, which recipes/README.md holds.

    Args:
        heads: A row each, in this order.

    Returns:
        Lines without a newline at the end.
    """
    lines = ["| recipe | what it is | published | command |", "| --- | --- | --- | --- |"]
    for head in heads:
        command = f"`{head.command}`" if head.command else ""
        cells = (f"`{head.recipe}`", head.about, head.published, command)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def _comments(text: str) -> Iterator[str]:
    """The comment lines before the first setting; what is for an editor is none."""
    for line in text.splitlines():
        if line.startswith("# yaml-language-server:"):
            continue
        if line.startswith("#"):
            yield line.removeprefix("#").strip()
        elif line.strip():
            return


def runnable_names() -> list[str]:
    """Names of the recipes that come with ser, but for those that only serve to be extended."""
    return [name for name in recipe_names() if name.rpartition("/")[2] != "base"]


def matching_names(pattern: str) -> list[str]:
    """Those of `runnable_names` that contain a text, or match a shell pattern such as `shapes/*`.

    Raises:
        UserError: There is none.
    """
    names, wanted = runnable_names(), pattern.casefold()
    if re.search(r"[*?[]", pattern):
        found = [name for name in names if fnmatchcase(name.casefold(), wanted)]
    else:
        found = [name for name in names if wanted in name.casefold()]
    if not found:
        close = difflib.get_close_matches(wanted.strip("*"), names, n=1, cutoff=0.4)
        raise UserError(
            f"no recipe matches {pattern!r}",
            "a part of a name or a shell pattern such as 'imagenet/*' is needed",
            f"did you mean {close[0]}?" if close else "`ser recipe list` shows all",
        )
    return found


def located(name: str) -> str:
    """The name under which a recipe is resolved: a run directory stands for its recipe.yaml."""
    file = Path(name) / "recipe.yaml"
    return str(file) if name not in recipe_names() and os.path.isfile(file) else name


def values_of(resolved: Resolved) -> dict[str, Any]:
    """Dotted key → value, as it would stand in a YAML file."""
    tree = resolved.recipe.model_dump(mode="json")
    return {key: _at(tree, key) for key in resolved.origins}


def _at(tree: Any, key: str) -> Any:
    return functools.reduce(lambda node, part: node[part], key.split("."), tree)


@dataclass(frozen=True)
class Value:
    """The value of a key, and where it came from."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Difference:
    """A key in which two recipes differ; None on the side that does not have it."""

    key: str
    first: Value | None
    second: Value | None


def differences(first: Resolved, second: Resolved) -> list[Difference]:
    """The keys in which two recipes differ, in the order of a recipe.yaml."""
    sides = [
        {key: Value(value, one.origins[key]) for key, value in values_of(one).items()}
        for one in (first, second)
    ]
    sections = list(Recipe.model_fields)
    keys = sorted(dict.fromkeys([*sides[0], *sides[1]]), key=lambda k: sections.index(_section(k)))
    found = [Difference(key, sides[0].get(key), sides[1].get(key)) for key in keys]
    return [one for one in found if not _equal(one.first, one.second)]


def _section(key: str) -> str:
    return key.partition(".")[0]


def _equal(first: Value | None, second: Value | None) -> bool:
    if first is None or second is None:
        return first is second
    return bool(first.value == second.value)
