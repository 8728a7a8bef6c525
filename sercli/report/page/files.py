"""The folder beside a page: every figure as PNG and SVG, and its data as CSV."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from matplotlib.figure import Figure

from sercli.errors import UserError
from sercli.report.figures.style import save_figure
from sercli.report.formats.machine import no_formula
from sercli.report.page.grids import HeatMap
from sercli.report.page.pictures import Picture
from sercli.runs.files import read_json, write_atomic, write_json, write_text
from sercli.runs.reading import MIB, read_bytes
from sercli.visible import visible

if TYPE_CHECKING:
    from sercli.report.page.charts import Chart

_LIST = "figures.json"
_OURS = re.compile(r"[a-z0-9][a-z0-9-]{0,99}\.(png|svg|csv)")
_LARGEST = 16 * MIB
# What of SVG does something: matplotlib writes none of it, so that a file with it is no figure.
_ACTS = re.compile(rb"<script|<foreignobject|<!entity|javascript:|\son\w+\s*=", re.IGNORECASE)


class Folder:
    """Figures of a page; what an earlier page left there and this one has not is removed.

    Args:
        page: The page's file: `results.html` has its figures in `results-figures`.
    """

    def __init__(self, page: Path) -> None:
        self.path = page.with_name(f"{page.stem}-figures")
        self.names: list[str] = []
        self._files: list[str] = []

    @property
    def name(self) -> str:
        return f"{self.path.name}/"

    def add_chart(self, name: str, figure: Figure, description: str, data: Chart) -> list[str]:
        """Write a chart and its data; returns the names of the files."""
        return self._add(name, figure, description, data.heads, data.rows)

    def svg_of(self, name: str) -> bytes:
        """The SVG of a chart that was added."""
        return (self.path / f"{name}.svg").read_bytes()

    def add_map(self, one: HeatMap) -> list[str]:
        """Write a heat map and its numbers."""
        heads = (one.row_head, *(f"{one.column_head} {column}" for column in one.columns), "mean")
        rows = [(name, *values, mean) for name, values, mean in one.rows]
        if one.drawn is None:
            return self._told(one.name, [*self._drawn(one), self._table(one.name, heads, rows)])
        copied = self._copied(one.name, (one.drawn, one.drawn.with_suffix(".svg")))
        return self._told(one.name, [*copied, self._table(one.name, heads, rows)])

    def _drawn(self, one: HeatMap) -> list[str]:
        """Draw a heat map that no evaluator left a picture of."""
        picture, description = one.picture(), visible(one.description)
        made = {"png": picture.png(description), "svg": picture.svg(description)}
        for suffix, data in made.items():
            write_atomic(self.path / f"{one.name}.{suffix}", partial(_write, data))
        return [f"{one.name}.{suffix}" for suffix in made]

    def add_picture(self, one: Picture) -> list[str]:
        """Copy a picture of a run; its data are the run's own arrays."""
        name = f"picture-{len(self.names) + 1}-{one.name}"
        return self._told(name, self._copied(name, (one.png, one.png.with_suffix(".svg"))))

    def _copied(self, name: str, paths: Sequence[Path]) -> list[str]:
        """Copy a figure's files as they are, those that can be read and only show something."""
        written = []
        for path in paths:
            try:
                data = read_bytes(path, limit=_LARGEST)
            except UserError:
                continue
            if path.suffix == ".svg" and _ACTS.search(data):
                continue
            file = f"{name}{path.suffix}"
            write_atomic(self.path / file, partial(_write, data))
            written.append(file)
        return written

    def close(self) -> None:
        """Remove what an earlier page left, and write down what is of this one."""
        listed = self.path / _LIST
        earlier: Sequence[object] = ()
        if os.path.lexists(listed):
            try:
                told = read_json(listed).get("files")
            except UserError:
                told = None
            earlier = told if isinstance(told, list) else ()
        for name in earlier:
            if isinstance(name, str) and _OURS.fullmatch(name) and name not in self._files:
                (self.path / name).unlink(missing_ok=True)
        if self._files:
            write_json(listed, {"files": self._files})
        elif os.path.lexists(listed):
            listed.unlink()

    def _add(
        self,
        name: str,
        figure: Figure,
        description: str,
        heads: Sequence[str],
        rows: Sequence[Sequence[object]],
    ) -> list[str]:
        paths = save_figure(figure, self.path, name, description=visible(description))
        return self._told(name, [*(path.name for path in paths), self._table(name, heads, rows)])

    def _table(self, name: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
        write_text(self.path / f"{name}.csv", csv_of(heads, rows))
        return f"{name}.csv"

    def _told(self, name: str, files: list[str]) -> list[str]:
        if files:
            self.names.append(name)
            self._files += files
        return files


def csv_of(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """RFC 4180; numbers in full, missing ones empty, and no text a formula."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(heads)
    writer.writerows([_field(value) for value in row] for row in rows)
    return stream.getvalue()


def _field(value: object) -> str:
    if value is None:
        return ""
    return no_formula(visible(value)) if isinstance(value, str) else str(value)


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)
