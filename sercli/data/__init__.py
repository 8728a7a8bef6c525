"""Data sets: where images come from. Importing this package does not import torch.

- `open_source(path, split, …)`: a directory of class folders, or "shapes", the embedded world.
- `images/`: class folders. `shapes/`: the embedded world. `coco/`: detection sets in COCO's format.
- `robustness/`: ImageNet-C, -P, -R, -A, -Sketch, -V2. `corruptions/`: the 19 of ImageNet-C.
- `loading.py`: batches by loader processes (`workers.py`) through shared memory (`ring.py`).
- `source.py`: what a set of images is to the rest of `ser`.
"""

from __future__ import annotations

from pathlib import Path

from sercli.data.coco.folder import is_coco
from sercli.data.images.folder import ImageFolder, open_folder, split_folder
from sercli.data.shapes.world import NUM_IMAGES, ShapesSource
from sercli.data.source import ImageSource, UnreadableImage
from sercli.errors import UserError

__all__ = [
    "ImageFolder",
    "ImageSource",
    "ShapesSource",
    "UnreadableImage",
    "has_split",
    "open_source",
]

SHAPES = "shapes"


def open_source(
    path: str, split: str, *, image_size: int, num_images: int | None = None, seed: int = 0
) -> ImageSource:
    """Open one split of a data set.

    Args:
        path: "shapes" for the embedded world (a folder of that name is `./shapes`), otherwise a
            directory: with `train/` and `val/` folders of class folders it is read by split; with
            class folders of its own all of it is "train".
        split: "train" or "val".
        image_size: Side in pixels at which the embedded world is rendered; files keep their size.
        num_images: Images of the embedded world (default: 4096 in train, 1024 in val).
        seed: Of the embedded world; train and val of one seed share no image.

    Raises:
        UserError: The directory, the split or its images are missing, the classes of `val/` differ
            from those of `train/`, or `num_images` is given for a directory.
    """
    _require_split_name(split)
    if path == SHAPES:
        number = NUM_IMAGES[split] if num_images is None else num_images
        return ShapesSource(split, image_size=image_size, num_images=number, seed=seed)
    if num_images is not None:
        raise UserError(
            f"num_images = {num_images} with the directory {path}",
            "the number of images can be chosen only for `shapes`, the embedded world",
            "leave it out",
        )
    _refuse_coco(Path(path))
    return open_folder(Path(path), split, name=path)


def has_split(path: str, split: str) -> bool:
    """Whether a data set has a split, without reading its images.

    Raises:
        UserError: `path` is neither "shapes" nor a directory.
    """
    _require_split_name(split)
    if path == SHAPES:
        return True
    _refuse_coco(Path(path))
    return split_folder(Path(path), split) is not None


def _refuse_coco(path: Path) -> None:
    if is_coco(path):
        raise UserError(
            f"{path} is a detection set in COCO's format",
            "class folders, or train/ and val/ of them, are needed",
            "`ser coco-detect` takes it",
        )


def _require_split_name(split: str) -> None:
    if split not in NUM_IMAGES:
        raise ValueError(f"split {split!r} is neither train nor val")
