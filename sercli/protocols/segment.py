"""A linear probe of patch tokens, scored pixel by pixel; a variant is a layout of files."""

from __future__ import annotations

from sercli.protocols.contract import Protocol, Quantity


def _scored(name: str, heading: str, *, default: bool = False) -> tuple[Quantity, ...]:
    """A number of the last block, of another one, and of a random twin's."""
    block = "/block{block}"
    return (
        Quantity(name, heading, default=default, interval="stored", floor=f"random/{name}"),
        Quantity(
            f"{name}{block}",
            f"{heading} block {{block}}",
            default=default,
            interval="stored",
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
        *_scored("pixel_accuracy", "pixel accuracy"),
        Quantity("iou/{category*}", "IoU {category}", interval="stored"),
    ),
    pictures={"segment*": "Segmentations"},
    untested="Differences in mIoU are not tested: compare the intervals.",
)
