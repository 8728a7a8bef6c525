"""Pictures of detections beside the ground truth: boxes, masks, names and scores. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colors, patheffects
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from sercli.report.figures.style import DOTS_PER_INCH, styled
from sercli.visible import visible, visible_lines

# Okabe and Ito's colours without black, the most different first.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#0072B2", "#D55E00")
_WIDTH = 3.3  # inches, of one picture
_TALLEST = 1.5  # heights of a picture in widths; a taller one is drawn narrower
_GAP = 0.05  # widths, between two columns of images
_OPAQUE = 0.35  # of a mask


@dataclass(frozen=True)
class Shown:
    """One object, as annotated or as found.

    Attributes:
        name: Name of the object's class.
        box: x, y, width, height in pixels.
        mask: bool [H, W]; None: there is none to draw.
        score: In 0…1; None: it is ground truth.
    """

    name: str
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None = None
    score: float | None = None

    @property
    def label(self) -> str:
        """What is written at its box."""
        name = visible(self.name)
        return name if self.score is None else f"{name} {self.score:.2f}"


@dataclass(frozen=True)
class DetectionPanel:
    """One image with what is in it and what was found in it.

    Attributes:
        image: uint8 [H, W, 3].
        truth: Objects that the annotations have in it.
        found: Objects that the detector found in it, with their scores.
    """

    image: NDArray[np.uint8]
    truth: Sequence[Shown]
    found: Sequence[Shown]


def detection_figure(
    panels: Sequence[DetectionPanel], *, title: str, least_score: float = 0.5
) -> Figure:
    """Ground truth and detections side by side; each class has one colour in all pictures.

    Up to two images stand below each other, more in two columns.

    Args:
        panels: At least one image, of any sizes.
        title: Of the whole figure.
        least_score: Detections of a lower score are left out.
    """
    shown = [
        (
            panel.image,
            tuple(panel.truth),
            tuple(one for one in panel.found if one.score is None or one.score >= least_score),
        )
        for panel in panels
    ]
    colours = _colours([one for _, *both in shown for objects in both for one in objects])
    across = 1 if len(panels) <= 2 else 2
    lines = [shown[start : start + across] for start in range(0, len(shown), across)]
    heights = [
        max(min(image.shape[0] / image.shape[1], _TALLEST) for image, *_ in line) for line in lines
    ]
    with styled():
        figure = Figure(
            figsize=(2 * across * _WIDTH, sum(heights) * _WIDTH + 0.04 * len(lines) + 0.42),
            layout="constrained",
        )
        FigureCanvasAgg(figure)
        widths = [1, 1, _GAP, 1, 1][: 3 * across - 1]
        table = figure.subplots(
            len(lines), len(widths), squeeze=False, height_ratios=heights, width_ratios=widths
        )
        for axes in table.flat:
            axes.set_axis_off()
            axes.set_anchor("N")
        pictures = []
        for row, line in zip(table, lines, strict=True):
            for number, (image, truth, found) in enumerate(line):
                for axes, objects in zip(row[3 * number :][:2], (truth, found), strict=True):
                    _draw(axes, image, objects, colours)
                    if not objects:
                        _say_none(axes)
                    pictures.append((axes, objects))
                if line is lines[0]:
                    row[3 * number].set_title("ground truth")
                    row[3 * number + 1].set_title(f"detections (score ≥ {least_score:g})")
        figure.suptitle(visible_lines(title), fontsize=9)
        # Labels find their places among each other when the pictures have theirs.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, objects in pictures:
            _write_labels(axes, objects, colours)
    return figure


def _say_none(axes: Axes) -> None:
    note = axes.annotate("none", (0.5, 0.03), xycoords="axes fraction", ha="center", fontsize=7)
    note.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])


def _colours(objects: Sequence[Shown]) -> dict[str, str]:
    names = sorted({one.name for one in objects})
    return {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}


def _draw(
    axes: Axes, image: NDArray[np.uint8], objects: Sequence[Shown], colours: Mapping[str, str]
) -> None:
    height, width = image.shape[:2]
    # Pixels stay squares where they are enlarged; fewer dots than pixels are averaged.
    enlarged = width < _WIDTH * DOTS_PER_INCH
    axes.imshow(
        _with_masks(image, objects, colours),
        interpolation="nearest" if enlarged else "antialiased",
        extent=(0, width, height, 0),  # so that box edges fall between pixels
    )
    for one in _large_first(objects):
        x, y, wide, high = one.box
        box = Rectangle((x, y), wide, high, fill=False, lw=0.9, ec=colours[one.name])
        box.set_path_effects([patheffects.withStroke(linewidth=1.7, foreground="#202020")])
        axes.add_patch(box)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _large_first(objects: Sequence[Shown]) -> list[Shown]:
    return sorted(objects, key=lambda one: -one.box[2] * one.box[3])


def _with_masks(
    image: NDArray[np.uint8], objects: Sequence[Shown], colours: Mapping[str, str]
) -> NDArray[np.uint8]:
    """The image under its translucent masks, small ones on top; uint8 [H, W, 3]."""
    mixed = image.astype(np.float32)
    for one in _large_first(objects):
        if one.mask is not None:
            colour = 255 * np.array(colors.to_rgb(colours[one.name]), np.float32)
            mixed[one.mask] = (1 - _OPAQUE) * mixed[one.mask] + _OPAQUE * colour
    return mixed.round().astype(np.uint8)


# -- Labels ---------------------------------------------------------------------------------------


def _write_labels(axes: Axes, objects: Sequence[Shown], colours: Mapping[str, str]) -> None:
    """Write each name at a corner of its box where no other label is and the picture has room.

    Surest detections choose first. If no corner is free, the one with the least overlap is taken.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    picture = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    for one in sorted(objects, key=lambda one: -1.0 if one.score is None else -one.score):
        label = axes.text(0, 0, one.label, **_label_style(colours[one.name]))
        label.set_in_layout(False)
        size = _extent(label, renderer)
        x, y, wide, high = one.box
        corners = axes.transData.transform([(x, y + high), (x + wide, y)])
        places = _places(Bbox(corners), size.width, size.height, picture)
        best = min(places, key=lambda place: sum(_shared(place, other) for other in taken))
        shift = np.array([best.x0 - size.x0, best.y0 - size.y0])
        origin = axes.transData.transform(label.get_position())
        x, y = axes.transData.inverted().transform(origin + shift).tolist()
        label.set_position((x, y))
        taken.append(best)


def _label_style(colour: str) -> dict[str, Any]:
    red, green, blue = colors.to_rgb(colour)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    return {
        "fontsize": 6,
        "color": "white" if dark else "black",
        "ha": "left",
        "va": "bottom",
        "bbox": {"boxstyle": "square,pad=0.15", "fc": colour, "ec": "none", "alpha": 0.85},
    }


def _extent(label: Text, renderer: RendererBase) -> Bbox:
    """Where a label with its background is, in dots."""
    label.update_bbox_position_size(renderer)
    patch = label.get_bbox_patch()
    assert patch is not None
    return patch.get_window_extent(renderer)


def _places(box: Bbox, wide: float, high: float, picture: Bbox) -> list[Bbox]:
    """Where a label of a size may stand, the best first, all inside the picture; in dots, y up."""
    lefts = (box.x0, box.x1 - wide, (box.x0 + box.x1 - wide) / 2)
    # Above the box, below its upper edge, above its lower edge, below it, in its middle.
    bottoms = (box.y1, box.y1 - high, box.y0, box.y0 - high, (box.y0 + box.y1 - high) / 2)
    places = []
    for bottom in bottoms:
        for left in lefts:
            x = min(max(left, picture.x0), max(picture.x1 - wide, picture.x0))
            y = min(max(bottom, picture.y0), max(picture.y1 - high, picture.y0))
            places.append(Bbox.from_bounds(x, y, wide, high))
    return places


def _shared(one: Bbox, other: Bbox) -> float:
    """The area that two labels share, in square dots."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)
