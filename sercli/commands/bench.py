"""`ser bench`: what things cost, as ratios within one run."""

from __future__ import annotations

from typing import Annotated

import typer

from sercli.methods import DEFAULT

app = typer.Typer(
    help="Measure speed and memory; every table's ratios come from one run.", no_args_is_help=True
)


@app.command()
def loss(
    tokens: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of b₂ in a view (repeat it); 196 an image."),
    ] = None,
    full_up_to: Annotated[
        int, typer.Option(help="Largest number of tokens tried with the full matrix.")
    ] = 12544,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls; the fastest counts.")] = 1,
) -> None:
    """Patch NT-Xent, forward and backward: tiled against the full matrix, for growing N."""
    from rich.console import Console
    from rich.table import Table

    from sercli.benchmarks.loss import LossRow, run
    from sercli.engine.runtime import choose_device
    from sercli.errors import UserError

    sizes = tokens or [588, 3136, 12544, 50176]
    if min(sizes) < 392:
        raise UserError(f"--tokens {min(sizes)}", "at least 392 are needed: two images of 196")
    choose_device(device)
    table = Table(
        title=f"Patch NT-Xent of 512-d tokens on {device}, {threads} thread(s), "
        "forward + backward, one direction"
    )
    table.add_column("tokens", justify="right")
    table.add_column("variant")
    table.add_column("seconds", justify="right")
    table.add_column("speed", justify="right")
    table.add_column("peak extra MB", justify="right")
    table.add_column("full matrix, MB", justify="right")
    table.add_column("loss", justify="right")

    def add(row: LossRow) -> None:
        peak = row.measured.peak_bytes
        table.add_row(
            f"{row.tokens:,}",
            row.variant,
            f"{row.measured.seconds:.3f}",
            "-" if row.speed is None else f"{row.speed:.2f}×",
            "-" if peak is None else f"{peak / 1e6:.0f}",
            f"{4 * row.tokens**2 / 1e6:,.0f}",
            f"{row.measured.value:.5f}",
        )

    console = Console()
    with console.status("measuring"):
        run(
            sizes,
            full_up_to=full_up_to,
            device=device,
            threads=threads,
            repeats=repeats,
            report=add,
        )
    console.print(table)
    print("speed: times faster than the full matrix of the same size (autograd, fp32)")


@app.command()
def addons(
    method: Annotated[str, typer.Option(help="Objective: moco, dino or barlow-twins.")] = DEFAULT,
    layer: Annotated[int, typer.Option(min=1, help="Block that the add-ons tap.")] = 3,
    batch_size: Annotated[int, typer.Option(min=8, help="Images a step.")] = 256,
    fraction: Annotated[float, typer.Option(help="SER's share of b₂.")] = 0.01,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 7,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """A training step of each add-on against none: parameters, FLOPs, time; embedded world's model.

    A step is views, forward, backward, optimiser and teacher. Reading images is left out: loader
    processes do it meanwhile.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from sercli.benchmarks.addons import run
    from sercli.engine.runtime import choose_device, runtime_for
    from sercli.families import addon_configs, default_recipe, resolve

    chosen = choose_device(device)
    torch.set_num_threads(threads)
    recipes = []
    for name in addon_configs():  # none is the first
        settings = [f"train.batch_size={batch_size}"]
        if name == "ser":
            settings.append(f"addon.fraction={fraction}")
        if name != "none":
            settings.append(f"addon.layer={layer}")
        start = default_recipe(method=method, addon=name, data=None)
        resolved = resolve(start.recipe, tuple(settings), start.flags)
        label = f"{name} (fraction {fraction:g})" if name == "ser" else name
        recipes.append((label, resolved.recipe))
    table = Table(
        title=f"One step of {method} with each add-on at layer {layer}: batch {batch_size}, "
        f"{device}, {threads} thread(s)"
    )
    table.add_column("add-on")
    table.add_column("views")
    for heading in ("extra parameters", "FLOPs / none", "seconds", "time / none", "quartiles"):
        table.add_column(heading, justify="right")
    console = Console()
    with console.status("measuring") as status:
        rows = run(
            recipes,
            runtime=runtime_for(chosen, "auto"),
            rounds=rounds,
            report=lambda number: status.update(f"round {number} of {rounds}"),
        )
    for row, (_, recipe) in zip(rows, recipes, strict=True):
        table.add_row(
            row.name,
            recipe.views.setting,
            f"{row.parameters:+,}",
            f"{row.flops:.3f}",
            f"{row.seconds:.3f}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f}–{row.high:.3f}",
        )
    console.print(table)
    print(f"time / none: median over {rounds} rounds, each variant once a round")


@app.command()
def probe(
    recipe: Annotated[
        str, typer.Option(help="Whose model: shapes/moco-ser, imagenet/moco-ser (ViT-S/16) …")
    ] = "shapes/moco-ser",
    classes: Annotated[
        int | None, typer.Option(min=2, help="Default: 10, on ImageNet's recipes 1000.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 9,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """A step of the linear probe's 13 learning rates × 3 feature sets, against a step of one head.

    A step is the encoder's forward pass and every head's update. Reading images is left out:
    loader processes do it meanwhile.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from sercli.benchmarks.probe import run
    from sercli.data.registry import find_kind
    from sercli.encoders.vit import Encoder
    from sercli.engine.runtime import choose_device, runtime_for
    from sercli.evals.linear.probe import PRESETS
    from sercli.families import resolve

    chosen = choose_device(device)
    torch.set_num_threads(threads)
    resolved = resolve(recipe, (), {}).recipe
    model, size = resolved.model, resolved.data.image_size
    preset = PRESETS["ser"]
    kind = find_kind(resolved.data.path)
    number = classes or (kind and kind.num_classes) or 1000
    encoder = Encoder.from_model(model, image_size=size).initialise(0).to(chosen).eval()
    all_rates, one_rate = preset.learning_rates, preset.learning_rates[:1]
    grids = [
        (("cls4",), one_rate),
        (("cls4",), all_rates),
        (preset.feature_sets, one_rate),
        (preset.feature_sets, all_rates),
    ]
    table = Table(
        title=f"One step of the linear probe of {model.name}, {size} px, {number} classes: "
        f"batch {batch_size}, {device}, {threads} thread(s)"
    )
    columns = ("sets", "rates", "weights", "seconds", "heads", "time/one", "quartiles")
    for heading in (*columns, "by parts"):
        table.add_column(heading, justify="right")
    console = Console()
    with console.status("measuring") as status:
        rows = run(
            encoder.requires_grad_(False),
            grids,
            image_size=size,
            num_classes=number,
            batch_size=batch_size,
            runtime=runtime_for(chosen, "auto"),
            rounds=rounds,
            report=lambda done: status.update(f"round {done} of {rounds}"),
        )
    for row in rows:
        table.add_row(
            str(row.sets),
            str(row.rates),
            f"{row.parameters / 1e6:.3f} M",
            f"{row.seconds:.3f}",
            f"{row.heads_seconds:.4f}",
            f"{row.ratio:.3f}",
            f"{row.low:.2f}–{row.high:.2f}",
            f"{row.by_parts:.3f}",
        )
    console.print(table)
    print(
        "one: cls4 with one rate; sets: feature sets; rates: learning rates; heads: the part of "
        "the seconds\nthat is not the encoder's; "
        f"time/one: median over {rounds} rounds, each grid once a round; by parts: from "
        "medians\nof the encoder's seconds, alike for all grids, and of the heads'"
    )
