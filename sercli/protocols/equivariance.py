"""Equivariance scores of the patch tokens of each block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sercli.protocols.contract import Axis, PerImage, Protocol, Quantity, Reading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PLACE = "block{block}/{action}"
# Not scores of the model but what they are to be read against: neither end is better.
_CONTROLS = ("es_random", "es_identity", "gain", "es_other_image", "es_shuffled")
# Names that are means of several transformations, and how the names of those begin.
_MEMBERS = {"rotation": "rot", "scale": "scale", "mean": ""}
_STORED = ("layers", "transformations", "observed", "moved", "product")


def _parts(
    arrays: Mapping[str, NDArray[Any]], reading: Reading
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Of ES: 2⟨F̃,Ã⟩ and ‖F̃‖² + ‖Ã‖² of each transformation that the score is the mean of."""
    layers, names, observed, moved, product = (arrays[name] for name in _STORED)
    shape = (layers.size, observed.shape[-1] if observed.ndim else 0, names.size)
    if observed.shape != shape[:2] or moved.shape != shape or product.shape != shape:
        raise ValueError("sums that are not of the same layers, images and transformations")
    action = reading.metric.rpartition("/")[2]
    begins = _MEMBERS.get(action)
    members = [
        place
        for place, name in enumerate(map(str, names.ravel().tolist()))
        if (name == action if begins is None else name.startswith(begins))
    ]
    of_block = [place for place, layer in enumerate(layers.ravel()) if layer == reading.block]
    if not members or len(of_block) != 1:
        return None
    (block,) = of_block
    numerators = 2 * product[block][:, members].T
    return numerators, (observed[block][:, None] + moved[block][:, members]).T


_PER_IMAGE = PerImage(arrays=lambda _: _STORED, parts=_parts)


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
        per_image=_PER_IMAGE,
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
