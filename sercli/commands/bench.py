"""`ser bench`: what things cost, as ratios within one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sercli.commands.options import (
    MeasuringOptions,
    Plugins,
    Settings,
    method_option,
    option_objects,
)
from sercli.commands.printing import measuring, print_measurements
from sercli.errors import UserError
from sercli.methods import DEFAULT
from sercli.visible import say

if TYPE_CHECKING:
    from sercli.benchmarks.record import Machine, Tell
    from sercli.benchmarks.table import Table

app = typer.Typer(
    help="Measure speed and memory; every table's ratios come from one run.", no_args_is_help=True
)

Measurement = Callable[["Machine", "Tell"], "Sequence[Table]"]


def measured(options: MeasuringOptions, measure: Measurement, *, page: Path | None = None) -> None:
    """Measure, print the tables, and write the files that were asked for.

    Raises:
        UserError: The device or a file cannot be used; found out before anything is measured.
    """
    from sercli.benchmarks import record
    from sercli.runs.files import require_writable

    wanted = [file for file in (options.json, page) if file is not None]
    for file in wanted:
        _require_file(file)
        require_writable(file.absolute().parent)
    if options.json is not None and page is not None and options.json.resolve() == page.resolve():
        raise UserError(f"--json and --page {page}", "each is a file of its own", "name two")
    machine = record.Machine.of(options.device, options.threads)
    with measuring() as tell:
        tables = measure(machine, tell)
    for table in tables:
        print_measurements(table)
    found = record.record(machine, tables)
    if options.json is not None:
        record.write(options.json, found)
    if page is not None:
        record.write_page(page, found, tables)
    for file in wanted:
        say(f"wrote {file}")


def _require_file(path: Path) -> None:
    """Refuse a place that no file can take, before minutes of measuring.

    Raises:
        UserError: No path, or a directory.
    """
    from sercli.runs.places import require_place

    require_place(path, "--json or --page")
    if path.is_dir():
        raise UserError(f"{path} is a directory", "a file is needed", f"name {path / 'bench.json'}")


@app.command("all")
@option_objects
def all_(
    options: MeasuringOptions,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Write the tables as a page of Markdown as well."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Some of them (may be given several times)."),
    ] = None,
) -> None:
    """Every benchmark, small: minutes in all. Each command by itself measures more of it."""

    def measure(machine: Machine, tell: Tell) -> list[Table]:
        from sercli.benchmarks.suite import BENCHMARKS

        if unknown := set(only or ()) - set(BENCHMARKS):
            raise UserError(
                f"--only {min(unknown)}", "no such benchmark", f"known: {', '.join(BENCHMARKS)}"
            )

        def one(name: str) -> Sequence[Table]:
            return BENCHMARKS[name](machine, lambda text: tell(f"{name}: {text}"))

        return [table for name in only or BENCHMARKS for table in one(name)]

    measured(options, measure, page=page)


@app.command()
@option_objects
def loss(
    options: MeasuringOptions,
    tokens: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of b₂ in a view (repeat it); 196 an image."),
    ] = None,
    full_up_to: Annotated[
        int, typer.Option(help="Largest number of tokens tried with the full matrix.")
    ] = 12544,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Run the first K tiles of rows of a sweep only, and extrapolate.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 1,
) -> None:
    """Patch NT-Xent, forward and backward: tiled against the full matrix, for growing N."""
    sizes = tokens or [588, 3136, 12544, 50176]
    if min(sizes) < 392:
        raise UserError(f"--tokens {min(sizes)}", "at least 392 are needed: two images of 196")

    def measure(machine: Machine, tell: Tell) -> list[Table]:
        from sercli.benchmarks.loss import run, tabled

        found = run(
            sizes, full_up_to=full_up_to, machine=machine, rounds=rounds, tiles=rows, tell=tell
        )
        return [tabled(found, machine=machine)]

    measured(options, measure)


@app.command()
@option_objects
def augment(
    options: MeasuringOptions,
    recipe: Annotated[
        str, typer.Option(help="Whose views: imagenet/moco-none, shapes/moco-ser …")
    ] = "imagenet/moco-none",
    images: Annotated[int, typer.Option(min=2, help="Images a round.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 7,
) -> None:
    """Two views of an image, against torchvision, Pillow and (if installed) kornia.

    Colours, mirror and normalisation, from crops as a loader hands them over. Cutting the crops
    is left out of all: `ser bench data` has it.
    """

    def measure(machine: Machine, tell: Tell) -> list[Table]:
        from sercli.benchmarks import augment

        given = augment.subject(recipe, images)
        rows = augment.run(given, machine=machine, rounds=rounds, tell=tell)
        return [augment.tabled(rows, subject=given, machine=machine)]

    measured(options, measure)


@app.command()
@option_objects
def step(
    options: MeasuringOptions,
    recipe: Annotated[
        str, typer.Option(help="Name under `recipes/` or a YAML file: what others are held to.")
    ] = "shapes/moco-none",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE",
            help="Others (may be given several times).",
            show_default="shapes/moco-ser with addon.fraction=0.01; with --recipe none",
        ),
    ] = None,
    modes: Annotated[
        str | None,
        typer.Option(
            metavar="MODE,…",
            help="How steps are taken: eager, compiled, reference (as public code does: a forward "
            "for each view, loops over parameters).",
            show_default="eager; on cuda all",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 256,
    accumulate: Annotated[
        int | None,
        typer.Option(min=2, metavar="K", help="Also the last recipe in so many micro-batches."),
    ] = None,
    count_only: Annotated[
        bool, typer.Option("--count-only", help="FLOPs, operators and bytes; nothing is timed.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 15,
    set_: Settings = None,
) -> None:
    """A training step: SER's against none's, or any recipes'; FLOPs, operators, bytes, time.

    A step is views, forward, backward, optimiser and teacher. Reading images is left out: loader
    processes do it meanwhile. It takes some twenty steps of each recipe, which are minutes on a
    CPU (hours of ImageNet's recipes; fewer with `--rounds 3`, or with
    `--batch-size 16 --set addon.fraction=0.125`), and says how long still.
    """
    others, settings = against or [], list(set_ or ())
    as_usual = recipe == "shapes/moco-none" and not others

    def measure(machine: Machine, tell: Tell) -> list[Table]:
        from sercli.benchmarks import steps

        if as_usual:
            others.append("shapes/moco-ser")
            settings.insert(0, steps.PAPER_FRACTION)  # one that is given comes later, and counts
        table = steps.measure(
            [recipe, *others],
            machine=machine,
            rounds=0 if count_only else rounds,
            tell=tell,
            modes=modes,
            batch_size=batch_size,
            settings=settings,
            accumulate=accumulate,
        )
        return [table]

    measured(options, measure)


@app.command()
@option_objects
def addons(
    options: MeasuringOptions,
    method: Annotated[str, method_option()] = DEFAULT,
    layer: Annotated[int, typer.Option(min=1, help="Block that the add-ons tap.")] = 3,
    batch_size: Annotated[int, typer.Option(min=8, help="Images a step.")] = 256,
    fraction: Annotated[float, typer.Option(help="SER's share of b₂.")] = 0.01,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 7,
    plugin: Plugins = None,
) -> None:
    """A training step of each add-on against none: parameters, FLOPs, time; embedded world's model.

    A step is views, forward, backward, optimiser and teacher. Reading images is left out: loader
    processes do it meanwhile.
    """

    def measure(machine: Machine, tell: Tell) -> list[Table]:
        from sercli.benchmarks import addons

        recipes = addons.recipes_of(
            method, layer, batch_size=batch_size, fraction=fraction, plugins=plugin or ()
        )
        rows = addons.run(recipes, machine=machine, rounds=rounds, tell=tell)
        title = (
            f"One step of {method} with each add-on at layer {layer}: batch {batch_size}, "
            f"{machine.title}"
        )
        return [addons.tabled(rows, title=title)]

    measured(options, measure)


@app.command()
@option_objects
def probe(
    options: MeasuringOptions,
    recipe: Annotated[
        str, typer.Option(help="Whose model: shapes/moco-ser, imagenet/moco-ser (ViT-S/16) …")
    ] = "shapes/moco-ser",
    classes: Annotated[
        int | None, typer.Option(min=2, help="Default: 10, on ImageNet's recipes 1000.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 9,
) -> None:
    """A step of the linear probe's 13 learning rates × 3 feature sets, against a step of one head.

    A step is the encoder's forward pass and every head's update. Reading images is left out:
    loader processes do it meanwhile.
    """

    def measure(machine: Machine, tell: Tell) -> list[Table]:
        from sercli.benchmarks.probe import run, subject, tabled

        given = subject(recipe, classes, machine=machine)
        rows = run(given, batch_size=batch_size, machine=machine, rounds=rounds, tell=tell)
        return [tabled(rows, subject=given, batch_size=batch_size, machine=machine)]

    measured(options, measure)


@app.command()
@option_objects
def data(
    options: MeasuringOptions,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images a batch (repeat it). Default: 256 and 2048."),
    ] = None,
    files: Annotated[int, typer.Option(min=1, help="JPEG files that are made and read.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Loader processes; default: as pretraining has.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 9,
) -> None:
    """From JPEG files to batches: a core of ours and of PIL's pipeline, and the training process.

    The files are made for it, 500 × 375 pixels at quality 90, in the temporary folder; also as
    list, tar, zip and, with pyarrow, as Arrow and parquet. Each image gives two random crops of 224
    pixels.
    """
    from sercli.data.cores import require_loaders

    require_loaders(workers, "--workers")

    def measure(machine: Machine, tell: Tell) -> list[Table]:
        from sercli.benchmarks import data
        from sercli.data.loading import default_workers

        return data.run(
            machine=machine,
            files=files,
            batch_sizes=batch_size or [256, 2048],
            workers=default_workers() if workers is None else workers,
            rounds=rounds,
            tell=tell,
        )

    measured(options, measure)
