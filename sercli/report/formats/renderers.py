"""Format → what writes it; a format's own module is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

# All that runs measured, and no table.
FRAMES = ("tidy-csv", "parquet")


def render(tables: Sequence[Table], form: str, *, latex_width: str | None = None) -> str:
    """One table or several as one text.

    Args:
        latex_width: Text width that tables in LaTeX are laid out for (`latex.text_width`); None
            with other formats.

    Raises:
        UserError: There is no such format or width, or the format holds one table only.
    """
    from sercli.errors import UserError

    if latex_width is not None:
        from sercli.report.formats.latex import latex, text_width

        width = text_width(latex_width)
        return "\n".join(latex(table, width) for table in tables)
    if len(tables) == 1:
        return tables[0].render(form)
    if form in _SEVERAL:
        return _SEVERAL[form](tables)
    if form in _ONE_ONLY:
        raise UserError(
            f"--format {form} of {len(tables)} tables",
            "a file of it holds one",
            f"name one of them with --table, or take --format {_ONE_ONLY[form]}",
        )
    return "\n".join(table.render(form) for table in tables)


def _json(tables: Sequence[Table]) -> str:
    from sercli.report.formats.machine import tables_json

    return tables_json(tables)


def _markdown(tables: Sequence[Table]) -> str:
    return "\n".join(f"## {table.title}\n\n{table.render('markdown')}" for table in tables)


def _html(tables: Sequence[Table]) -> str:
    from sercli.report.formats.html import html_of

    return html_of(tables, "Tables of the paper")


_SEVERAL: Mapping[str, Callable[[Sequence[Table]], str]] = {
    "json": _json,
    "markdown": _markdown,
    "html": _html,
}
_ONE_ONLY = {"csv": "tidy-csv"}
