"""Pictures of what an encoder does: where [CLS] looks, which tokens are alike, what is near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from sercli.report.figures.equivariance import principal_colours
from sercli.report.figures.style import GREY, styled
from sercli.visible import visible, visible_lines

_RIGHT, _WRONG = "#007A5A", "#B54400"
_CELL = 0.95  # inches, of a picture
_MOST_HEADS = 12  # side by side; of more, so many in equal steps
_NAME = 14  # characters of a class


@dataclass(frozen=True)
class Neighbour:
    """A training image near another.

    Attributes:
        picture: float [H, W, 3] in 0…1.
        cosine: How near.
        label: Its class in words.
        right: Whether that is the class of the image that it is near; None: not known.
    """

    picture: NDArray[np.float32]
    cosine: float
    label: str
    right: bool | None


def attention_figure(
    pictures: NDArray[np.float32], attention: NDArray[np.float32], *, title: str
) -> Figure:
    """Each image, the mean over heads of what [CLS] attends to, and each head.

    A map runs from 0 (dark) to its own largest value (bright), so that heads that attend to all
    patches alike are bright all over.

    Args:
        pictures: [n, S, S, 3] in 0…1.
        attention: [n, H, h, w], weights.
        title: Of the whole figure.
    """
    heads = attention.shape[1]
    shown = np.unique(np.linspace(0, heads - 1, min(heads, _MOST_HEADS)).round().astype(int))
    headings = ["image", "mean", *(f"head {head}" for head in shown)]
    with styled():
        figure, table = _table(len(pictures), len(headings))
        for row, picture, maps in zip(table, pictures, attention, strict=True):
            _draw(row[0], picture)
            for axes, values in zip(row[1:], (maps.mean(0), *maps[shown]), strict=True):
                axes.imshow(
                    values, cmap="magma", vmin=0, vmax=values.max(), interpolation="nearest"
                )
        for axes, heading in zip(table[0], headings, strict=True):
            axes.set_title(heading)
        _entitle(figure, title)
    return figure


def tokens_figure(
    pictures: NDArray[np.float32], tokens: Mapping[int, NDArray[np.float32]], *, title: str
) -> Figure:
    """Each image and its patch tokens by block, their first three principal components as colours.

    The tokens of all images after a block share their components: equal colours are alike tokens,
    in other images, too; colours of different blocks have nothing to do with each other.

    Args:
        pictures: [n, S, S, 3] in 0…1.
        tokens: block → [n, h, w, D].
        title: Of the whole figure.
    """
    with styled():
        figure, table = _table(len(pictures), 1 + len(tokens))
        for row, picture in zip(table, pictures, strict=True):
            _draw(row[0], picture)
        table[0][0].set_title("image")
        for column, (layer, grids) in enumerate(tokens.items(), 1):
            for row, colours in zip(table, principal_colours(list(grids)), strict=True):
                _draw(row[column], colours)
            table[0][column].set_title("embedding" if layer == 0 else f"block {layer}")
        _entitle(figure, title)
    return figure


def neighbours_figure(
    pictures: NDArray[np.float32],
    labels: Sequence[str],
    neighbours: Sequence[Sequence[Neighbour]],
    *,
    title: str,
) -> Figure:
    """Each image with its class, and its nearest training images, the nearest first.

    Those of its class are framed in green and marked with a tick, others in orange with a cross.

    Args:
        pictures: [n, S, S, 3] in 0…1.
        labels: Classes in words; empty: not known.
        neighbours: Of each image.
        title: Of the whole figure.
    """
    most = max(len(row) for row in neighbours)
    with styled():
        figure, table = _table(len(pictures), 1 + most, below=0.22)
        for row, picture, label, near in zip(table, pictures, labels, neighbours, strict=True):
            _draw(row[0], picture)
            row[0].set_xlabel(_short(label), fontsize=6.5)
            for axes, one in zip(row[1:], near, strict=False):
                _draw(axes, one.picture)
                colour = GREY if one.right is None else _RIGHT if one.right else _WRONG
                mark = "" if one.right is None else "✓ " if one.right else "✗ "
                axes.set_xlabel(
                    f"{mark}{_short(one.label)} {one.cosine:.2f}", fontsize=6.5, color=colour
                )
                for spine in axes.spines.values():
                    spine.set(visible=True, color=colour, linewidth=1.6)
        table[0][0].set_title("image")
        for rank, axes in enumerate(table[0][1:], 1):
            axes.set_title("nearest" if rank == 1 else f"{rank}.")
        _entitle(figure, title)
    return figure


def _table(rows: int, columns: int, *, below: float = 0.0) -> tuple[Figure, Any]:
    size = (columns * _CELL + 0.2, rows * (_CELL + below) + 0.65)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
    FigureCanvasAgg(figure)
    table = figure.subplots(rows, columns, squeeze=False)
    for axes in table.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure, table


def _draw(axes: Axes, picture: NDArray[Any]) -> None:
    axes.imshow(picture, interpolation="nearest")


def _entitle(figure: Figure, title: str) -> None:
    figure.suptitle(visible_lines(title), fontsize=9)


def _short(name: str) -> str:
    text = visible(name)
    return text if len(text) <= _NAME else f"{text[: _NAME - 1]}…"
