"""The command line is an API: what every command takes stands in tests/golden/options.txt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from sercli.cli import app

GOLDEN = Path(__file__).parents[1] / "golden" / "options.txt"
REGENERATE = "python tests/commands/test_surface.py > tests/golden/options.txt"


def surface() -> str:
    """One paragraph a command: its arguments in their order, then its options by name."""
    return "\n\n".join(
        "\n".join([name, *(f"  {line}" for line in lines(callback))])
        for name, callback in sorted(commands("ser", app))
    )


def commands(name: str, group: typer.Typer) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command with its callback, also those of groups."""
    if group.registered_callback is not None and group.registered_callback.callback is not None:
        yield name, group.registered_callback.callback
    for one in group.registered_commands:
        assert one.callback is not None
        yield f"{name} {one.name or one.callback.__name__}", one.callback
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from commands(f"{name} {below.name}", below.typer_instance)


def lines(callback: Callable[..., Any]) -> list[str]:
    arguments, options = [], []
    for parameter in inspect.signature(callback, eval_str=True).parameters.values():
        assert get_origin(parameter.annotation) is Annotated, parameter
        kind, info = get_args(parameter.annotation)
        if isinstance(info, ArgumentInfo):
            arguments.append(line(info.metavar or parameter.name, kind, info, parameter))
        else:
            options.append(line(flags(info, kind, parameter.name), kind, info, parameter))
    return arguments + sorted(options)


def flags(info: OptionInfo, kind: Any, name: str) -> str:
    declared = (info.default, *(info.param_decls or ()))  # in Annotated, Typer's first is a flag
    given = [one for one in declared if isinstance(one, str)]
    plain = f"--{name.strip('_').replace('_', '-')}"
    if not given:
        given = [f"{plain}/--no-{plain.removeprefix('--')}" if kind is bool else plain]
    return " ".join([", ".join(given), *filter(None, [info.metavar])])


def line(name: str, kind: Any, info: OptionInfo | ArgumentInfo, given: inspect.Parameter) -> str:
    default = given.default.value if isinstance(given.default, Enum) else given.default
    facts = [type_name(kind)]
    if info.min is not None or info.max is not None:
        facts.append(f"{info.min}…{'' if info.max is None else info.max}")
    facts.append("required" if default is inspect.Parameter.empty else f"default {default}")
    return "; ".join([name, *facts])


def type_name(kind: Any) -> str:
    parts = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Literal:
        return "one of " + " ".join(parts)
    if get_origin(kind) is list:
        return f"{type_name(parts[0])}, repeatable"
    if parts:  # | None
        return type_name(parts[0])
    if issubclass(kind, Enum):
        return "one of " + " ".join(one.value for one in kind)
    return "flag" if kind is bool else kind.__name__.lower()


def test_every_command_takes_what_it_is_known_to_take() -> None:
    assert surface() + "\n" == GOLDEN.read_text(encoding="utf-8"), (
        "The command line is an API. If this change is meant, write the list anew with\n"
        f"  {REGENERATE}\nand name the change in CHANGELOG.md."
    )


if __name__ == "__main__":
    print(surface())
