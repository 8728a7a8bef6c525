"""YAML as people write it: numbers like 1e-3, no base 60, no dates, no repeated keys."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from sercli.errors import UserError
from sercli.runs.reading import MIB, read_bytes, shown

LARGEST = MIB
_DEEPEST = 32
_LONGEST_REASON = 300
_PLAIN = r"(?:[\w./+()-]+(?: [\w./+()-]+)*|'[^'\n]*'|\[\]|\{\})"
# A line as `dump_yaml` writes them: a key, a value, or both, without marks that need a reader.
_PLAIN_LINE = re.compile(rf" *(?:- )*(?:[A-Za-z_][\w.-]*:(?: {_PLAIN})?|{_PLAIN})|", re.ASCII)
_MOST = 10_000  # keys and values, repeated ones counted each time; a resolved recipe has 400


class _Bounded(Composer):
    """Builds no more than a person writes.

    An alias counts for all it stands for, so that a few lines cannot become a thousand million
    values (nor one that contains itself).
    """

    check_event: Any  # of the parser that it is put together with
    peek_event: Any

    def begin(self) -> None:
        self._level = self._count = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        line = self.peek_event().start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._sizes:
                raise yaml.YAMLError(f"an alias stands inside of what it names (line {line})")
            self._count += self._sizes[node]
        else:
            before = self._count
            self._count += 1
            self._level += 1
            if self._level > _DEEPEST:
                raise yaml.YAMLError(f"more than {_DEEPEST} levels (line {line})")
            node = super().compose_node(parent, index)
            self._level -= 1
            if node is not None:
                self._sizes[node] = self._count - before
        if self._count > _MOST:
            raise yaml.YAMLError(f"more than {_MOST} values (line {line})")
        return node


class _Loader(_Bounded, yaml.SafeLoader):
    """YAML's safe loader with numbers and booleans as people write them, and no repeated keys."""

    def __init__(self, stream: str) -> None:
        yaml.SafeLoader.__init__(self, stream)
        self.begin()


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
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if isinstance(key, list | dict | set | bytearray):
            raise yaml.YAMLError(f"a key must be text (line {line})")
        if key in found:
            raise yaml.YAMLError(f"the key {shown(key)} stands twice (again in line {line})")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _swift() -> type[Any] | None:
    """`_Loader` on libyaml's scanner, which takes a sixth of the time; None: it is not there."""
    parser: type[Any] | None = getattr(getattr(yaml, "cyaml", None), "CParser", None)
    if parser is None:
        return None
    own = {
        name: getattr(_Bounded, name)
        for name in dir(_Bounded)
        if name.startswith(("compose_", "get_", "check_node"))  # CParser has such, without bounds
    }

    def start(self: Any, stream: str) -> None:
        parser.__init__(self, stream)
        for part in (Composer, SafeConstructor, Resolver):
            part.__init__(self)
        self.begin()

    own |= {"__init__": start, "yaml_implicit_resolvers": _Loader.yaml_implicit_resolvers}
    own |= {"yaml_constructors": _Loader.yaml_constructors}
    return type("_Swift", (parser, _Bounded, SafeConstructor, Resolver), own)


_SWIFT = _swift()


def parse_yaml(text: str) -> Any:
    """Parse YAML safely: `1e-3` is a number, `no` a string, a key that stands twice an error.

    Raises:
        yaml.YAMLError: It is no YAML, or more than a person writes.
    """
    # libyaml takes tabs and byte order marks, among others, otherwise than PyYAML: it is given what
    # `dump_yaml` writes. Of what it refuses PyYAML says why.
    if _SWIFT is not None and all(map(_PLAIN_LINE.fullmatch, text.split("\n"))):
        with suppress(Exception):
            return yaml.load(text, Loader=_SWIFT)
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # Of PyYAML's constructors, whose tags (`!!int x`, `!!timestamp x`) do not look first.
        raise yaml.YAMLError(f"a value is not of its tag's kind ({error})") from error


def in_short(error: yaml.YAMLError | ValueError) -> str:
    """What YAML's parser says, in one line that is not long."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def read_mapping(file: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Raises:
        UserError: Missing, unreadable, too large, no YAML, or not a mapping with text for keys.
    """
    try:
        value = parse_yaml(read_bytes(file, limit=LARGEST).decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no valid YAML: {in_short(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds {type(value).__name__}", "a recipe is a mapping of settings")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{file} has the key {shown(key)}", "a recipe's keys are text")
    return value


def spelt(text: str) -> Any:
    """The tree that `parse_yaml` makes of a text, with every value as it is written: `1_0`, `007`.

    To be asked only of what `parse_yaml` has accepted.
    """
    return yaml.load(text, Loader=yaml.BaseLoader)


def dump_yaml(tree: Any) -> str:
    """Text that `parse_yaml` reads as an equal value; keys keep their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
