"""`ser bench`: what things cost, as ratios within one run."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Measure speed and memory; every table's ratios come from one run.", no_args_is_help=True
)


@app.callback()
def bench() -> None:
    """Keeps `loss` a subcommand while it is the only one."""


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
