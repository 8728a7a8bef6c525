"""`ser equiv-score`: how well token maps follow rotations, mirrors and changes of scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sercli.commands.evaluation import (
    BatchSize,
    ClsAfter,
    Data,
    Device,
    Key,
    Limit,
    Model,
    NumHeads,
    Out,
    Positions,
    RandomInit,
    Teacher,
    Workers,
    command_line,
    print_table,
    progress,
    tell,
)

if TYPE_CHECKING:
    from sercli.report.figures.equivariance import LayerCurves

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
    "cosine: raw, uncentred cosine of tokens under rotation, high for any network\n"
    "* the tapped block"
)


def equiv_score(
    model: Model,
    data: Data = None,
    out: Out = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="L,...", help="Blocks to score, 0 is the embedding: 0,3,12. Default: all."
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="H|HxW", help="Size in pixels, multiples of the patch. Default: of training."
        ),
    ] = None,
    picture_layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Block shown in the token picture. Default: the tapped one, otherwise 3.",
        ),
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    workers: Workers = None,
    limit: Limit = None,
    teacher: Teacher = False,
    random_init: RandomInit = False,
    num_heads: NumHeads = None,
    cls_after: ClsAfter = None,
    key: Key = None,
    positions: Positions = None,
) -> None:
    """Score how well each layer's patch tokens follow a transformation of the image.

    Rotations by 90, 180 and 270 degrees, a mirror, and scaling by 0.75 and 1.25, on a seeded
    sample of 512 images of the val split (of train where there is no val), beside a randomly
    initialised twin as the floor. Written are results/equiv-score.json, the sums of each image
    beside it, and two figures.
    """
    from sercli.commands.subject import resolve
    from sercli.encoders.foreign import Hints
    from sercli.engine.runtime import choose_device
    from sercli.evals.equivariance.evaluate import evaluate
    from sercli.evals.equivariance.picture import picture
    from sercli.report.figures.equivariance import TokenRow, equivariance_figure, token_figure
    from sercli.report.figures.style import save_figure

    chosen = choose_device(device)
    size = _size(image_size)
    subject = resolve(
        model,
        command=command_line(),
        data=data,
        out=out,
        teacher=teacher,
        random_init=random_init,
        hints=Hints(num_heads, cls_after, key, positions),
        image_size=max(size) if size else None,
    )
    tell(subject.loaded)
    depth, tapped = subject.loaded.encoder.depth, subject.tapped_layer
    shown = picture_layer if picture_layer is not None else tapped
    shown = min(_PICTURED_BLOCK, depth) if shown is None else shown
    source = subject.images.open_unseen()
    if source.split != "val":
        typer.echo(f"{source.name} has no val split: train images are scored", err=True)
    rows = picture(subject.loaded, source, layer=shown, device=chosen, image_size=size)
    with progress() as show:
        outcome = evaluate(
            subject.loaded,
            source,
            device=chosen,
            layers=_layers(layers),
            image_size=size,
            batch_size=batch_size,
            limit=limit,
            workers=workers,
            progress=show,
        )
    run = subject.save(outcome.result, outcome.arrays)
    values, facts = outcome.result.metrics, outcome.result.data
    scored: list[int] = outcome.arrays["layers"].tolist()
    name = f"{_short(model)} ({outcome.result.model['key']})"
    partial = ", partial" if facts["partial"] else ""
    title = f"Equivariance of {name}, {facts['n']} images of {source.name}/{source.split}{partial}"
    figures = (
        (
            "equiv-score",
            equivariance_figure(
                scored,
                [_curves(values, scored, group) for group in _GROUPS],
                [values[f"energy/block{layer:02d}"] for layer in scored],
                title=title,
                tapped_layer=tapped,
            ),
        ),
        (
            "equiv-tokens",
            token_figure(
                [TokenRow(**vars(row)) for row in rows],
                title=f"Tokens after block {shown} of {name}",
            ),
        ),
    )
    paths = [path for stem, figure in figures for path in save_figure(figure, run.figures, stem)]
    print_table(
        _HEADINGS,
        [_row(values, layer, tapped) for layer in scored],
        title=title,
        caption=_CAPTION,
        marked=scored.index(tapped) if tapped in scored else None,
    )
    typer.echo(f"wrote {run.result(outcome.result.name)}, {', '.join(map(str, paths))}")


def _row(values: Mapping[str, float | None], layer: int, tapped: int | None) -> tuple[str, ...]:
    block = f"block{layer:02d}"

    def show(name: str) -> str:
        value = values[name]
        return "undefined" if value is None else f"{value:.3f}"

    low, high = (values.get(f"es/{block}/mean/{end}") for end in ("low", "high"))
    half = "" if low is None or high is None else f"{(high - low) / 2:.3f}"
    return (
        f"{layer} *" if layer == tapped else f"{layer}",
        *(show(f"es/{block}/{group}") for group in _GROUPS),
        show(f"es/{block}/mean"),
        half,
        show(f"es_random/{block}/mean"),
        show(f"gain/{block}/rotation"),
        show(f"energy/{block}"),
        show(f"cosine_raw/{block}/rotation"),
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


def _layers(text: str | None) -> list[int] | None:
    from sercli.errors import UserError

    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"--layers {text}", "it takes block numbers with commas", "for instance 0,3,12"
        ) from error


def _size(text: str | None) -> tuple[int, int] | None:
    from sercli.errors import UserError

    if text is None:
        return None
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--image-size {text}", "it takes H or HxW in pixels", "e.g. 64 or 64x96")
    return int(parts[0]), int(parts[-1])
