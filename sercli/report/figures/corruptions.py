"""A heat map of corruptions × severities."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sercli.report.figures.style import GREY, Values, numbers_of, styled
from sercli.visible import visible, visible_lines

_GAP = 0.2  # cells, between the severities and their mean
# Inside the axes: they need no room, which takes long to be found out for each.
_CELL: Any = {"ha": "center", "va": "center", "fontsize": 7, "in_layout": False}


@dataclass(frozen=True)
class CorruptionRow:
    """One row of the heat map.

    Attributes:
        name: Name of the corruption, as in results.
        group: What kind it is; rows of one kind stand together.
        extra: Whether it enters no mean.
        accuracy: Top-1 by severity, percent (None: not measured).
        mean: Over the severities.
        ce: Error relative to AlexNet's, percent; None leaves the place empty.
    """

    name: str
    group: str
    extra: bool
    accuracy: Values
    mean: float | None
    ce: float | None


def corruption_figure(rows: Sequence[CorruptionRow], *, title: str) -> Figure:
    """Top-1 by corruption (rows) and severity (columns), beside the mean and CE of each row.

    Colours run from 0 to 100 %, so that figures of several models can be compared.
    """
    shades: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 100, "aspect": "auto"}
    cells = np.array([numbers_of(row.accuracy) for row in rows])
    means = np.array([numbers_of([row.mean]) for row in rows])
    severities, bottom = cells.shape[1], len(rows) - 0.5
    with styled():
        figure = Figure(figsize=(5.2, 0.24 * len(rows) + 1.25), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        right = severities + _GAP
        for table, left in ((cells, 0.0), (means, right)):
            extent = (left - 0.5, left + table.shape[1] - 0.5, bottom, -0.5)
            image = axes.imshow(table, extent=extent, **shades)
            for (y, x), value in np.ndenumerate(table):
                _write_cell(axes, left + x, y, float(value))
        for y, row in enumerate(rows):
            if row.ce is not None:
                axes.text(right + 1, y, f"{row.ce:.1f}", **_CELL)
        _label_corruptions(axes, rows, right)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=40)
        bar.set_label("top-1 accuracy (%)")
        bar.outline.set_visible(False)
        figure.suptitle(visible_lines(title), fontsize=9)
    return figure


def _write_cell(axes: Axes, x: float, y: int, percent: float) -> None:
    if np.isfinite(percent):
        # Viridis is dark at its lower end and light at its upper one.
        axes.text(x, y, f"{percent:.1f}", color="white" if percent < 60 else "black", **_CELL)
    else:
        axes.text(x, y, "–", color=GREY, **_CELL)


def _label_corruptions(axes: Axes, rows: Sequence[CorruptionRow], right: float) -> None:
    severities = len(rows[0].accuracy)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names = [*(str(s + 1) for s in range(severities)), "mean"]
    places = [*range(severities), right]
    axes.set_xlim(-0.5, right + 0.5)
    ce = ""
    if any(row.ce is not None for row in rows):
        names, places = [*names, "CE (%)"], [*places, right + 1]
        axes.set_xlim(-0.5, right + 1.5)
        ce = ", error relative to AlexNet's (CE)"
    axes.set_xticks(places, names)
    extra = "; * extra, in no mean of all" if any(row.extra for row in rows) else ""
    axes.set_xlabel(f"severity, mean over severities{ce}{extra}")
    names = [f"{visible(row.name.replace('_', ' '))}{'*' if row.extra else ''}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for y, (above, below) in enumerate(itertools.pairwise(rows)):
        if above.group != below.group:
            axes.axhline(y + 0.5, color="white", lw=3)
