"""Where the numbers of a table come from, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sercli import __version__
from sercli.report.compare.runs import Run


def provenance_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Where a table comes from."""
    return {"ser": __version__, "runs": [run_provenance(run) for run in runs]}


def run_provenance(run: Run) -> dict[str, Any]:
    """Where a row comes from: the directory, what made it, and each result's protocol."""
    recorded = ("status", "recipe_name", "git_commit", "device", "versions", "command")
    return {
        "path": run.path,
        "seed": run.seed,
        **{key: run.record[key] for key in recorded if key in run.record},
        **({"status": run.state} if "status" in run.record else {}),
        "results": {
            name: {
                "protocol_id": result.protocol_id,
                "model": result.model,
                "data": result.data,
                "created": result.created,
            }
            for name, result in run.results.items()
        },
    }
