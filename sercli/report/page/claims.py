"""What became of claims about the runs, as `ser reproduce` writes it, for the top of a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.report.page.views import clipped
from sercli.runs.files import read_json


@dataclass(frozen=True)
class ClaimView:
    """A claim: what became of it, by which p value, and a line a comparison."""

    text: str
    verdict: str
    level: str
    numbers: Sequence[str]


@dataclass(frozen=True)
class ClaimsView:
    """All of them, and how they are decided."""

    rule: str
    claims: Sequence[ClaimView]


def claims_of(file: Path) -> ClaimsView:
    """The claims of a file, for `parts.html.j2`.

    Raises:
        UserError: It cannot be read, or it is no such file.
    """
    found = read_json(file)
    claims = found.get("claims")
    if not isinstance(claims, list) or not all(isinstance(one, Mapping) for one in claims):
        raise UserError(f"{file} has no claims", "outcome.json of ser reproduce is needed")
    rule = found.get("rule")
    return ClaimsView(
        clipped(rule if isinstance(rule, str) else "", 10_000), [_view(one) for one in claims]
    )


def _view(claim: Mapping[str, Any]) -> ClaimView:
    return ClaimView(
        text=clipped(claim.get("text", "–")),
        verdict=clipped(claim.get("verdict", "–")),
        level=clipped(claim.get("level") or _level(claim.get("adjusted_p"))),
        numbers=list(_numbers(claim.get("comparisons"))),
    )


def _level(adjusted: Any) -> str:
    """Of an outcome that was written before it had that in words."""
    return f"corrected p = {adjusted:.2g}" if isinstance(adjusted, int | float) else "not tested"


def _numbers(comparisons: Any) -> Iterator[str]:
    for one in comparisons if isinstance(comparisons, list) else []:
        if isinstance(one, Mapping):
            yield clipped(one.get("text", "–"))
