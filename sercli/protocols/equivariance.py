"""Equivariance scores of the patch tokens of each block."""

from __future__ import annotations

from sercli.protocols.contract import Axis, Protocol, Quantity

_PLACE = "block{block}/{action}"
# Not scores of the model but what they are to be read against: neither end is better.
_CONTROLS = ("es_random", "es_identity", "gain", "es_other_image", "es_shuffled")


def _score(
    action: str, *, default: bool = False, drawn: bool = False, axis: Axis | None = None
) -> Quantity:
    """ES under an action, or under any (`{action}`); its floor is that of a random twin."""
    return Quantity(
        f"es/block{{block}}/{action}",
        f"ES {action} block {{block}}",
        unit="score",
        default=default,
        undefined=True,
        interval="stored",
        floor=f"es_random/block{{block}}/{action}",
        by_block=drawn,
        axis=axis,
    )


def _beside(family: str, words: str, explanation: str = "") -> Quantity:
    return Quantity(
        f"{family}/{_PLACE}",
        f"{words} {{action}} block {{block}}",
        unit="score",
        better=None,
        interval="stored" if family == "es_random" else None,
        explanation=explanation,
    )


PROTOCOL = Protocol(
    name="equiv-score",
    title="equivariance",
    explanation="Equivariance score of the patch tokens after this block: 1 is exact.",
    heading="{quantity} ({variant})",
    place=6,
    default_block=3,
    quantities=(
        _score("rotation", default=True, drawn=True, axis="equivariance"),
        _score("hflip", default=True, drawn=True),
        _score("scale", drawn=True),
        _score("{action}"),
        *(_beside(family, family) for family in _CONTROLS),
        _beside(
            "cosine_raw",
            "raw cosine",
            "Uncentred token cosine: high even for an untrained encoder, ranks nothing.",
        ),
        Quantity(
            "energy/block{block}",
            "energy block {block}",
            unit="score",
            better=None,
            explanation="",
            by_block=True,
        ),
    ),
    undefined_if="an equivariance score of a map without spatial variance",
    pictures={"equiv-tokens": "Token maps"},
)
