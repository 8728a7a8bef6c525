"""What figures share: style and saving."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sercli.runs.files import write_atomic

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
# What is told apart by colour: Okabe and Ito's, those too light for lines on white paper darkened
# until their contrast is 3 (a test computes it). On a page each has a twin for dark paper.
SERIES = (
    "#0072b2", "#d55e00", "#008f68", "#b5579a", "#a87400", "#2b87c0", "#7d7200", "#4d4d4d"
)  # fmt: skip
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DOTS_PER_INCH = 200
_PACKED = {"compress_level": 2}  # of lines as small as Pillow's own 6, in half the time
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ser",  # equal data, equal file
}

Values = Sequence[float | None]


def series_style(index: int) -> dict[str, Any]:
    """How the line of that number looks: colour, dashes and marker, no two alike among 32."""
    return {
        "color": SERIES[index % len(SERIES)],
        # Neighbours differ in their dashes, too; after all colours these move on.
        "linestyle": _DASHES[(index + index // len(SERIES)) % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


@contextmanager
def styled() -> Iterator[None]:
    """In the style of all figures; what a font lacks is a box, and no warning on the way."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def numbers_of(values: Values) -> NDArray[np.float64]:
    """None to NaN, which leaves a gap."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


# -- Files ----------------------------------------------------------------------------------------


def save_figure(figure: Figure, directory: Path, name: str, *, description: str = "") -> list[Path]:
    """Write `name`.png and `name`.svg; a reader never sees half a file.

    Args:
        figure: To be drawn.
        directory: Where to.
        name: Of the files, without their suffixes.
        description: What there is to see, in a sentence, for who cannot see it; kept in the
            metadata of both files (PNG: the text `Description`).

    Raises:
        UserError: The place cannot be written.
        RunFailed: The disk is full.
    """
    paths = []
    said = {"Description": description} if description else {}
    # `Figure.savefig` draws each figure twice, and arranges it each time: half of a page's time.
    with styled():
        figure.set_dpi(DOTS_PER_INCH)
        png, svg = io.BytesIO(), io.BytesIO()
        FigureCanvasAgg(figure).print_png(png, metadata=said, pil_kwargs=_PACKED)
        figure.set_layout_engine("none")  # what it arranged stays
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, **said})
    for suffix, buffer in (("png", png), ("svg", svg)):
        path = directory / f"{name}.{suffix}"
        data = buffer.getvalue()
        write_atomic(path, lambda file, data=data: file.write(data))  # type: ignore[misc]
        paths.append(path)
    return paths
