"""Linear probes; a variant is a preset, and what makes it another quantity."""

from __future__ import annotations

from sercli.protocols.contract import Protocol, Quantity

PROTOCOL = Protocol(
    name="linear-eval",
    title="linear-probe",
    explanation="A linear probe on frozen features, chosen on a hold-out, tested once; percent.",
    heading="Linear ({variant}) {quantity}",
    place=2,
    variants={"ser": "SER", "dino": "DINO", "moco-v3": "MoCo-v3"},
    quantities=(
        Quantity("top1", "top-1", default=True, interval="wilson", paired=True, axis="accuracy"),
        Quantity("top5", "top-5", default=True, interval="wilson"),
        # Of the best head, of the last state of heads, and of the best head of a feature set.
        Quantity("{head}/top1"),
        Quantity("{head}/top5"),
    ),
)
