"""The one door to images with a class for every pixel, of whatever kind."""

from __future__ import annotations

from sercli.data.masks.source import MaskSource
from sercli.data.registry import DataKind, kinds
from sercli.runs.places import require_place


def masks_kind(path: str) -> DataKind:
    """The kind of a set of images and masks; what none recognises is refused by that of files.

    Raises:
        UserError: It is no path: a URL, say.
    """
    require_place(path, "data")
    able = [one for one in kinds() if one.has_classes_of_pixels]
    files = next(one for one in able if one.name == "masks")
    return next((one for one in able if one.recognises(path)), files)


def require_masks(path: str) -> None:
    """Refuse what is no set of images and masks, before torch is imported.

    Raises:
        UserError: It is none.
    """
    masks_kind(path).require_masks(path)


def open_masks(path: str, split: str, *, image_size: int, seed: int = 0) -> MaskSource:
    """Open one split of a set with a class for every pixel.

    Args:
        path: `shapes`, or a directory in one of the layouts of `data.masks.layouts`.
        split: "train" or "val".
        image_size: Side in pixels at which the embedded world is rendered; files keep their size.
        seed: The embedded world's, as in `open_source`.

    Raises:
        UserError: It is missing, or in none of these layouts.
    """
    return masks_kind(path).open_masks(path, split, image_size=image_size, seed=seed)
