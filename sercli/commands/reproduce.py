"""`ser reproduce`: a grid of runs, their evaluations, tables, and what they say of its claims."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sercli.commands.grid_costs import counter_of, show_costs
from sercli.commands.grid_words import read_words
from sercli.commands.options import Device, option_objects
from sercli.errors import RunFailed, UserError
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.grids.children import Children
    from sercli.grids.eta import Estimator
    from sercli.grids.jobs import Job, Places, Plan
    from sercli.grids.running import Summary
    from sercli.grids.schema import Grid
    from sercli.grids.standing import Standings

World = Literal["shapes"]  # a grid of that name, and one with "-quick", come with ser


@dataclass(frozen=True)
class WhichGrid:
    """Which grid, and on what."""

    panel: ClassVar[str] = "The grid"

    grid: Annotated[
        str | None,
        typer.Argument(
            metavar="GRID",
            help="A YAML file (sercli/grids/README.md says how), or a grid that comes with ser.",
            show_default="imagenet with --data",
        ),
    ] = None
    world: Annotated[
        World | None, typer.Option(help="The paper in miniature, on the embedded world.")
    ] = None
    quick: Annotated[
        bool,
        typer.Option("--quick", help="With --world: five runs of one seed, in minutes."),
    ] = False
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Images of all runs, such as ImageNet: the whole paper."),
    ] = None
    coco: Annotated[str | None, typer.Option(metavar="DIR", help="COCO, for detection.")] = None
    robustness: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="ImageNet-C, -P, -R, -Sketch, -V2, or a folder that holds some (repeat it).",
        ),
    ] = None
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what this table needs, such as main.")
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="Only these runs, or one seed of one (`ser-3-seed0`), of which no tables are made "
            "(--report-only does).",
        ),
    ] = None


@dataclass(frozen=True)
class How:
    """How it is done."""

    panel: ClassVar[str] = "The jobs"

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of all that is made; what is done there is skipped.",
            show_default="runs/reproduce-GRID",
        ),
    ] = None
    device: Device = None
    nproc: Annotated[int, typer.Option(min=1, help="Processes of a training.")] = 1
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the jobs, their commands and costs.")
    ] = False
    bench: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="With --dry-run: what `ser bench step --json` wrote, for hours.",
        ),
    ] = None
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a SLURM array into DIR instead; queue it yourself."
        ),
    ] = None
    stop_at_failure: Annotated[
        bool,
        typer.Option(
            "--stop-at-failure", help="End at a job that fails; otherwise the others follow."
        ),
    ] = False
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Go on with runs that failed before.")
    ] = False
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="No job: tables, page and outcome of what is done."),
    ] = False


@option_objects
def reproduce(which: WhichGrid, how: How) -> None:
    """Do a grid of runs and evaluations; then tables, a page, and which claims they confirm.

    `--world shapes` is the paper in miniature, `--data DIR` the paper. Jobs run one after the
    other, a line each; repeat the command after any interruption, and it goes on. The exit status
    is 0 if all is done, 3 if something failed, 75 or 130 if it was stopped.
    """
    from sercli.grids.jobs import plan_jobs
    from sercli.grids.reading import find_grid, read_grid, restricted
    from sercli.grids.standing import Standings
    from sercli.runs.files import require_writable

    name = _grid_name(which)
    _require_one_way(which, how)
    file = find_grid(name)
    grid = read_grid(file)
    if which.table is not None:
        grid = restricted(grid, which.table)
    places = _places(which, how, file.stem)
    whole = plan_jobs(grid, places)
    plan = whole.only(which.only or ())
    standings = Standings(read_words)
    _require_usable(plan, places, standings)
    for note in plan.notes:
        say(f"note: {note}", err=True)
    if how.dry_run:
        show_costs(plan, places, standings, how.bench)
    elif how.write is not None:
        _write(plan, which, how, name, places)
    else:
        require_writable(places.out)
        _require_images(plan, places, standings)
        # Of a part there is no report: parts may be done side by side.
        _do(None if which.only else grid, plan, places, standings, how)


def _grid_name(which: WhichGrid) -> str:
    """Which grid is asked for.

    Raises:
        UserError: None is, or two are.
    """
    if which.world is not None:
        if which.grid is not None or which.data is not None:
            other = which.grid if which.grid is not None else f"--data {which.data}"
            raise UserError(f"--world and {other}", "one grid is done at a time", "leave one out")
        return f"{which.world}-quick" if which.quick else which.world
    if which.quick:
        raise UserError("--quick without --world", "it is of the miniature", "add --world shapes")
    if which.grid is not None:
        return which.grid
    if which.data is not None:
        return "imagenet"
    raise UserError(
        "no grid",
        "a grid of runs is needed",
        "add --world shapes --quick, --data DIR, or a YAML file",
    )


def _require_one_way(which: WhichGrid, how: How) -> None:
    """Refuse options of which one would say nothing beside the other.

    Raises:
        UserError: In this case.
    """
    if how.bench is not None and not how.dry_run:
        raise UserError("--bench without --dry-run", "it is for hours", "add --dry-run")
    if how.report_only and which.only:
        raise UserError("--report-only with --only", "it is of all that is done", "leave one out")
    ways = {
        "--dry-run": how.dry_run,
        "--write": how.write is not None,
        "--report-only": how.report_only,
    }
    asked = [option for option, given in ways.items() if given]
    if len(asked) > 1:
        raise UserError(
            " with ".join(asked), "each is instead of doing the jobs", "leave all but one out"
        )


def _places(which: WhichGrid, how: How, stem: str) -> Places:
    from sercli.grids.jobs import Places
    from sercli.runs.places import require_place

    out = Path("runs") / f"reproduce-{stem}" if how.out is None else how.out
    require_place(out, "--out")
    return Places(
        out,
        data=which.data,
        coco=which.coco,
        robustness=tuple(which.robustness or ()),
        machine=() if how.device is None else ("--device", how.device),
        nproc=how.nproc,
    )


# -- What is refused before the first job ---------------------------------------------------------


def _require_usable(plan: Plan, places: Places, standings: Standings) -> None:
    """Refuse what could not be done, before the first job: recipes, commands.

    Raises:
        UserError: It names the job.
    """
    read: dict[tuple[str, ...], None] = {}
    for job in plan.jobs:
        try:
            if job.is_training:
                standings.require_weights(job, places)
            else:
                words = tuple(word.replace(job.directory.name, "") for word in job.words)
                if words not in read:
                    read[words] = None
                    read_words(job.words)
        except UserError as error:
            raise UserError(f"{job.name}: {error}") from error


def _require_images(plan: Plan, places: Places, standings: Standings) -> None:
    """Refuse images that are not there.

    Raises:
        UserError: In this case.
    """
    from sercli.data import has_split

    recipes = [standings.recipe_of(job, places.data) for job in plan.jobs if job.is_training]
    for path in dict.fromkeys(one.recipe.data.path for one in recipes):
        has_split(path, "train")


# -- Doing -----------------------------------------------------------------------------------------


def _do(grid: Grid | None, plan: Plan, places: Places, standings: Standings, how: How) -> None:
    from sercli.grids.children import Children
    from sercli.grids.outcome import runs_there
    from sercli.grids.running import Runner

    if how.report_only and grid is not None and not runs_there(grid, places):
        raise UserError(
            f"--report-only, and {places.runs} has no run of this grid",
            "there must be one",
            "name the --out that has them, or leave --report-only out",
        )
    with Children.passing_on() as children:
        summary = None
        if not how.report_only:
            runner = Runner(
                places,
                standings,
                _estimator(plan, places, standings),
                tell=say,
                showing=_showing,
                keep_going=not how.stop_at_failure,
                retry_failed=how.retry_failed,
            )
            summary = runner.run(plan.jobs, children)
        failed = []
        if grid is not None:
            foreign = standings.foreign(plan.jobs, places.data)
            failed = _report(grid, places, foreign, children)
        children.raise_if_stopped("tables were being made: repeat the command")
    _end(summary, failed)


def _estimator(plan: Plan, places: Places, standings: Standings) -> Estimator:
    """What jobs take; FLOPs are counted only where there is something to train."""
    from sercli.errors import SerError
    from sercli.grids.eta import Estimator

    open_ones = (one for one in plan.jobs if one.is_training)
    if all(standings.of(one, places.data).status == "done" for one in open_ones):
        return Estimator(lambda _job: None)
    counter = counter_of(plan, places, standings)

    def flops(job: Job) -> float | None:
        with contextlib.suppress(SerError):
            return counter.flops(job)
        return None

    return Estimator(flops)


@contextlib.contextmanager
def _showing(text: str) -> Iterator[None]:
    """On a terminal, what is under way; the line of its end takes its place."""
    if not sys.stdout.isatty():
        yield
        return
    from sercli.screen import Screen

    with Screen().status(text, spinner="line"):
        yield


def _report(
    grid: Grid, places: Places, foreign: Mapping[Path, str], children: Children
) -> list[str]:
    """Tables, the outcome and the page of what is done; what of that could not be made."""
    from sercli.errors import SerError
    from sercli.grids import outcome
    from sercli.grids.children import last_line
    from sercli.grids.claims import decide

    for why in foreign.values():
        say(f"not in tables, page and outcome: {why}", err=True)
    runs = outcome.runs_there(grid, places, foreign=foreign)
    if not runs:
        say("nothing is done: there are no tables")
        return []
    failed = []
    try:
        _show_tables(grid, places, runs, children)
    except SerError as error:
        failed.append("compare")
        say(f"ser compare: {error}", err=True)
    decided = decide(grid, places.run, foreign=foreign)
    names = outcome.names_in_tables(grid, places, decided, runs)
    files = outcome.write_outcome(places, decided, names)
    if not children.stopped:
        page = outcome.page_command(grid, places, runs, files[-1] if files else None)
        log = places.out / "logs" / "report.log"
        if children.run(page, log) and not children.stopped:
            failed.append("report")
            say(f"ser report: {last_line(log)}", err=True)
    say(*outcome.in_words(decided, names))
    if not children.stopped:
        said = [*files, places.out / "tables", *([] if failed else [places.out / "report.html"])]
        say(f"wrote {', '.join(map(str, said))}")
    return failed


def _show_tables(grid: Grid, places: Places, runs: Sequence[Path], children: Children) -> None:
    from sercli.commands.compare import print_for_people
    from sercli.grids.outcome import write_tables

    for number, made in enumerate(write_tables(grid, places, runs)):
        if children.stopped:
            return
        if made.table is None:
            say(f"No table {made.why}.")
        else:
            print_for_people(made.table, after=number > 0)


def _end(summary: Summary | None, failed: Sequence[str]) -> None:
    """Say what became of it.

    Raises:
        RunFailed: Something did not.
    """
    if summary is not None and not summary.complete:
        open_ones = summary.total - summary.done
        raise RunFailed(
            f"{summary.done} of {summary.total} jobs are done, {open_ones} are not: see above; "
            "mend it and repeat the command"
        )
    if failed:
        raise RunFailed(f"ser {failed[0]} failed; see above, or the logs")
    if summary is not None:
        say(f"{counted(summary.total, 'job')}, all done")


# -- Writing ---------------------------------------------------------------------------------------


def _write(plan: Plan, which: WhichGrid, how: How, name: str, places: Places) -> None:
    from sercli.grids.cluster import write_array
    from sercli.runs.files import require_writable

    assert how.write is not None
    require_writable(how.write)
    command = ["reproduce", name, "--out", str(places.out)]
    for option, value in (("--data", which.data), ("--coco", which.coco), ("--table", which.table)):
        command += [] if value is None else [option, value]
    for folder in which.robustness or ():
        command += ["--robustness", folder]
    command += [*places.machine, *(["--nproc", str(how.nproc)] if how.nproc > 1 else [])]
    command += ["--retry-failed"] if how.retry_failed else []
    command += ["--stop-at-failure"] if how.stop_at_failure else []
    files = write_array(how.write, plan, command=command, nproc=how.nproc)
    say(*(f"wrote {file}" for file in files), "see the head of array.sh for how they are queued")
