"""`ser bench loss`: the tiled patch loss against a vectorised one with the full matrix."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.benchmarks.measure import Measured
from sercli.benchmarks.record import Machine, Tell
from sercli.benchmarks.rounds import interleaved
from sercli.benchmarks.table import Column, Row, Table
from sercli.losses.tiles import PatchNTXent, Problem, rows_of_tile
from sercli.statistics import Ratio, paired_ratio

WIDTH, TEMPERATURE, TOKENS_PER_IMAGE = 512, 0.4, 196


def full_matrix_loss(anchors: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """The same loss ("cross-view") with the whole logit matrix: a vectorised mask, logsumexp."""
    images, tokens, dim = anchors.shape
    a = F.normalize(anchors.reshape(-1, dim), dim=1)
    k = F.normalize(keys.reshape(-1, dim), dim=1)
    logits = a @ k.T / temperature
    image = torch.arange(images, device=a.device).repeat_interleave(tokens)
    positive = torch.arange(len(a), device=a.device)
    masked = image[:, None] == image[None, :]
    masked[positive, positive] = False
    rest = logits.masked_fill(masked, -torch.inf)
    return (rest.logsumexp(dim=1) - logits.diagonal()).mean()


_FULL = "full matrix"
_VARIANTS = {
    _FULL: torch.float32,
    "tiled": torch.float32,
    "tiled, bf16": torch.bfloat16,
}


def prepare(variant: str, images: int, device: str) -> Callable[[int | None], float]:
    """Inputs of `images` × 196 tokens and a call that runs forward and backward.

    Returns:
        A function of the number of tiles that are done (None: all), which returns the loss; of
        some tiles it is no loss.
    """
    torch.manual_seed(0)
    shape, dtype = (images, TOKENS_PER_IMAGE, WIDTH), _VARIANTS[variant]
    anchors, keys = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))

    def call(tiles: int | None = None) -> float:
        anchors.grad = keys.grad = None
        if variant == _FULL:
            value = full_matrix_loss(anchors, keys, temperature=TEMPERATURE)
        else:
            problem = Problem(TEMPERATURE, 0, None, with_gradient=True, tiles=tiles)
            value = PatchNTXent.apply(problem, anchors, keys)
        value.backward()
        return value.item()

    return call


@dataclass
class LossRow:
    """One variant at one number of tokens.

    Attributes:
        variant: How it is computed.
        tokens: N, of b₂ in a view.
        tiles: How many its sweep has; None for the full matrix.
        done: How many of them were run; what is missing is extrapolated.
        value: The loss; None where tiles are missing.
        peak_bytes: Largest extra memory.
        seconds: Of each round, all tiles.
    """

    variant: str
    tokens: int
    tiles: int | None
    done: int | None
    value: float | None
    peak_bytes: int | None
    seconds: list[float] = field(default_factory=list)

    @property
    def per_square(self) -> list[float]:
        """Seconds over N², of each round."""
        return [one / self.tokens**2 for one in self.seconds]


def run(
    token_counts: Sequence[int],
    *,
    full_up_to: int,
    machine: Machine,
    rounds: int,
    tiles: int | None,
    tell: Tell,
) -> list[LossRow]:
    """Measure every variant at every size, each once a round; each in a process of its own.

    Args:
        token_counts: Sizes.
        full_up_to: The full matrix only up to this one.
        machine: What is measured on.
        rounds: Timed rounds, after a call of each that warms up.
        tiles: Run only so many of a sweep, and extrapolate; None: all.
        tell: Shows how far it is.
    """
    device = str(machine.device)
    rows: list[LossRow] = []
    calls: list[Callable[[], float]] = []
    with contextlib.ExitStack() as stack:
        for tokens in token_counts:
            images = max(2, round(tokens / TOKENS_PER_IMAGE))
            width = images * TOKENS_PER_IMAGE
            for variant in _VARIANTS:
                if variant == _FULL and tokens > full_up_to:
                    continue
                tell(f"{variant}, {tokens:,} tokens")
                part = None if variant == _FULL else _part(width, machine, tiles)
                done = None if part is None else part.done
                measured = stack.enter_context(
                    Measured(
                        prepare, variant, images, device=device, threads=machine.threads,
                        first=(done,),
                    )
                )  # fmt: skip
                whole = part is None or part.done is None
                rows.append(
                    LossRow(
                        variant, width, None if part is None else part.tiles, done,
                        measured.value if whole else None, measured.peak_bytes,
                    )
                )  # fmt: skip
                calls.append(partial(_seconds, measured, part))
        found = interleaved(calls, rounds=rounds, warmup=0, report=tell)
    for row, seconds in zip(rows, found, strict=True):
        row.seconds = seconds
    return rows


@dataclass(frozen=True)
class _Part:
    """The part of a sweep that is run.

    Attributes:
        tiles: How many there are.
        done: How many of them are run; None: all.
        share: Of the rows, that are in those.
    """

    tiles: int
    done: int | None
    share: float


def _part(width: int, machine: Machine, tiles: int | None) -> _Part:
    step = rows_of_tile(width, machine.device, torch.float32)
    total = math.ceil(width / step)
    if tiles is None or tiles >= total:
        return _Part(total, None, 1.0)
    return _Part(total, tiles, tiles * step / width)


def _seconds(measured: Measured, part: _Part | None) -> float:
    """Seconds of all tiles: of some, what they take beside what none take goes with the rows."""
    done = None if part is None else part.done
    seconds = measured(done)
    if part is None or done is None:
        return seconds
    nothing = measured(0)  # unit vectors and the gradient through them
    return nothing + max(0.0, seconds - nothing) / part.share


def tabled(rows: Sequence[LossRow], *, machine: Machine) -> Table:
    """The rows as a table, with their ratios.

    `speed` is relative to the full matrix of the same size; `per_square` (time per N²) to the same
    variant at the largest size that the full matrix was tried at, else at the smallest.
    """
    full = {row.tokens: row for row in rows if row.variant == _FULL}
    start = max(full) if full else min(row.tokens for row in rows)
    starts = {row.variant: row for row in rows if row.tokens == start}
    lines: list[Row] = []
    for row in rows:
        speed: Ratio | None = None
        if row.tokens in full:
            speed = paired_ratio(full[row.tokens].seconds, row.seconds)
        per_square = None
        if row.tokens >= start and row.variant in starts:
            per_square = paired_ratio(row.per_square, starts[row.variant].per_square)
        lines.append(
            {
                "tokens": row.tokens,
                "variant": row.variant,
                "tiles": row.tiles,
                "tiles_run": row.tiles if row.done is None else row.done,
                "swept": "all" if row.done is None else f"{row.done} of {row.tiles}",
                "seconds": sorted(row.seconds)[len(row.seconds) // 2],
                "speed": speed,
                "per_square": per_square,
                "peak_bytes": row.peak_bytes,
                "loss": row.value,
            }
        )
    notes = [
        "speed: times faster than the full matrix of the same size (autograd, fp32)",
        f"per N²: time over N², relative to the same at {start:,} tokens; peak: of memory beyond "
        "the inputs",
        f"the matrix alone takes 4 N² bytes: {4e-6 * max(r.tokens for r in rows) ** 2:,.0f} MB for "
        "the most tokens",
    ]
    if any(row.done is not None for row in rows):
        notes.append(
            "seconds extrapolated: only the first tiles were run, and the rest is taken to need as "
            "long a row; it gives no loss"
        )
    columns = (
        Column("tokens", "tokens", form=","),
        Column("variant", "variant"),
        Column("tiles", "tiles", form="d", printed=False),
        Column("tiles_run", "run", form="d", printed=False),
        Column("seconds", "seconds", "s", ".3f"),
        Column("swept", "tiles"),
        Column("speed", "speed", form=".2f"),
        Column("per_square", "per N²", form=".3f"),
        Column("peak_bytes", "peak MB", "bytes", ",.0f", 1e6),
        Column("loss", "loss", form=".5f"),
    )
    title = (
        f"Patch NT-Xent of {WIDTH}-d tokens on {machine.title}, forward + backward, one direction"
    )
    return Table("loss", title, columns, lines, notes)
