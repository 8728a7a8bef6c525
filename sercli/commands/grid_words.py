"""What the commands of a grid mean: read by the command line itself, and refused like it."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from sercli.errors import UserError


@functools.cache
def _evaluators() -> Mapping[str, Any]:
    """The command of each protocol, as click has it."""
    from typer.main import get_command

    from sercli.protocols import PROTOCOLS

    app = typer.Typer()
    for name in PROTOCOLS:
        module = name.replace("-", "_")
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(f"sercli.commands.{module}")
            app.command(name)(getattr(found, module))
    return get_command(app).commands  # type: ignore[attr-defined,no-any-return]


@functools.cache
def _preparations() -> Mapping[str, Any]:
    """What makes directories: commands of `ser data`."""
    from typer.main import get_command

    from sercli.commands import data

    group = get_command(data.app)
    return {f"data {name}": one for name, one in group.commands.items()}  # type: ignore[attr-defined]


def read_words(words: Sequence[str]) -> Mapping[str, Any]:
    """What the words of an evaluator or a preparation mean: option → value.

    Raises:
        UserError: There is no such command, or it does not take them.
    """
    from sercli.grids.reading import suggestion

    known = {**_evaluators(), **_preparations()}
    name = " ".join(words[:2]) if words[0] == "data" else words[0]
    if name not in known:
        near = suggestion(name, known) or f"known: {', '.join(known)}"
        raise UserError(f"{name} in the grid", "an evaluator, or `data`, is needed", near)
    usage_error: Any = typer.BadParameter.__bases__[0]
    try:
        context = known[name].make_context(name, list(words[len(name.split()) :]))
    except usage_error as error:
        raise UserError(f"{name} in the grid: {error.format_message().rstrip('.')}") from error
    except (typer.Exit, SystemExit) as error:
        raise UserError(f"{name} in the grid: it asks for help", "it would do nothing") from error
    return dict(context.params)
