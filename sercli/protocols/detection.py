"""Detection on a frozen backbone, scored as COCO does; a variant is an engine."""

from __future__ import annotations

from sercli.protocols.contract import Protocol, Quantity

_NUMBERS = (
    *(("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75")),
    *(("ap_small", "AP small"), ("ap_medium", "AP medium"), ("ap_large", "AP large")),
)


def _of_kind(prefix: str, words: str) -> tuple[Quantity, ...]:
    """The numbers of boxes, or of masks."""
    numbers = tuple(
        Quantity(
            f"{prefix}{name}",
            f"{words}{heading}",
            default=name == "ap",
            interval="stored" if name in {"ap", "ap50"} else None,
        )
        for name, heading in _NUMBERS
    )
    return (*numbers, Quantity(f"{prefix}ap/{{category*}}", f"{words}AP {{category}}"))


PROTOCOL = Protocol(
    name="coco-detect",
    title="detection",
    explanation="COCO average precision of a detector on the frozen backbone; percent.",
    heading="COCO ({variant}) {quantity}",
    place=4,
    quantities=(*_of_kind("", ""), *_of_kind("mask_", "mask ")),
    pictures={"coco-detect--*": "Detections"},
    untested="Differences in AP are not tested: compare the intervals.",
)
