"""What became of claims about the runs, as `ser reproduce` writes it, for the top of a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.report.page.views import WordsView, clipped
from sercli.runs.files import read_json

_HEADS = ("Claim", "What became of it", "Corrected p", "Numbers")


def claims_of(file: Path) -> WordsView:
    """The claims of a file as a table of words.

    Raises:
        UserError: It cannot be read, or it is no such file.
    """
    found = read_json(file)
    claims = found.get("claims")
    if not isinstance(claims, list) or not all(isinstance(one, Mapping) for one in claims):
        raise UserError(f"{file} has no claims", "outcome.json of ser reproduce is needed")
    rule = found.get("rule")
    return WordsView(
        _HEADS,
        [_row(one) for one in claims],
        caption=clipped(rule if isinstance(rule, str) else "", 1000),
    )


def _row(claim: Mapping[str, Any]) -> list[str]:
    adjusted = claim.get("adjusted_p")
    tested = isinstance(adjusted, int | float)
    return [
        *(clipped(claim.get(key, "–")) for key in ("text", "verdict")),
        f"{adjusted:.2g}" if tested else "not tested",
        "; ".join(_numbers(claim.get("comparisons"))),
    ]


def _numbers(comparisons: Any) -> Iterator[str]:
    for one in comparisons if isinstance(comparisons, list) else []:
        if isinstance(one, Mapping):
            yield clipped(one.get("text", "–"))
