"""`ser reproduce`: a grid of runs, their evaluations, tables, and what they say of its claims."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from sercli.commands.options import Device, option_objects
from sercli.errors import RunFailed, UserError
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.grids.children import Children
    from sercli.grids.costs import Counter, Speed
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
            help="A YAML file, or the name of a grid that comes with ser; see recipes/README.md.",
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
    coco: Annotated[
        str | None, typer.Option(metavar="DIR", help="COCO, for detection and segmentation.")
    ] = None
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
        typer.Option(metavar="RUN", help="Only these runs, or one seed of one: `ser-3-seed0`."),
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
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going/--stop-at-failure", help="Whether others follow a job that failed."
        ),
    ] = True
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

    name = _grid_name(which)
    file = find_grid(name)
    grid = read_grid(file)
    if which.table is not None:
        grid = restricted(grid, which.table)
    places = _places(which, how, file.stem)
    whole = plan_jobs(grid, places)
    plan = whole.only(which.only or ())
    standings = Standings(_read_words)
    _require_usable(plan, places, standings)
    for note in plan.notes:
        say(f"note: {note}", err=True)
    if how.bench is not None and not how.dry_run:
        raise UserError("--bench without --dry-run", "it is for hours", "add --dry-run")
    if how.report_only and which.only:
        raise UserError("--report-only with --only", "it is of all that is done", "leave one out")
    if how.dry_run:
        _show(plan, places, standings, how.bench)
    elif how.write is not None:
        _write(plan, which, how, name, places)
    else:
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


# -- What commands a grid may have -----------------------------------------------------------------


@functools.cache
def _evaluators() -> Mapping[str, Any]:
    """The command of each protocol, as click has it."""
    from typer.main import get_command

    from sercli.protocols import PROTOCOLS

    app = typer.Typer()
    for name in PROTOCOLS:
        module = name.replace("-", "_")
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(f"sercli.commands.{module}")
            app.command(name)(getattr(found, module))
    return get_command(app).commands  # type: ignore[attr-defined,no-any-return]


@functools.cache
def _preparations() -> Mapping[str, Any]:
    """What makes directories: commands of `ser data`."""
    from typer.main import get_command

    from sercli.commands import data

    group = get_command(data.app)
    return {f"data {name}": one for name, one in group.commands.items()}  # type: ignore[attr-defined]


def _read_words(words: Sequence[str]) -> Mapping[str, Any]:
    """What the words of an evaluator or a preparation mean: option → value.

    Raises:
        UserError: There is no such command, or it does not take them.
    """
    from sercli.grids.reading import suggestion

    known = {**_evaluators(), **_preparations()}
    name = " ".join(words[:2]) if words[0] == "data" else words[0]
    if name not in known:
        near = suggestion(name, known) or f"known: {', '.join(known)}"
        raise UserError(f"{name} in the grid", "an evaluator, or `data`, is needed", near)
    usage_error: Any = typer.BadParameter.__bases__[0]
    try:
        context = known[name].make_context(name, list(words[len(name.split()) :]))
    except usage_error as error:
        raise UserError(f"{name} in the grid: {error.format_message().rstrip('.')}") from error
    except (typer.Exit, SystemExit) as error:
        raise UserError(f"{name} in the grid: it asks for help", "it would do nothing") from error
    return dict(context.params)


def _require_usable(plan: Plan, places: Places, standings: Standings) -> None:
    """Refuse what could not be done, before the first job: recipes, commands.

    Raises:
        UserError: It names the job.
    """
    read: dict[tuple[str, ...], None] = {}
    for job in plan.jobs:
        try:
            if job.is_training:
                standings.recipe_of(job, places.data)
            else:
                words = tuple(word.replace(job.directory.name, "") for word in job.words)
                if words not in read:
                    read[words] = None
                    _read_words(job.words)
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
    from sercli.grids.running import Runner

    with Children.passing_on() as children:
        summary = None
        if not how.report_only:
            runner = Runner(
                places,
                standings,
                _estimator(plan, places, standings),
                tell=say,
                showing=_showing,
                keep_going=how.keep_going,
                retry_failed=how.retry_failed,
            )
            summary = runner.run(plan.jobs, children)
        failed = [] if grid is None else _report(grid, places, children)
        children.raise_if_stopped("tables were being made: repeat the command")
    _end(summary, failed)


def _estimator(plan: Plan, places: Places, standings: Standings) -> Estimator:
    """What jobs take; FLOPs are counted only where there is something to train."""
    from sercli.errors import SerError
    from sercli.grids.eta import Estimator

    open_ones = (one for one in plan.jobs if one.is_training)
    if all(standings.of(one, places.data).status == "done" for one in open_ones):
        return Estimator(lambda _job: None)
    counter = _counter(plan, places, standings)

    def flops(job: Job) -> float | None:
        with contextlib.suppress(SerError):
            return counter.flops(job)
        return None

    return Estimator(flops)


def _counter(plan: Plan, places: Places, standings: Standings) -> Counter:
    from sercli.grids.costs import Counter

    return Counter(
        {
            job.directory.name: standings.recipe_of(job, places.data)
            for job in plan.jobs
            if job.is_training
        }
    )


@contextlib.contextmanager
def _showing(text: str) -> Iterator[None]:
    """On a terminal, what is under way; the line of its end takes its place."""
    if not sys.stdout.isatty():
        yield
        return
    from sercli.screen import Screen

    with Screen().status(text, spinner="line"):
        yield


def _report(grid: Grid, places: Places, children: Children) -> list[str]:
    """Tables, the page and the outcome of what is done; what of that could not be made."""
    from sercli.grids import outcome
    from sercli.grids.children import last_line
    from sercli.grids.claims import decide

    runs = outcome.runs_there(grid, places)
    if not runs:
        say("nothing is done: there are no tables")
        return []
    failed = []
    for words, seen in outcome.commands(grid, places, runs):
        out = places.out / "logs" / f"{words[0]}.log"
        if children.stopped:
            break
        if not seen:
            Path(words[-1]).parent.mkdir(parents=True, exist_ok=True)
        if children.run(words, None if seen else out) and not children.stopped:
            failed.append(words[0])
            if not seen:
                say(f"ser {words[0]}: {last_line(out)}", err=True)
    decided = decide(grid, places.run)
    files = outcome.write_outcome(places, decided)
    say(*outcome.in_words(decided))
    if files:
        say(f"wrote {', '.join(map(str, files))}")
    return failed


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


# -- Showing and writing ---------------------------------------------------------------------------


def _show(plan: Plan, places: Places, standings: Standings, bench: Path | None) -> None:
    """The jobs with their commands, and what they cost."""
    from sercli.grids.costs import Speed

    speed = None if bench is None else Speed.from_file(bench)
    counter = _counter(plan, places, standings)
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
        say(f"There is no folder {path}: the numbers of ImageNet's images were assumed.", err=True)


def _seconds(job: Job, flops: float | None, speed: Speed | None) -> float | None:
    return None if flops is None or speed is None else speed.seconds(flops, job.recipe)


def _cost(flops: float | None, seconds: float | None) -> str:
    from sercli.grids.eta import duration

    told = "" if flops is None else f", {flops:.2e} FLOP"
    return told if seconds is None else f"{told}, about {duration(seconds)}"


def _print_totals(totals: Mapping[str, Sequence[float]], speed: Speed | None) -> None:
    """What is to be done, by kinds of jobs, and together."""
    from sercli.commands.printing import print_table

    rows = []
    whole = [sum(row[place] for row in totals.values()) for place in range(4)]
    for kind, (number, unknown, flops, seconds) in [*totals.items(), ("all", whole)]:
        cells = [kind, f"{number:,.0f}", "-" if unknown == number else f"{flops:.2e}"]
        if speed is not None:
            cells.append("-" if unknown == number else f"{seconds / 3600:,.1f}")
        rows.append(cells)
    uncounted = " and those without FLOPs" if whole[1] else ""
    caption = "FLOPs: of all steps of a training; of an evaluation those of the encoder\n" + (
        "no hours: --bench FILE.json of `ser bench step --json` gives them"
        if speed is None
        else f"hours: of one {speed.device}, without reading images{uncounted}"
    )
    headings = ["jobs to do", "number", "FLOP", *([] if speed is None else ["hours"])]
    print_table(headings, rows, title="What it costs", caption=caption)


def _write(plan: Plan, which: WhichGrid, how: How, name: str, places: Places) -> None:
    from sercli.grids.cluster import write_array

    assert how.write is not None
    command = ["reproduce", name, "--out", str(places.out)]
    for option, value in (("--data", which.data), ("--coco", which.coco), ("--table", which.table)):
        command += [] if value is None else [option, value]
    for folder in which.robustness or ():
        command += ["--robustness", folder]
    command += [*places.machine, *(["--nproc", str(how.nproc)] if how.nproc > 1 else [])]
    if how.retry_failed:
        command.append("--retry-failed")
    files = write_array(how.write, plan, command=command, nproc=how.nproc)
    say(*(f"wrote {file}" for file in files), "see the head of array.sh for how they are queued")
