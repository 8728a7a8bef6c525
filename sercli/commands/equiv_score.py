"""`ser equiv-score`: how well token maps follow rotations, mirrors and changes of scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sercli.commands.evaluation import (
    loader_processes,
    require_subject,
    resolve_subject,
    say_to_stderr,
    say_what_was_read,
)
from sercli.commands.options import (
    BatchSize,
    Data,
    ModelOptions,
    RunOptions,
    option_objects,
    parse_layers,
    place_of,
)
from sercli.commands.printing import print_table, progress
from sercli.errors import UserError
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.evals.common import Outcome
    from sercli.evals.equivariance.picture import TokenPicture
    from sercli.report.figures.equivariance import LayerCurves
    from sercli.runs.run_dir import RunDir

_PICTURED_BLOCK = 3
_HEADINGS = (
    *("block", "rotation", "hflip", "scale", "mean", "±"),
    *("floor", "gain", "energy", "cosine"),
)
_GROUPS = {
    "rotation": "rotation by 90°, 180°, 270°",
    "hflip": "mirror",
    "scale": "scale × 0.75, × 1.25",
}
_CAPTION = (
    "rotation, hflip, scale: scores, 1 is exact, 0 is shuffled tokens\n"
    "mean: over all six transformations; ± half its 95 % interval over images\n"
    "floor: the mean of a randomly initialised twin; what counts is the rise above it\n"
    "gain: what moving the tokens adds to rotation; the rest is invariance\n"
    "energy: share of the variance that is spatial; below 0.0001 a score is undefined\n"
    "cosine: raw, uncentred cosine of tokens under rotation, high for any network"
)
_TAPPED = "\n* the tapped block"


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, on which images."""

    panel: ClassVar[str] = "The scores"

    data: Data = None
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="L,...", help="Blocks to score, 0 is the embedding: `0,3,12`. Default: all."
        ),
    ] = None
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="H|HxW", help="Size in pixels, multiples of the patch. Default: of training."
        ),
    ] = None
    picture_layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Block shown in the token picture. Default: the tapped one, otherwise 3.",
        ),
    ] = None
    batch_size: BatchSize = 32


@option_objects
def equiv_score(score: ScoreOptions, run: RunOptions, model: ModelOptions) -> None:
    """Score how well each layer's patch tokens follow a transformation of the image.

    Rotations by 90, 180 and 270 degrees, a mirror, and scaling by 0.75 and 1.25, on a seeded
    sample of 512 images of the val split (of train where there is no val), beside a randomly
    initialised twin as the floor. Written are `results/equiv-score.json`, the sums of each image
    beside it, and two figures.
    """
    size, blocks = _size(score.image_size), parse_layers(score.layers)
    place = place_of(score.data)
    require_subject(model, run, place)
    from sercli.engine.runtime import choose_device, runtime_for
    from sercli.evals.equivariance.evaluate import evaluate
    from sercli.evals.equivariance.picture import picture

    chosen = choose_device(run.device)
    runtime = runtime_for(chosen, run.precision)
    subject = resolve_subject(model, run, data=place, image_size=max(size) if size else None)
    say_what_was_read(subject.loaded)
    depth, tapped = subject.loaded.encoder.depth, subject.tapped_layer
    pictured = tapped if score.picture_layer is None else score.picture_layer
    pictured = min(_PICTURED_BLOCK, depth) if pictured is None else pictured
    source = subject.images.open_unseen()
    if source.split != "val":
        say_to_stderr(f"{source.name} has no val split: train images are scored")
    rows = picture(subject.loaded, source, layer=pictured, runtime=runtime, image_size=size)
    with progress() as update:
        outcome = evaluate(
            subject.loaded,
            source,
            runtime=runtime,
            layers=blocks,
            image_size=size,
            batch_size=score.batch_size,
            limit=run.limit,
            workers=loader_processes(run, chosen),
            progress=update,
        )
    name = f"{_short(model.source)} ({outcome.result.model['key']})"
    partial = ", partial" if outcome.result.data["partial"] else ""
    number = counted(outcome.result.data["n"], "image")
    title = f"Equivariance of {name}, {number} of {source.name}/{source.split}{partial}"
    tokens = (rows, f"Tokens after block {pictured} of {name}")
    paths: list[Path] = []
    directory = subject.save(
        outcome.result,
        outcome.arrays,
        beside=lambda run: paths.extend(
            _save_figures(run, outcome, tapped, title=title, tokens=tokens)
        ),
    )
    _print(outcome, tapped, title)
    say(f"wrote {directory.result(outcome.result.name)}, {', '.join(map(str, paths))}")


def _save_figures(
    directory: RunDir,
    outcome: Outcome,
    tapped: int | None,
    *,
    title: str,
    tokens: tuple[Sequence[TokenPicture], str],
) -> list[Path]:
    """The scores by block, and the token picture with its own title."""
    from sercli.report.figures.equivariance import TokenRow, equivariance_figure, token_figure
    from sercli.report.figures.style import save_figure

    values, layers = outcome.result.metrics, _scored(outcome)
    rows, tokens_title = tokens
    told = {
        "equiv-score": f"{title}, by block: with 95 % intervals, the random twin and the energy.",
        "equiv-tokens": f"{tokens_title}: images, the same moved, the token maps of both as "
        "colours (principal components), and the second moved back: equivariance is equal "
        "colours.",
    }
    figures = {
        "equiv-score": equivariance_figure(
            layers,
            [_curves(values, layers, group) for group in _GROUPS],
            [values[f"energy/block{layer:02d}"] for layer in layers],
            title=title,
            tapped_layer=tapped,
        ),
        "equiv-tokens": token_figure([TokenRow(**vars(row)) for row in rows], title=tokens_title),
    }
    return [
        path
        for stem, figure in figures.items()
        for path in save_figure(figure, directory.figures, stem, description=told[stem])
    ]


def _print(outcome: Outcome, tapped: int | None, title: str) -> None:
    layers = _scored(outcome)
    print_table(
        _HEADINGS,
        [_row(outcome.result.metrics, layer, tapped) for layer in layers],
        title=title,
        caption=_CAPTION + (_TAPPED if tapped in layers else ""),
        marked=layers.index(tapped) if tapped in layers else None,
    )


def _scored(outcome: Outcome) -> list[int]:
    layers: list[int] = outcome.arrays["layers"].tolist()
    return layers


def _row(values: Mapping[str, float | None], layer: int, tapped: int | None) -> tuple[str, ...]:
    block = f"block{layer:02d}"

    def cell(name: str) -> str:
        value = values[name]
        return "undefined" if value is None else f"{value:.3f}"

    low, high = (values.get(f"es/{block}/mean/{end}") for end in ("low", "high"))
    half = "" if low is None or high is None else f"{(high - low) / 2:.3f}"
    return (
        f"{layer} *" if layer == tapped else f"{layer}",
        *(cell(f"es/{block}/{group}") for group in _GROUPS),
        cell(f"es/{block}/mean"),
        half,
        cell(f"es_random/{block}/mean"),
        cell(f"gain/{block}/rotation"),
        cell(f"energy/{block}"),
        cell(f"cosine_raw/{block}/rotation"),
    )


def _curves(values: Mapping[str, float | None], layers: Sequence[int], group: str) -> LayerCurves:
    from sercli.report.figures.equivariance import LayerCurves

    def along(family: str, end: str = "") -> list[float | None]:
        return [values.get(f"{family}/block{layer:02d}/{group}{end}") for layer in layers]

    return LayerCurves(
        _GROUPS[group],
        *(along("es", end) for end in ("", "/low", "/high")),
        *(along("es_random", end) for end in ("", "/low", "/high")),
    )


def _short(model: str) -> str:
    """A run directory or file by its own name."""
    return model if model.startswith("timm:") else Path(model).resolve().name


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--image-size {text}", "it takes H or HxW in pixels", "e.g. 64 or 64x96")
    return int(parts[0]), int(parts[-1])
