"""Weighted nearest neighbours."""

from __future__ import annotations

from sercli.protocols.contract import Protocol, Quantity

PROTOCOL = Protocol(
    name="knn",
    title="nearest-neighbour",
    explanation="Weighted nearest neighbours on the frozen encoder's [CLS]; percent.",
    heading="kNN ({variant}) {quantity}",
    place=1,
    variants={"1pct": "1 %", "10pct": "10 %"},
    quantities=(
        Quantity("top1", "top-1", default=True, interval="wilson", paired=True, axis="accuracy"),
        Quantity("top5", "top-5", interval="wilson"),
        Quantity("random/top1", interval="stored"),  # of a random twin of the encoder
        Quantity("random/top5", interval="stored"),
        Quantity("k{k}/top1"),  # by that number of neighbours
        Quantity("k{k}/top5"),
    ),
)
