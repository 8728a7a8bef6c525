"""Grids of numbers in colours, drawn without Matplotlib: a page has one for each of its rows.

A picture of 90 numbers has 90 texts, each of which Matplotlib lays out anew, twice for its two
formats: a third of a second a picture, and with forty of them half of the time of a page. Here all
places follow from the sizes of the texts at the left, and both formats are written from one list.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from xml.sax.saxutils import escape, quoteattr

import matplotlib as mpl
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from sercli.report.figures.style import DOTS_PER_INCH, GREY
from sercli.visible import visible

_SCALE = DOTS_PER_INCH / 72  # pixels a point
_WIDE, _HIGH = 34.0, 17.0  # points, of a cell
_GAP = 7.0  # points, between the columns and their mean
_MARGIN, _TITLE, _FOOT = 6.0, 22.0, 30.0
_BAR = 8.0  # points, of the scale of colours
_SHADES = 64  # of that scale
_DARK = 60  # percent, below which Viridis is dark
_FAMILY = "DejaVu Sans"

Box = tuple[float, float, float, float]  # points: left, top, width, height


@dataclass(frozen=True)
class _Text:
    """A text around a place.

    Attributes:
        x, y: Points, of its anchor, upwards its middle.
        anchor: Which part of it is there: start, middle or end.
    """

    x: float
    y: float
    text: str
    size: float = 7.0
    anchor: str = "middle"
    colour: str = "#000000"


@dataclass
class Tiles:
    """A picture: coloured boxes, and texts on them.

    Attributes:
        width, height: Points.
    """

    width: float
    height: float
    boxes: list[tuple[Box, str]] = field(default_factory=list)
    texts: list[_Text] = field(default_factory=list)

    def svg(self, description: str) -> bytes:
        """As SVG, in which text is text."""
        parts = [
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" fill="{colour}"/>'
            for (x, y, w, h), colour in self.boxes
        ]
        parts += [
            f'<text x="{one.x:.2f}" y="{one.y + 0.36 * one.size:.2f}" font-size="{one.size:g}" '
            f'text-anchor="{one.anchor}" fill="{one.colour}">{escape(one.text)}</text>'
            for one in self.texts
        ]
        size = f'width="{self.width:.2f}pt" height="{self.height:.2f}pt"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
            f'viewBox="0 0 {self.width:.2f} {self.height:.2f}" font-family={quoteattr(_FAMILY)}>'
        )
        paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
        lines = [head, f"<desc>{escape(description)}</desc>", paper, *parts, "</svg>", ""]
        return "\n".join(lines).encode("utf-8", "replace")

    def png(self, description: str) -> bytes:
        """As PNG, as many dots an inch as other figures."""
        pixels = (round(self.width * _SCALE), round(self.height * _SCALE))
        image = Image.new("RGB", pixels, "white")
        draw = ImageDraw.Draw(image)
        for (x, y, w, h), colour in self.boxes:
            # Neighbours share an edge: the last pixel is the next one's.
            left, top = round(x * _SCALE), round(y * _SCALE)
            right, bottom = round((x + w) * _SCALE) - 1, round((y + h) * _SCALE) - 1
            draw.rectangle((left, top, max(left, right), max(top, bottom)), fill=colour)
        anchors = {"start": "lm", "middle": "mm", "end": "rm"}
        for one in self.texts:
            place, anchor = (one.x * _SCALE, one.y * _SCALE), anchors[one.anchor]
            draw.text(place, one.text, one.colour, _font(one.size), anchor)
        told = PngInfo()
        told.add_itxt("Description", description)
        buffer = io.BytesIO()
        dots = (DOTS_PER_INCH, DOTS_PER_INCH)
        image.save(buffer, "PNG", pnginfo=told, dpi=dots, compress_level=2)
        return buffer.getvalue()


@lru_cache(maxsize=8)
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(_FAMILY), size * _SCALE)


def heat_tiles(
    rows: Sequence[tuple[str, Sequence[float | None], float | None]],
    columns: Sequence[str],
    *,
    title: str,
    below: str,
) -> Tiles:
    """Percentages by row and column, beside the mean of each row.

    Colours run from 0 to 100, so that pictures of several models can be compared.

    Args:
        rows: A name each, with its values (None: not measured) and their mean.
        columns: Headings.
        title: Above them.
        below: What the columns are.
    """
    names = [visible(name) for name, _, _ in rows]
    left = _MARGIN + max((_font(8).getlength(name) for name in names), default=0) / _SCALE + 4
    mean = left + len(columns) * _WIDE + _GAP
    bar = mean + _WIDE + 12
    height = _TITLE + len(rows) * _HIGH
    least = 2 * _MARGIN + _font(9).getlength(visible(title)) / _SCALE
    tiles = Tiles(max(bar + _BAR + 26, least), height + _FOOT)
    tiles.texts.append(_Text(tiles.width / 2, _TITLE / 2, visible(title), 9))
    for number, (name, (_, values, average)) in enumerate(zip(names, rows, strict=True)):
        top = _TITLE + number * _HIGH
        tiles.texts.append(_Text(left - 4, top + _HIGH / 2, name, 8, "end"))
        for column, value in enumerate(values):
            _add_cell(tiles, left + column * _WIDE, top, value)
        _add_cell(tiles, mean, top, average)
    for column, heading in enumerate(columns):
        place = left + (column + 0.5) * _WIDE
        tiles.texts.append(_Text(place, height + 8, visible(heading), 8))
    tiles.texts.append(_Text(mean + _WIDE / 2, height + 8, "mean", 8))
    tiles.texts.append(_Text((left + mean + _WIDE) / 2, height + 21, visible(below), 8))
    step = (height - _TITLE) / _SHADES
    for shade in range(_SHADES):
        percent = 100 * (_SHADES - shade - 0.5) / _SHADES
        tiles.boxes.append(((bar, _TITLE + shade * step, _BAR, step), _shade(percent)))
    for percent in (0, 50, 100):
        y = height - (height - _TITLE) * percent / 100
        tiles.texts.append(_Text(bar + _BAR + 3, y, f"{percent} %", anchor="start"))
    return tiles


def _add_cell(tiles: Tiles, x: float, y: float, percent: float | None) -> None:
    middle = (x + _WIDE / 2, y + _HIGH / 2)
    if percent is None:
        tiles.texts.append(_Text(*middle, "–", colour=GREY))
        return
    tiles.boxes.append(((x, y, _WIDE, _HIGH), _shade(percent)))
    colour = "#ffffff" if percent < _DARK else "#000000"
    tiles.texts.append(_Text(*middle, f"{percent:.1f}", colour=colour))


def _shade(percent: float) -> str:
    shades = _viridis()
    return shades[min(len(shades) - 1, max(0, int(percent / 100 * len(shades))))]


@cache
def _viridis() -> list[str]:
    """Its 256 colours; asked for one, Matplotlib makes all of them."""
    table = mpl.colormaps["viridis"](range(256), bytes=True)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in table]
