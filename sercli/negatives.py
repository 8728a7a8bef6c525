"""Which tokens an anchor is contrasted with. Recipes say so, and must not wait for torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NEGATIVES = re.compile(r"(cross-view|both-views)(?:\+spatial:(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Negatives:
    """Which tokens an anchor is contrasted with (parsed from e.g. "both-views+spatial:2").

    Attributes:
        own_view: Also tokens of other images in the anchor's own view.
        radius: If given, also tokens of the same image farther than this, in patches.
    """

    own_view: bool
    radius: float | None

    @classmethod
    def parse(cls, text: str) -> Negatives:
        match = _NEGATIVES.fullmatch(text)
        if match is None:
            raise ValueError(
                f"negatives {text!r}: expected cross-view or both-views, "
                "optionally with +spatial:r (r in patches)"
            )
        return cls(match[1] == "both-views", None if match[2] is None else float(match[2]))
