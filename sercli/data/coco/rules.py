"""What an annotation file must be, and what is wrong with one that is not.

`read_listing` is the one reader: `ser data check` lists what it refuses, `ser coco-detect` ends
with the first of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sercli.data.coco.masks import segmentation_fault
from sercli.data.coco.source import Annotation, Category, is_object
from sercli.data.coco.values import (
    LARGEST,
    is_box,
    is_number,
    is_path_inside,
    is_text,
    is_whole,
    shown,
)

_OVERHANG = 1.0  # pixels: boxes of COCO reach over the border by fractions of one

_NOTHING = {
    "train": "no annotation is an object to train on, with an area in its image; crowds are none",
    "val": "no annotation is an object to find; crowds are none",
}


@dataclass(frozen=True)
class ListedImage:
    """An image of an annotation file.

    Attributes:
        id: Raw, as in the file.
        file_name: Its path below the folder of images.
        size: Width and height in pixels.
    """

    id: int
    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Listing:
    """What of an annotation file breaks no rule.

    Attributes:
        categories: By raw id, in its order.
        images: By id, in its order.
        annotations: As in the file, and in its order; each is of an image and a category above.
    """

    categories: Mapping[int, Category]
    images: Mapping[int, ListedImage]
    annotations: tuple[Annotation, ...]


def read_listing(
    content: Mapping[str, Any], refuse: Callable[[str], object], *, split: str
) -> Listing:
    """Read the three lists of an annotation file.

    Every image, annotation and category has its own whole number as id; an annotation's is
    positive (pycocotools takes a match with annotation 0 for no match); it names an image and a
    category that exist, and has a box of no negative extent in that image, an area, and a
    segmentation that a mask of the image's size can be made of. Where iscrowd is missing it is 0.
    In train, some annotation can be trained on; in val, some can be found.

    Args:
        content: The file's, with its three lists.
        refuse: Called with each thing that makes a number wrong or a reader fail, one line each;
            it may raise.
        split: "train" or "val".

    Returns:
        What nothing is wrong with.
    """
    categories = _categories(content["categories"], refuse)
    images = _images(content["images"], refuse)
    annotations: list[Annotation] = []
    seen: set[int] = set()
    for one in content["annotations"]:
        sound = True
        for fault in _faults(one, images, categories, seen):
            refuse(fault)
            sound = False
        if sound and images[one["image_id"]] and categories[one["category_id"]]:
            annotations.append(one)
    if not images:
        refuse("it lists no images")
    elif not any(_counts(one, images, split) for one in annotations):
        refuse(_NOTHING[split])
    return Listing(
        {number: one for number, one in sorted(categories.items()) if one is not None},
        {number: one for number, one in sorted(images.items()) if one is not None},
        tuple(annotations),
    )


def _counts(one: Annotation, images: Mapping[int, ListedImage | None], split: str) -> bool:
    image = images[one["image_id"]]
    if split == "train":
        return image is not None and is_object(one, *image.size)
    return not one.get("iscrowd", 0)


# -- Images and categories ------------------------------------------------------------------------


def _categories(entries: list[Any], refuse: Callable[[str], object]) -> dict[int, Category | None]:
    """By id; None: it is there, but has no name."""
    found: dict[int, Category | None] = {}
    for one in entries:
        if fault := _id_fault(one, "category", found):
            refuse(fault)
        elif not is_text(one.get("name")):
            refuse(f"category {one['id']} has {_value(one, 'name')}; it must be text")
            found[one["id"]] = None
        else:
            found[one["id"]] = Category(one["id"], one["name"])
    if not found:
        refuse("it has no categories")
    return found


def _images(entries: list[Any], refuse: Callable[[str], object]) -> dict[int, ListedImage | None]:
    """By id; None: it is there, but something is wrong with it."""
    found: dict[int, ListedImage | None] = {}
    for one in entries:
        if fault := _id_fault(one, "image", found):
            refuse(fault)
        elif fault := _image_fault(one):
            refuse(f"image {one['id']} has {fault}")
            found[one["id"]] = None
        else:
            size = one["width"], one["height"]
            found[one["id"]] = ListedImage(one["id"], one["file_name"], size)
    return found


def _image_fault(one: Mapping[str, Any]) -> str:
    """What is wrong with it, as said after "image 7 has "; "" if nothing is."""
    width, height = one.get("width", 0), one.get("height", 0)
    if not (is_whole(width, least=1) and is_whole(height, least=1)):
        return (
            f"{_value(one, 'width')} and {_value(one, 'height')}; both must be whole numbers of "
            "pixels, at least 1"
        )
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if width * height > most:
        return f"{width} × {height} pixels; more than {most:,} are not read, scale it down"
    if not is_path_inside(one.get("file_name")):
        return (
            f"{_value(one, 'file_name')}; it must be a path inside the folder of images, of at "
            "most 255 bytes a part"
        )
    return ""


def _id_fault(one: Any, what: str, seen: Any, *, least: int = 0) -> str:
    """What is wrong with an entry's id; "" if nothing is."""
    if type(one) is not dict:
        return f"the {what} {shown(one)} is no object with keys and values"
    number = one.get("id")
    if not is_whole(number, least=least):
        rule = "a positive whole number" if least else "a whole number of 0 or more"
        why = ": pycocotools counts a match with 0 as none" if least and number == 0 else ""
        beyond = f", at most {LARGEST}," if type(number) is int and number > LARGEST else ""
        return f"{what} id {shown(number)}; {rule}{beyond} is needed{why}"
    return f"{what} id {number} is there twice" if number in seen else ""


# -- Annotations ----------------------------------------------------------------------------------


def _faults(
    one: Any,
    images: Mapping[int, ListedImage | None],
    categories: Mapping[int, Category | None],
    seen: set[int],
) -> Iterator[str]:
    """Everything that is wrong with an annotation, one line each; its id is seen from now on."""
    if fault := _id_fault(one, "annotation", seen, least=1):
        yield fault
        if type(one) is not dict:
            return
    else:
        seen.add(one["id"])
    number = one.get("id")
    called = f"annotation {number if is_whole(number) else shown(number)}"
    image = None
    if not is_whole(number := one.get("image_id")) or number not in images:
        yield f"{called} names image {shown(number)}, which is not listed"
    else:
        image = images[number]
    if not is_whole(number := one.get("category_id")) or number not in categories:
        yield f"{called} has category {shown(number)}, which is not listed"
    if not is_box(box := one.get("bbox")):
        yield (
            f"{called} has {_value(one, 'bbox')}; it must be x, y, width ≥ 0 and height ≥ 0, "
            "finite numbers"
        )
    elif image is not None and (beyond := _overhang(box, *image.size)) > _OVERHANG:
        yield (
            f"{called} has the box {shown(box)}, which reaches {beyond:g} px outside image "
            f"{image.id} of {image.size[0]} × {image.size[1]}"
        )
    if image is not None and (fault := segmentation_fault(one.get("segmentation"), image.size)):
        yield f"{called} has {fault}"
    if not is_number(area := one.get("area")) or area < 0:
        yield f"{called} has {_value(one, 'area')}; it must be a finite number, 0 or more"
    crowd = one.get("iscrowd", 0)
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        yield f"{called} has {_value(one, 'iscrowd')}; it must be 0 or 1"


def _value(one: Mapping[str, Any], key: str) -> str:
    return f"the {key} {shown(one[key])}" if key in one else f"no {key}"


def _overhang(box: list[float], width: int, height: int) -> float:
    """How far a box reaches outside its image, in pixels."""
    x, y, wide, high = box
    return max(-x, -y, x + wide - width, y + high - height)
