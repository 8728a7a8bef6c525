"""Lines of many runs in one picture, each labelled where it ends; and points with their intervals.

A legend of ten lines is looked up and down; a label beside a line is read. Colour, dashes and
markers say the same again, and intervals are drawn where there are any.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from sercli.report.figures.style import GREY, Values, numbers_of, series_style, styled
from sercli.visible import visible

_WIDTH, _LEFT, _BOTTOM, _TOP = 6.2, 0.72, 0.46, 0.12  # inches
_LABELS = 2.4  # inches, right of the axes
_TEXT = 8  # points
_LONGEST = 36  # characters of a label
_PARTS = 200  # of a line with more than twice as many values
_MOST_NAMED = 8  # points that have their names beside them; more have numbers, and a key
_LABEL, _EARLY = 1.06, 0.95  # of the axes' width: where labels begin, and where lines end early
_CLOSE = 1.25  # heights of a line of text, from label to label


@dataclass(frozen=True)
class Line:
    """A line, or several of one kind: the seeds of a recipe.

    Attributes:
        label: Written where it ends; empty for none.
        series: Which style it has; None: grey and dotted, as what others are read against.
        x: Where its values are.
        y: Values; None leaves a gap.
        low, high: Ends of the intervals, where there are any.
    """

    label: str
    series: int | None
    x: Sequence[float]
    y: Values
    low: Values = ()
    high: Values = ()


@dataclass(frozen=True)
class Point:
    """A point with its intervals.

    Attributes:
        label: Written beside it.
        series: Which style it has.
        x, y: Where it is.
        x_ends, y_ends: Its intervals.
        path: Points of one path are joined in their order; empty: none is.
        hollow: It is there to be compared with.
    """

    label: str
    series: int
    x: float
    y: float
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
    path: str = ""
    hollow: bool = False


def short(label: str, longest: int = _LONGEST) -> str:
    """A label as a figure has room for it, in one visible line."""
    shown = visible(label)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def lines_figure(
    lines: Sequence[Line], *, xlabel: str, ylabel: str, log: bool = False, whole: bool = False
) -> Figure:
    """Lines over a common axis, each labelled at its right end.

    Args:
        lines: In the order of their importance.
        xlabel, ylabel: Of the axes, with units.
        log: Logarithmic upwards, if all values are above 0.
        whole: x are whole numbers of a few places (blocks): each value has a marker, x a tick.
    """
    with styled():
        labelled = sum(bool(line.label) for line in lines)
        axes = _axes(labelled)
        for line in lines:
            _draw(axes, line, marked=whole)
        _draw_intervals(axes, lines)
        axes.set_xlabel(xlabel, fontsize=_TEXT)
        axes.set_ylabel(ylabel, fontsize=_TEXT)
        if whole:
            axes.set_xticks(sorted({int(x) for line in lines for x in line.x}))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _scale(axes, log and all(v > 0 for line in lines for v in line.y if v is not None))
        axes.margins(x=0.02)
        _label_ends(axes, lines)
        return _figure_of(axes)


def _axes(labelled: int) -> Axes:
    """Empty axes with room for that many labels at their right."""
    height = max(2.9, _BOTTOM + _TOP + labelled * _CLOSE * _TEXT / 72 + 0.1)
    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasAgg(figure)
    place = (
        _LEFT / _WIDTH,
        _BOTTOM / height,
        (_WIDTH - _LEFT - _LABELS) / _WIDTH,
        (height - _BOTTOM - _TOP) / height,
    )
    axes = figure.add_axes(place)
    axes.tick_params(labelsize=_TEXT)
    axes.grid(axis="y", color=GREY, alpha=0.2, lw=0.6)
    axes.set_axisbelow(True)
    return axes


def _scale(axes: Axes, log: bool) -> None:
    """Upwards by factors, with plain numbers; or evenly, very small and large ones by powers."""
    if not log:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_fontsize(_TEXT)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _draw(axes: Axes, line: Line, *, marked: bool) -> None:
    if line.series is None:
        axes.plot(*thinned(line.x, line.y), color=GREY, ls=":", lw=1.1, zorder=1.5)
        return
    style = series_style(line.series)
    if not marked:
        style.pop("marker")
    x, y = thinned(line.x, line.y)
    axes.plot(x, y, lw=1.3, ms=3.5, **style)
    known = [(at, value) for at, value in zip(x, y, strict=True) if np.isfinite(value)]
    if known and not marked:  # a run that has just begun is a point, and one that ended early ends
        axes.plot(*known[-1], "o", ms=3, color=style["color"])


def _draw_intervals(axes: Axes, lines: Sequence[Line]) -> None:
    """Of all lines at once, as every collection has its price."""
    drawn = [line for line in lines if line.series is not None and line.low and line.high]
    if drawn:
        axes.vlines(
            np.concatenate([np.asarray(line.x, dtype=float) for line in drawn]),
            np.concatenate([numbers_of(line.low) for line in drawn]),
            np.concatenate([numbers_of(line.high) for line in drawn]),
            colors=[
                series_style(line.series or 0)["color"]
                for line in drawn
                for _ in range(len(line.x))
            ],
            lw=1,
        )


def thinned(x: Sequence[float], y: Values) -> tuple[list[float], list[float]]:
    """A long line as a reader sees it: of each of 200 parts the least and the greatest value."""
    places, values = np.asarray(x, dtype=float), numbers_of(y)
    if len(values) <= 2 * _PARTS:
        return places.tolist(), values.tolist()
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), _PARTS):
        known = part[np.isfinite(values[part])]
        if len(known):
            kept |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
        kept |= set(part[~np.isfinite(values[part])][:1].tolist())  # a gap stays one
    order = sorted(kept)
    return places[order].tolist(), values[order].tolist()


# -- Labels ---------------------------------------------------------------------------------------


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each label right of the axes, at its line's last value or as near as others allow."""
    ends = []
    for line in lines:
        known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
        if line.label and known:
            ends.append((line, *known[-1]))
    _settle(axes)
    box = axes.get_window_extent()
    pitch = _CLOSE * _TEXT / 72 * _figure_of(axes).dpi
    heights = [float(axes.transData.transform((x, y))[1]) for _, x, y in ends]
    places = spread_out(heights, pitch, low=box.y0 + pitch / 2, high=box.y1 - pitch / 2)
    points = np.array([box.width, box.height]) * 72 / _figure_of(axes).dpi
    to_axes = axes.transData + axes.transAxes.inverted()
    leaders, colours, dashes = [], [], []
    for (line, x, y), place in zip(ends, places, strict=True):
        at = (place - box.y0) / box.height
        axes.text(
            _LABEL, at, short(line.label), va="center", fontsize=_TEXT, transform=axes.transAxes
        )
        end = to_axes.transform((x, y))
        start = np.array([_LABEL - 3 / points[0], at])
        way = (end - start) * points
        leaders.append([start, end - way / np.hypot(*way) / points])  # a point before its end
        # A line that ends early is not to look as if it went on.
        early = end[0] < _EARLY
        own = line.series is not None and not early
        colours.append(series_style(line.series or 0)["color"] if own else GREY)
        dashes.append((0, (1, 3)) if early else "-")
    # One collection: an arrow for each took half the time of a figure of twenty lines.
    drawn = LineCollection(leaders, colors=colours, linestyles=dashes, linewidths=0.7, zorder=3)
    drawn.set(transform=axes.transAxes, clip_on=False)
    axes.add_collection(drawn, autolim=False)


def spread_out(wanted: Sequence[float], pitch: float, *, low: float, high: float) -> list[float]:
    """Places that keep a distance, in the order of those wanted and about as near to them.

    The mean of what is pushed up only and what is pushed down only, moved between the ends.

    Args:
        wanted: Where each would like to be.
        pitch: The least distance; less where there is no room.
        low, high: Between what.
    """
    if not wanted:
        return []
    pitch = min(pitch, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    at = [min(max(wanted[index], low), high) for index in order]
    up = list(itertools.accumulate(at, lambda before, own: max(own, before + pitch)))
    down = list(itertools.accumulate(at[::-1], lambda above, own: min(own, above - pitch)))[::-1]
    middle = [(one + other) / 2 for one, other in zip(up, down, strict=True)]
    # The n-th from an end needs room for those beyond it.
    steps = [pitch * number for number in range(len(at))]
    places = [
        min(max(place, low + step), high - back)
        for place, step, back in zip(middle, steps, steps[::-1], strict=True)
    ]
    found = [0.0] * len(wanted)
    for index, place in zip(order, places, strict=True):
        found[index] = place
    return found


# -- Points ---------------------------------------------------------------------------------------


def points_figure(points: Sequence[Point], *, xlabel: str, ylabel: str) -> Figure:
    """Points with intervals as crosses, each labelled; those of one path are joined.

    Args:
        points: In the order of their paths.
        xlabel, ylabel: Of the axes, with units.
    """
    with styled():
        axes = _axes(len(points))
        paths = sorted({point.path for point in points} - {""})
        for path in paths:
            along = [point for point in points if point.path == path]
            axes.plot(
                [point.x for point in along], [point.y for point in along], color=GREY, lw=0.7
            )
        for point in points:
            style = series_style(point.series)
            colour = style["color"]
            for ends, draw, other in (
                (point.x_ends, axes.hlines, point.y),
                (point.y_ends, axes.vlines, point.x),
            ):
                if ends is not None:
                    draw(other, *ends, color=colour, lw=1)
            face = "none" if point.hollow else colour
            axes.plot([point.x], [point.y], style["marker"], ms=6, color=colour, mfc=face)
        axes.set_xlabel(xlabel, fontsize=_TEXT)
        axes.set_ylabel(ylabel, fontsize=_TEXT)
        axes.margins(0.08)
        axes.grid(axis="x", color=GREY, alpha=0.2, lw=0.6)
        names = [short(point.label) for point in points]
        keyed = len(points) > _MOST_NAMED  # names would cover what they name
        inside = axes.get_window_extent().x1 if keyed else axes.figure.bbox.x1
        _label_points(axes, points, _keyed(axes, names) if keyed else names, inside)
        return _figure_of(axes)


def _keyed(axes: Axes, names: Sequence[str]) -> list[str]:
    """Write the names right of the axes, numbered, and return the numbers."""
    numbers = [str(place + 1) for place in range(len(names))]
    height = axes.get_window_extent().height
    pitch = min(_CLOSE * _TEXT / 72 * _figure_of(axes).dpi / height, 1 / len(names))
    for place, (number, name) in enumerate(zip(numbers, names, strict=True)):
        style: dict[str, Any] = {"va": "center", "fontsize": _TEXT, "transform": axes.transAxes}
        axes.text(1.07, 1 - (place + 0.5) * pitch, number, ha="right", **style)
        axes.text(1.09, 1 - (place + 0.5) * pitch, name, **style)
    return numbers


def _label_points(axes: Axes, points: Sequence[Point], texts: Sequence[str], right: float) -> None:
    """Write a text beside each point where no other text or point is, else where least is.

    Args:
        axes: With the points.
        points: What is labelled.
        texts: One each.
        right: How far texts may reach, in dots.
    """
    figure = _figure_of(axes)
    _settle(axes)
    scale = figure.dpi / 72
    box = axes.get_window_extent()
    inside = np.array([[box.x0, box.y0, right, figure.bbox.y1]])
    taken = np.array([cross for point in points for cross in _crosses(axes, point, 4 * scale)])
    for point, text in zip(points, texts, strict=True):
        centre = axes.transData.transform((point.x, point.y))
        size = np.array([0.6 * len(text), 1.1]) * _TEXT * scale
        places, distances = _places(centre, size, scale)
        cut = size.prod() - _shared(places, inside)[:, 0]  # what the picture would cut off
        cost = _shared(places, taken).sum(1) + distances + 3 * cut
        best = places[int(cost.argmin())]
        taken = np.vstack([taken, best])
        shift = (best[:2] - centre) / scale
        axes.annotate(
            text,
            xy=(point.x, point.y),
            xytext=(float(shift[0]), float(shift[1])),
            textcoords="offset points",
            va="bottom",
            fontsize=_TEXT,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": GREY,
                "lw": 0.4,
                "relpos": (0 if shift[0] >= 0 else 1, 0.5),
                "shrinkA": 0,
                "shrinkB": 3,
            },
        )


def _settle(axes: Axes) -> None:
    """Let the limits follow from what was drawn, as positions in dots need them."""
    axes.get_xlim()
    axes.get_ylim()


def _crosses(axes: Axes, point: Point, reach: float) -> Iterator[NDArray[np.float64]]:
    """What a point and its intervals cover, `reach` dots around it: left, bottom, right, top."""
    for x_ends, y_ends in (
        (point.x_ends or (point.x, point.x), (point.y, point.y)),
        ((point.x, point.x), point.y_ends or (point.y, point.y)),
    ):
        corners = axes.transData.transform(list(zip(x_ends, y_ends, strict=True)))
        yield np.concatenate([corners.min(0) - reach, corners.max(0) + reach])


_AROUND = ((1, 0), (1, 0.8), (1, -0.8), (-1, 0), (-1, 0.8), (-1, -0.8), (0, 1.2), (0, -1.2))


def _places(
    centre: NDArray[np.float64], size: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where a label of a size may stand, [N, 4] left, bottom, right, top; and how far off, [N]."""
    choices = list(itertools.product((7.0, 15.0, 26.0, 38.0), _AROUND))
    distances = np.array([distance for distance, _ in choices])
    ways = np.array([way for _, way in choices])
    near = centre + ways * distances[:, None] * scale
    near[:, 0] -= size[0] * (1 - np.sign(ways[:, 0])) / 2
    near[:, 1] -= size[1] / 2
    return np.hstack([near, near + size]), distances


def _shared(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The areas that boxes [N, 4] and [M, 4] share, [N, M]."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    areas: NDArray[np.float64] = np.clip(high - low, 0, None).prod(-1)
    return areas
