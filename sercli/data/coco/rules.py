"""What an annotation must be, and what is wrong with one that is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Everything that makes a number wrong or a reader fail, one line each.

    Every image, annotation and category has its own whole number as id; an annotation's is
    positive (pycocotools takes a match with annotation 0 for no match); it names an image and a
    category that exist, and has a box of no negative extent, an area, and a segmentation that a
    mask can be made of. Where iscrowd is missing it is 0.
    """
    categories: set[int] = set()
    for one in content["categories"]:
        yield from _bad_id(one, "category", categories)
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            yield f"category {_shown(one)} has no name"
    if not categories:
        yield "it has no categories"
    images: set[int] = set()
    sizes: dict[int, list[int]] = {}
    for one in content["images"]:
        yield from _bad_id(one, "image", images)
        sides = [one.get("width"), one.get("height")] if isinstance(one, dict) else []
        if not all(isinstance(side, int) and side > 0 for side in sides):
            yield f"image {_shown(one)} has no width and height in pixels"
        elif not isinstance(one.get("file_name"), str) or not one["file_name"]:
            yield f"image {_shown(one)} has no file_name"
        else:
            sizes[one.get("id")] = [one["height"], one["width"]]
    annotations: set[int] = set()
    for one in content["annotations"]:
        yield from _bad_id(one, "annotation", annotations, least=1)
        if not isinstance(one, dict):
            continue
        size = None
        if _is_number(one.get("image_id")) and one["image_id"] in images:
            size = sizes.get(one["image_id"])
        else:
            yield f"annotation {_shown(one)} names image {one.get('image_id')}, which is not listed"
        if not _is_number(one.get("category_id")) or one["category_id"] not in categories:
            yield (
                f"annotation {_shown(one)} has category {one.get('category_id')}, which is not "
                "listed"
            )
        if not is_box(one.get("bbox")):
            yield f"annotation {_shown(one)} has no bbox of x, y, width ≥ 0 and height ≥ 0"
        if not _is_outline(one.get("segmentation"), size):
            yield (
                f"annotation {_shown(one)} has no segmentation of polygons of 3 points or more, "
                "or of run lengths of its image's size"
            )
        if not _is_number(one.get("area")):
            yield f"annotation {_shown(one)} has no area"
        if one.get("iscrowd", 0) not in (0, 1):
            yield f"annotation {_shown(one)} has an iscrowd of neither 0 nor 1"


def _bad_id(one: Any, what: str, seen: set[int], *, least: int = 0) -> Iterator[str]:
    number = one.get("id") if isinstance(one, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        rule = "a positive whole number is needed" if least else "a whole number is needed"
        why = ": pycocotools counts a match with 0 as none" if least and number == 0 else ""
        yield f"{what} id {number!r}; {rule}{why}"
    elif number in seen:
        yield f"{what} id {number} is there twice"
    else:
        seen.add(number)


def _shown(one: Any) -> str:
    return repr(one.get("id")) if isinstance(one, dict) else repr(one)


def _polygons(segmentation: Sequence[Any]) -> list[Any]:
    """Those with three points or more: pycocotools takes four numbers for a box."""
    return [
        points
        for points in segmentation
        if isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
    ]


def _is_outline(segmentation: Any, size: list[int] | None) -> bool:
    """Whether a mask can be made of it; a broken polygon may stand beside a sound one."""
    if isinstance(segmentation, dict):
        fits = size is None or segmentation.get("size") == size
        return fits and bool(segmentation.get("counts"))
    return isinstance(segmentation, list) and bool(_polygons(segmentation))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_box(box: Any) -> bool:
    """Whether it is x, y, width and height, of no negative extent."""
    return (
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0
    )
