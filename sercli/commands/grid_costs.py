"""`ser reproduce --dry-run`: a grid's jobs with their commands, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sercli.commands.printing import print_table
from sercli.errors import UserError
from sercli.visible import duration, say

if TYPE_CHECKING:
    from sercli.grids.costs import Counter, Speed
    from sercli.grids.jobs import Job, Places, Plan
    from sercli.grids.standing import Standings
    from sercli.recipe.files import Resolved


def show_costs(plan: Plan, places: Places, standings: Standings, bench: Path | None) -> None:
    """The jobs with their commands, and what they cost."""
    from sercli.grids.costs import Speed

    speed = None if bench is None else Speed.from_file(bench)
    counter = counter_of(plan, places, standings)
    width = len(str(len(plan.jobs)))
    totals: dict[str, list[float]] = {}
    for number, job in enumerate(plan.jobs, 1):
        status = standings.of(job, places.data).status
        flops = counter.flops(job)
        seconds = _seconds(job, flops, speed)
        state = "" if status == "new" else f", {status}"
        say(f"{number:>{width}}/{len(plan.jobs)} {job.name}{_cost(flops, seconds)}{state}")
        say(f"  {job.command}")
        row = totals.setdefault(job.kind, [0, 0, 0.0, 0.0])
        if status != "done":
            for place, value in enumerate((1, flops is None, flops or 0.0, seconds or 0.0)):
                row[place] += value
    _print_totals(totals, speed)
    for path in sorted(counter.assumed):
        say(f"There is no {path}: the numbers of ImageNet's images were assumed.", err=True)


def _seconds(job: Job, flops: float | None, speed: Speed | None) -> float | None:
    return None if flops is None or speed is None else speed.seconds(flops, job.recipe)


def _cost(flops: float | None, seconds: float | None) -> str:
    told = "" if flops is None else f", {flops:.2e} FLOP"
    return told if seconds is None else f"{told}, about {duration(seconds)}"


def _print_totals(totals: Mapping[str, Sequence[float]], speed: Speed | None) -> None:
    """What is to be done, by kinds of jobs, and together."""
    rows = []
    whole = [sum(row[place] for row in totals.values()) for place in range(4)]
    for kind, (number, unknown, flops, seconds) in [*totals.items(), ("all", whole)]:
        cells = [kind, f"{number:,.0f}", "-" if unknown == number else f"{flops:.2e}"]
        if speed is not None:
            hours = seconds / 3600
            shown = f"{hours:,.2f}" if hours < 10 else f"{hours:,.1f}"  # a miniature's are few
            cells.append("-" if unknown == number else shown)
        rows.append(cells)
    uncounted = " and those without FLOPs" if whole[1] else ""
    caption = "FLOPs: of all steps of a training; of an evaluation those of the encoder\n" + (
        "no hours: --bench FILE.json of `ser bench step --json` gives them"
        if speed is None
        else f"hours: of one {speed.device}, without reading images{uncounted}"
    )
    headings = ["jobs to do", "number", "FLOP", *([] if speed is None else ["hours"])]
    print_table(headings, rows, title="What it costs", caption=caption)


def counter_of(plan: Plan, places: Places, standings: Standings) -> Counter:
    """What counts the FLOPs of a plan's jobs."""
    from sercli.engine.beginning import beginning_of
    from sercli.grids.costs import Counter

    recipes: dict[str, Resolved] = {}
    for job in plan.jobs:
        if job.is_training:
            resolved = standings.recipe_of(job, places.data)
            try:
                beginning = beginning_of(resolved)
            except UserError:  # weights that are not there yet: what they are is not known
                continue
            recipes[job.directory.name] = resolved if beginning is None else beginning.resolved
    return Counter(recipes)
