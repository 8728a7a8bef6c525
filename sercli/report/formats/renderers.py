"""Format → what writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sercli.report.compare.tables import Table
from sercli.report.formats.html import html
from sercli.report.formats.latex import latex
from sercli.report.formats.machine import csv_text, json_text
from sercli.report.formats.markdown import markdown
from sercli.report.formats.terminal import plain

# -- all formats ----------------------------------------------------------------------------------

RENDERERS: Mapping[str, Callable[[Table], str]] = {
    "terminal": plain,
    "markdown": markdown,
    "latex": latex,
    "csv": csv_text,
    "html": html,
    "json": json_text,
}
