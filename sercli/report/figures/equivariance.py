"""Figures: equivariance by layer, token maps as pictures, heat maps. Matplotlib, no display.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; line styles and
labels say the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sercli.report.figures.style import BLUE, GREEN, GREY, ORANGE, Values, numbers_of, styled
from sercli.visible import visible_lines


@dataclass(frozen=True)
class LayerCurves:
    """One panel: scores of a group of transformations, a value a layer (None: undefined).

    Attributes:
        name: Title of the panel, the group's name.
        score, low, high: The model's score and its interval.
        floor, floor_low, floor_high: The same of its random twin.
    """

    name: str
    score: Values
    low: Values
    high: Values
    floor: Values
    floor_low: Values
    floor_high: Values


@dataclass(frozen=True)
class TokenRow:
    """One row of the token picture.

    Attributes:
        name: Name of the transformation g, `rot90` for instance.
        image: x, [H, W, 3] in 0…1.
        view: g x, [H', W', 3] in 0…1.
        observed: Tokens f(x), [h, w, D].
        seen: Tokens f(g x), [h', w', D].
        moved: Tokens ρ_g⁻¹ f(g x), [h, w, D].
    """

    name: str
    image: NDArray[np.float32]
    view: NDArray[np.float32]
    observed: NDArray[np.float32]
    seen: NDArray[np.float32]
    moved: NDArray[np.float32]


def equivariance_figure(
    layers: Sequence[int],
    panels: Sequence[LayerCurves],
    energy: Values,
    *,
    title: str,
    tapped_layer: int | None = None,
) -> Figure:
    """Score, its interval, the random twin's floor and the energy by layer; one panel a group.

    Args:
        layers: Blocks, 0 is the embedding.
        panels: Curves of each group of transformations, a panel a group.
        energy: Share of the variance that is spatial, a value a layer.
        title: Of the whole figure.
        tapped_layer: Marked with a line, if it is among `layers`.
    """
    with styled():
        figure = Figure(figsize=(2.4 * len(panels) + 0.3, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            _draw_panel(axes, layers, panel, energy, tapped_layer)
        row[0].set_ylabel("equivariance score, energy")
        figure.suptitle(visible_lines(title), fontsize=9)
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_panel(
    axes: Axes, layers: Sequence[int], panel: LayerCurves, energy: Values, tapped: int | None
) -> None:
    curves = (
        ("score, 95% interval", BLUE, "-", "o", panel.score, panel.low, panel.high),
        ("random twin", ORANGE, "--", "s", panel.floor, panel.floor_low, panel.floor_high),
    )
    for label, colour, line, marker, middle, low, high in curves:
        axes.fill_between(layers, numbers_of(low), numbers_of(high), color=colour, alpha=0.2, lw=0)
        axes.plot(layers, numbers_of(middle), line, color=colour, label=label, marker=marker, ms=3)
    axes.plot(layers, numbers_of(energy), ":", color=GREY, label="energy", lw=1.3)
    undefined = [layer for layer, value in zip(layers, panel.score, strict=True) if value is None]
    if undefined:
        axes.plot(undefined, [0.0] * len(undefined), "x", color=BLUE, ms=5, clip_on=False)
        axes.annotate(
            "×: undefined", (0.02, 0.04), xycoords="axes fraction", color=BLUE, fontsize=7
        )
    shown = [v for _, _, _, _, *rows in curves for values in rows for v in values if v is not None]
    axes.set_ylim(min(0.0, *(shown or [0.0])), 1.02)
    if tapped is not None and tapped in layers:
        axes.axvline(tapped, color=GREEN, lw=1, zorder=0)
        right = tapped > layers[len(layers) // 2]
        axes.annotate(
            "tapped",
            (tapped, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if right else 3, 2),
            textcoords="offset points",
            ha="right" if right else "left",
            va="bottom",
            color=GREEN,
            fontsize=7,
        )
    axes.set_title(panel.name, pad=12)
    axes.set_xlabel("block (0: embedding)")
    axes.set_xticks(list(layers[:: 1 + len(layers) // 9]))
    axes.margins(x=0.04)


# -- Tokens as colours ----------------------------------------------------------------------------

_HEADINGS = ("$x$", "$g\\,x$", "$f(x)$", "$f(g\\,x)$", "$\\rho_g^{-1} f(g\\,x)$")


def token_figure(rows: Sequence[TokenRow], *, title: str) -> Figure:
    """Images and their token maps: equal colours at equal places are equivariance.

    Each row's three maps share one colour code: the first three principal components of its
    tokens as red, green and blue. Pictures are drawn to scale.
    """
    with styled():
        figure = Figure(figsize=(7.2, 1.42 * len(rows) + 0.55), layout="constrained")
        FigureCanvasAgg(figure)
        table = figure.subplots(len(rows), len(_HEADINGS), squeeze=False)
        for line, row in zip(table, rows, strict=True):
            colours = principal_colours([row.observed, row.seen, row.moved])
            cell = row.image.shape[0] / row.observed.shape[0]
            reach = max(*row.image.shape[:2], *row.view.shape[:2]) / cell / 2
            for axes, image in zip(line[:2], (row.image, row.view), strict=True):
                _draw_picture(axes, image, cell, reach)
            for axes, tokens in zip(line[2:], colours, strict=True):
                _draw_picture(axes, tokens, 1, reach)
            line[0].set_ylabel(row.name)
        for axes, heading in zip(table[0], _HEADINGS, strict=True):
            axes.set_title(heading, parse_math=True)
        figure.suptitle(visible_lines(title), fontsize=9)
    return figure


def _draw_picture(axes: Axes, picture: NDArray[Any], per_cell: float, reach: float) -> None:
    """Draw around the origin, in cells of the token grid; the axes reach `reach` cells out."""
    height, width = (side / per_cell / 2 for side in picture.shape[:2])
    axes.imshow(picture, interpolation="nearest", extent=(-width, width, -height, height))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def principal_colours(maps: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Token maps [h, w, D] of any grids as RGB [h, w, 3] in 0…1, one colour code for all.

    The first three principal components of all tokens together; each runs from its 1st to its
    99th percentile, and points to where its largest weight is positive.
    """
    tokens = np.concatenate([m.reshape(-1, m.shape[-1]) for m in maps]).astype(np.float64)
    tokens -= tokens.mean(0)
    _, _, axes = np.linalg.svd(tokens, full_matrices=False)
    axes = np.pad(axes[:3], ((0, max(0, 3 - len(axes))), (0, 0)))
    axes *= np.where(axes[np.arange(3), np.abs(axes).argmax(1)] < 0, -1, 1)[:, None]
    values = tokens @ axes.T
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    shades = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    ends = np.cumsum([m.shape[0] * m.shape[1] for m in maps])[:-1]
    return [
        part.reshape(*m.shape[:2], 3) for part, m in zip(np.split(shades, ends), maps, strict=True)
    ]
