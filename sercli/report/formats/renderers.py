"""Format → what writes it; a format's own module is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sercli.report.compare.tables import Table


def _of(module: str, function: str) -> Callable[[Table], str]:
    """The function of that name in a module beside this one."""

    def render(table: Table) -> str:
        text: str = getattr(import_module(f"{__package__}.{module}"), function)(table)
        return text

    return render


# The command line's choices, in their order: to be imported in no time.
RENDERERS: Mapping[str, Callable[[Table], str]] = {
    "terminal": _of("terminal", "plain"),
    "markdown": _of("markdown", "markdown"),
    "latex": _of("latex", "latex"),
    "csv": _of("machine", "csv_text"),
    "html": _of("html", "html"),
    "json": _of("machine", "json_text"),
}
