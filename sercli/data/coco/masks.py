"""Segmentations: which of them pycocotools makes a mask of its image's size of.

pycocotools takes what it is given for sound: it writes beyond its memory for run lengths that are
too long, compares those that are too short without end, and allocates by coordinates. What has no
fault here gives it nothing of that kind to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.coco.values import shown

_NUMBERS = {int, float}
_MOST_PARTS = 10_000  # each is merged with all before it
# Of an outline. pycocotools takes a hundred bytes a pixel for it, at a detector's scale a few more.
_LONGEST = 2_000_000
_DIGITS = 6  # of five bits; more than the pixels of any image that is read
_POLYGONS = "it must be polygons x, y, x, y, … of 3 points or more, or run lengths"


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str:
    """What is wrong with a segmentation, as said after "annotation 7 has "; "" if nothing is.

    A polygon of fewer than 3 points or with half a point may stand beside a sound one:
    `sound_polygons` leaves it out.

    Args:
        segmentation: As JSON has it.
        size: Width and height of the image in pixels.
    """
    if type(segmentation) is dict:
        return _fault_of_runs(segmentation, *size)
    if type(segmentation) is list:
        return _fault_of_polygons(segmentation, *size)
    if segmentation is None:
        return f"no segmentation; {_POLYGONS}"
    return f"the segmentation {shown(segmentation)}; {_POLYGONS}"


def sound_polygons(segmentation: Sequence[Any]) -> list[Any]:
    """Those with three points or more: pycocotools takes four numbers for a box."""
    return [points for points in segmentation if len(points) >= 6 and len(points) % 2 == 0]


# -- Polygons -------------------------------------------------------------------------------------


def _fault_of_polygons(parts: list[Any], width: int, height: int) -> str:
    rough = 0.0  # no less than the length
    for part in parts:
        if type(part) is not list:
            return f"{shown(part)} in its segmentation; {_POLYGONS}"
        if not part:
            continue
        if not _NUMBERS.issuperset(map(type, part)):
            wrong = next(value for value in part if type(value) not in _NUMBERS)
            return f"the coordinate {shown(wrong)} in its segmentation; it must be a number"
        left, right = min(part[0::2]), max(part[0::2])
        top, bottom = min(part[1::2], default=0), max(part[1::2], default=0)
        inside = -width <= left and right <= 2 * width and -height <= top and bottom <= 2 * height
        # Each comparison of min and max passes over a NaN; a sum does not.
        if not inside or (total := sum(part)) != total:
            return _fault_of_coordinate(part, width, height)
        rough += (max(right - left, bottom - top) + 1) * len(part)
    if not any(len(part) >= 6 and len(part) % 2 == 0 for part in parts):
        return f"no segmentation of polygons of 3 points or more, but {shown(parts)}"
    if len(parts) > _MOST_PARTS:
        return f"a segmentation of {len(parts):,} polygons; at most {_MOST_PARTS:,} are merged"
    longest = min(2 * (2 * width * height + width + height) + 1000, _LONGEST)
    if rough > longest and (length := sum(map(_length, parts))) > longest:
        return (
            f"an outline of {length:,.0f} points and pixels; no shape in an image of {width} × "
            f"{height} has more than {longest:,}"
        )
    return ""


def _fault_of_coordinate(part: Sequence[float], width: int, height: int) -> str:
    for position, value in enumerate(part):
        side = height if position % 2 else width
        if not -side <= value <= 2 * side:
            return (
                f"the {'y' if position % 2 else 'x'} {shown(value)} in its segmentation, which is "
                f"further outside its image of {width} × {height} than that is large"
            )
    raise AssertionError("each coordinate is near the image")


def _length(part: Sequence[float]) -> float:
    """Of a closed polygon in pixels, as pycocotools walks along it, and its points."""
    points = np.array(part[: len(part) // 2 * 2], np.float64).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0)
    return float(steps.sum()) + len(points)


# -- Run lengths ----------------------------------------------------------------------------------


def _fault_of_runs(runs: dict[Any, Any], width: int, height: int) -> str:
    size, counts = runs.get("size"), runs.get("counts")
    if type(size) is not list or size != [height, width] or {*map(type, size)} != {int}:
        return (
            f"run lengths of the size {shown(size)}; they must have its image's size, "
            f"[{height}, {width}] (height, width)"
        )
    if type(counts) is str:
        found = run_lengths(counts)
        if found is None:
            return (
                f"the run lengths {shown(counts)}; such text must be COCO's code of whole numbers"
            )
        least, total = int(found.min(initial=0)), int(found.sum())
    elif type(counts) is list:
        if any(one is not int for one in set(map(type, counts))):
            wrong = next(value for value in counts if type(value) is not int)
            return f"the run length {shown(wrong)}; it must be a whole number"
        least, total = min(counts, default=0), sum(counts)
    else:
        return f"the run lengths {shown(counts)}; they must be whole numbers or COCO's text"
    if least < 0:
        return f"the run length {shown(least)}; it must not be negative"
    if total != width * height:
        return (
            f"run lengths that sum to {shown(total)}; they must fill its image, "
            f"{width} × {height} = {width * height} pixels"
        )
    return ""


def run_lengths(text: str) -> NDArray[np.int64] | None:
    """What COCO's text of run lengths says, int64 [N]; None if it is not one.

    Each number is of five bits a character, the lowest first; 32 says that more follow, and the
    highest bit of the last is the sign. From the fourth on they are differences to the last but
    one.
    """
    if not text.isascii():
        return None
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    widths = ends - starts + 1
    if widths.max() > _DIGITS:
        return None
    places = np.arange(digits.size) - np.repeat(starts, widths)
    values = np.add.reduceat((digits & 31) << 5 * places, starts)
    values -= ((digits[ends] & 16) != 0).astype(np.int64) << 5 * widths
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
