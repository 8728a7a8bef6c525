"""`ser bench`: what things cost, as ratios within one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sercli.commands.options import MeasuringOptions, Plugins, method_option, option_objects
from sercli.commands.printing import measuring, print_measurements
from sercli.errors import UserError
from sercli.methods import DEFAULT
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.benchmarks.loss import LossRow
    from sercli.benchmarks.probe import ProbeRow
    from sercli.recipe.schema import Recipe

app = typer.Typer(
    help="Measure speed and memory; every table's ratios come from one run.", no_args_is_help=True
)


@app.command()
@option_objects
def loss(
    machine: MeasuringOptions,
    tokens: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of b₂ in a view (repeat it); 196 an image."),
    ] = None,
    full_up_to: Annotated[
        int, typer.Option(help="Largest number of tokens tried with the full matrix.")
    ] = 12544,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls; the fastest counts.")] = 1,
) -> None:
    """Patch NT-Xent, forward and backward: tiled against the full matrix, for growing N."""
    sizes = tokens or [588, 3136, 12544, 50176]
    if min(sizes) < 392:
        raise UserError(f"--tokens {min(sizes)}", "at least 392 are needed: two images of 196")
    from sercli.benchmarks.loss import run
    from sercli.engine.runtime import choose_device

    choose_device(machine.device)
    rows: list[LossRow] = []
    with measuring():
        run(
            sizes,
            full_up_to=full_up_to,
            device=machine.device,
            threads=machine.threads,
            repeats=repeats,
            report=rows.append,
        )
    print_measurements(
        f"Patch NT-Xent of 512-d tokens on {machine.device}, {counted(machine.threads, 'thread')}, "
        "forward + backward, one direction",
        ("tokens", "variant", "seconds", "speed", "peak extra MB", "full matrix, MB", "loss"),
        [_loss_cells(row) for row in rows],
        texts=("variant",),
    )
    say("speed: times faster than the full matrix of the same size (autograd, fp32)")


def _loss_cells(row: LossRow) -> list[str]:
    peak = row.measured.peak_bytes
    return [
        f"{row.tokens:,}",
        row.variant,
        f"{row.measured.seconds:.3f}",
        "-" if row.speed is None else f"{row.speed:.2f}×",
        "-" if peak is None else f"{peak / 1e6:.0f}",
        f"{4 * row.tokens**2 / 1e6:,.0f}",
        f"{row.measured.value:.5f}",
    ]


@app.command()
@option_objects
def addons(
    machine: MeasuringOptions,
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
    import torch

    from sercli.benchmarks.addons import run
    from sercli.engine.runtime import choose_device, runtime_for

    chosen = choose_device(machine.device)
    torch.set_num_threads(machine.threads)
    recipes = _addon_recipes(
        method, layer, batch_size=batch_size, fraction=fraction, plugins=plugin or ()
    )
    with measuring() as tell:
        rows = run(
            recipes,
            runtime=runtime_for(chosen, "auto"),
            rounds=rounds,
            report=lambda number: tell(f"round {number} of {rounds}"),
        )
    print_measurements(
        f"One step of {method} with each add-on at layer {layer}: batch {batch_size}, "
        f"{machine.device}, {counted(machine.threads, 'thread')}",
        (
            *("add-on", "views", "extra parameters", "FLOPs / none"),
            *("seconds", "time / none", "quartiles"),
        ),
        [
            [
                row.name,
                recipe.views.setting,
                f"{row.parameters:+,}",
                f"{row.flops:.3f}",
                f"{row.seconds:.3f}",
                f"{row.ratio:.3f}",
                f"{row.low:.3f}–{row.high:.3f}",
            ]
            for row, (_, recipe) in zip(rows, recipes, strict=True)
        ],
        texts=("add-on", "views"),
    )
    say(f"time / none: median over {counted(rounds, 'round')}, each variant once a round")


def _addon_recipes(
    method: str, layer: int, *, batch_size: int, fraction: float, plugins: Sequence[Path]
) -> list[tuple[str, Recipe]]:
    """The embedded world's recipe without an add-on and with each, by what it is called."""
    from sercli.families import addon_names, default_recipe, resolve

    recipes = []
    for name in addon_names(plugins):  # none is the first
        settings = [f"train.batch_size={batch_size}"]
        if name == "ser":
            settings.append(f"addon.fraction={fraction}")
        if name != "none":
            settings.append(f"addon.layer={layer}")
        start = default_recipe(method=method, addon=name, data=None, plugins=plugins)
        resolved = resolve(start.recipe, tuple(settings), start.flags, plugins=plugins)
        label = f"{name} (fraction {fraction:g})" if name == "ser" else name
        recipes.append((label, resolved.recipe))
    return recipes


@app.command()
@option_objects
def probe(
    machine: MeasuringOptions,
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
    import torch

    from sercli.benchmarks.probe import run
    from sercli.data.registry import find_kind
    from sercli.encoders.vit import Encoder
    from sercli.engine.runtime import choose_device, runtime_for
    from sercli.families import resolve

    chosen = choose_device(machine.device)
    torch.set_num_threads(machine.threads)
    resolved = resolve(recipe, (), {}).recipe
    model, size = resolved.model, resolved.data.image_size
    kind = find_kind(resolved.data.path)
    number = classes or (kind and kind.num_classes) or 1000
    encoder = Encoder.from_model(model, image_size=size).initialise(0).to(chosen).eval()
    with measuring() as tell:
        rows = run(
            encoder.requires_grad_(False),
            _grids(),
            image_size=size,
            num_classes=number,
            batch_size=batch_size,
            runtime=runtime_for(chosen, "auto"),
            rounds=rounds,
            report=lambda done: tell(f"round {done} of {rounds}"),
        )
    print_measurements(
        f"One step of the linear probe of {model.name}, {size} px, {counted(number, 'class')}: "
        f"batch {batch_size}, {machine.device}, {counted(machine.threads, 'thread')}",
        ("sets", "rates", "weights", "seconds", "heads", "time/one", "quartiles", "by parts"),
        [_probe_cells(row) for row in rows],
    )
    say(
        "one: cls4 with one rate; sets: feature sets; rates: learning rates; heads: the part of "
        "the seconds",
        f"that is not the encoder's; time/one: median over {counted(rounds, 'round')}, each grid "
        "once a round; by parts: from medians",
        "of the encoder's seconds, alike for all grids, and of the heads'",
    )


def _grids() -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Feature sets and learning rates: one of each, all of one, all of both."""
    from sercli.evals.linear.options import PRESETS

    preset = PRESETS["ser"]
    return [
        (sets, rates)
        for sets in (("cls4",), preset.feature_sets)
        for rates in (preset.learning_rates[:1], preset.learning_rates)
    ]


def _probe_cells(row: ProbeRow) -> list[str]:
    return [
        str(row.sets),
        str(row.rates),
        f"{row.parameters / 1e6:.3f} M",
        f"{row.seconds:.3f}",
        f"{row.heads_seconds:.4f}",
        f"{row.ratio:.3f}",
        f"{row.low:.2f}–{row.high:.2f}",
        f"{row.by_parts:.3f}",
    ]
