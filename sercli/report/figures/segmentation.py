"""Pictures of the class of every pixel: the image, the truth, and what was predicted. No torch."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sercli.report.figures.style import styled
from sercli.visible import visible, visible_lines

_WIDTH = 1.6  # inches, of one picture
_TALLEST = 1.5  # heights of a picture in widths
_NAMED = 24  # classes in the legend at most
_NAME = 24  # characters of a class's name
_BACKGROUND, _IGNORED = "#D9D9D9", "#FFFFFF"
# Okabe and Ito's, which differ in lightness as well, then hues between them.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
_GOLDEN = 0.618034


@dataclass(frozen=True)
class SegmentationPanel:
    """One image.

    Attributes:
        image: uint8 [H, W, 3].
        truth: uint8 [H, W], classes; what is no class is ignored.
        predicted: uint8 [H, W], classes.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


def segmentation_figure(
    panels: Sequence[SegmentationPanel], classes: Sequence[str], *, title: str
) -> Figure:
    """Images above each other, each with its truth and its prediction, and whose colour is whose.

    Args:
        panels: At least one image, of any sizes.
        classes: Names of the classes; one that is called background is grey.
        title: Of the whole figure.
    """
    colours = _colours(classes)
    heights = [min(one.image.shape[0] / one.image.shape[1], _TALLEST) for one in panels]
    shown = _shown(panels, len(classes))
    with styled():
        figure = Figure(
            figsize=(3 * _WIDTH + 1.5, sum(heights) * _WIDTH + 0.75), layout="constrained"
        )
        table = figure.subplots(len(panels), 3, squeeze=False, height_ratios=heights)
        for row, panel in zip(table, panels, strict=True):
            pictures = (panel.image, colours[panel.truth], colours[panel.predicted])
            for axes, picture in zip(row, pictures, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set_axis_off()
        for axes, heading in zip(table[0], ("image", "truth", "prediction"), strict=True):
            axes.set_title(heading)
        figure.legend(
            handles=[
                Patch(
                    facecolor=colours[label] / 255,
                    edgecolor="#6B6B6B",
                    linewidth=0.4,
                    label=_short(classes[label]),
                )
                for label in shown[:_NAMED]
            ]
            + ([] if len(shown) <= _NAMED else [Patch(alpha=0, label="…")]),
            loc="outside right upper",
            fontsize=7,
        )
        figure.suptitle(visible_lines(title), fontsize=9)
    return figure


def _short(name: str) -> str:
    text = visible(name)
    return text if len(text) <= _NAME else f"{text[: _NAME - 1]}…"


def _shown(panels: Sequence[SegmentationPanel], number: int) -> list[int]:
    """The classes that some picture has."""
    everything = [one for panel in panels for one in (panel.truth, panel.predicted)]
    found = np.unique(np.concatenate([np.unique(one) for one in everything]))
    return [int(label) for label in found if label < number]


def _colours(classes: Sequence[str]) -> NDArray[np.uint8]:
    """uint8 [256, 3], a colour for every value of a pixel."""
    table = np.full((256, 3), _rgb(_IGNORED), np.uint8)
    used = 0
    for label, name in enumerate(classes):
        if name == "background":
            table[label] = _rgb(_BACKGROUND)
            continue
        if used < len(_COLOURS):
            table[label] = _rgb(_COLOURS[used])
        else:
            level = (0.9, 0.65, 0.45)[used % 3]
            values = colorsys.hsv_to_rgb(used * _GOLDEN % 1, 0.75, level)
            table[label] = [round(255 * value) for value in values]
        used += 1
    return table


def _rgb(text: str) -> list[int]:
    return [int(text[start : start + 2], 16) for start in (1, 3, 5)]
