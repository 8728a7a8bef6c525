"""A linear probe of patch tokens, scored pixel by pixel; a variant is a layout of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sercli.protocols.contract import PerImage, Protocol, Quantity, Reading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CLASSES, _TRUTH = "classes", "truth"
_ALL_PIXELS = "pixel_accuracy"


def _stored(reading: Reading) -> tuple[str, ...]:
    """Names of arrays; those of another block than the last begin with it."""
    block = "" if reading.block is None else f"block{reading.block:02d}_"
    return (_CLASSES, _TRUTH, f"{block}intersections", f"{block}unions")


def _parts(
    arrays: Mapping[str, NDArray[Any]], reading: Reading
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Of IoU: pixels in both and in either of each class that occurs, or of the one in question."""
    classes, truth, right, unions = (arrays[name] for name in _stored(reading))
    if truth.ndim != 2 or len({truth.shape, right.shape, unions.shape}) > 1:
        raise ValueError("counts that are not of the same images and classes")
    if truth.shape[1] != classes.size:
        raise ValueError("counts that are not of so many classes")
    if reading.metric.startswith(_ALL_PIXELS):
        return _floats(right.sum(1, keepdims=True)), _floats(truth.sum(1, keepdims=True))
    occurs = truth.sum(0) > 0
    if "category" in reading.slots:
        occurs &= classes.ravel() == reading.slots["category"]
    return (_floats(right[:, occurs]), _floats(unions[:, occurs])) if occurs.any() else None


def _floats(counts: NDArray[Any]) -> NDArray[np.float64]:
    """[n, K] → [K, n]."""
    found: NDArray[np.float64] = counts.T.astype("float64")
    return found


_PER_IMAGE = PerImage(arrays=_stored, parts=_parts, truth=_TRUTH)


def _scored(name: str, heading: str, *, default: bool = False) -> tuple[Quantity, ...]:
    """A number of the last block, of another one, and of a random twin's."""
    block = "/block{block}"
    return (
        Quantity(
            name,
            heading,
            default=default,
            interval="stored",
            per_image=_PER_IMAGE,
            floor=f"random/{name}",
        ),
        Quantity(
            f"{name}{block}",
            f"{heading} block {{block}}",
            default=default,
            interval="stored",
            per_image=_PER_IMAGE,
            floor=f"random/{name}{block}",
        ),
        Quantity(f"random/{name}", interval="stored"),
        Quantity(f"random/{name}{block}", interval="stored"),
    )


PROTOCOL = Protocol(
    name="segment",
    title="segmentation",
    explanation="A linear probe of patch tokens, mean IoU over the classes that occur; percent.",
    heading="Segment ({variant}) {quantity}",
    place=5,
    variants={"voc": "VOC", "ade20k": "ADE20K"},
    default_block=3,
    quantities=(
        *_scored("miou", "mIoU", default=True),
        *_scored(_ALL_PIXELS, "pixel accuracy"),
        Quantity("iou/{category*}", "IoU {category}", interval="stored", per_image=_PER_IMAGE),
    ),
    pictures={"segment*": "Segmentations"},
)
