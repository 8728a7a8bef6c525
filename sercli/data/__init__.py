"""Data sets: where images come from. Importing this package does not import torch.

- `open_source(path, split, …)`: a directory of class folders, or "shapes", the embedded world.
- `image_folder.py`: class folders; `manifest.py` keeps their file lists; `decode.py` reads files.
- `shapes.py`: the embedded world; `shapes_files.py` writes it as files in the layouts of real sets.
- `coco.py`: detection sets in COCO's format; `shapes_detection.py`: the embedded world as one.
- `check.py`, `robustness_check.py`, `coco_check.py`: is a directory fit for use?
- `robustness_*.py`, `imagenet_classes.py`, `videos.py`: ImageNet-C, -P, -R, -A, -Sketch, -V2.
- `corruptions*.py`: the 19 corruptions of ImageNet-C, deterministic for each image.
"""

from __future__ import annotations

from pathlib import Path

from sercli.data.coco import is_coco
from sercli.data.image_folder import ImageFolder, open_folder, split_folder
from sercli.data.shapes import NUM_IMAGES, ShapesSource
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
