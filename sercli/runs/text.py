"""YAML as people write it: numbers like 1e-3, no base 60, no dates, no repeated keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sercli.errors import UserError, from_os_error


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with numbers and booleans as people write them, and no repeated keys."""


_Loader.yaml_implicit_resolvers = {
    key: [
        (tag, expression)
        for tag, expression in resolvers
        if not tag.endswith((":bool", ":float", ":int", ":timestamp"))
    ]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else than text."""


# Strings that either reader takes for something else are quoted.
_Dumper.yaml_implicit_resolvers = {
    key: [
        *_Loader.yaml_implicit_resolvers.get(key, []),
        *yaml.SafeDumper.yaml_implicit_resolvers.get(key, []),
    ]
    for key in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            line = node.value[index][0].start_mark.line + 1
            raise yaml.YAMLError(f"the key {key!r} stands twice (again in line {line})")
    return dict(
        zip(keys, (loader.construct_object(v, deep=True) for _, v in node.value), strict=True)
    )


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str) -> Any:
    """Parse YAML safely: `1e-3` is a number, `no` a string, a key that stands twice an error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError) as error:  # of PyYAML's constructors
        raise yaml.YAMLError(str(error)) from error


def read_mapping(file: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Raises:
        UserError: Missing, unreadable, no YAML, or not a mapping.
    """
    try:
        value = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise from_os_error(error, f"cannot read {file}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no valid YAML: {reason}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds {type(value).__name__}", "a recipe is a mapping of settings")
    return value


def spelt(text: str) -> Any:
    """The tree that `parse_yaml` makes of a text, with every value as it is written: `1_0`, `007`.

    To be asked only of what `parse_yaml` has accepted.
    """
    return yaml.load(text, Loader=yaml.BaseLoader)


def dump_yaml(tree: Any) -> str:
    """Text that `parse_yaml` reads as an equal value; keys keep their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
