"""`ser look`: where [CLS] looks, which tokens are alike, and what is near, of a few images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sercli.commands.evaluation import (
    asked_for,
    command_line,
    loader_processes,
    read_model,
    require_images,
    require_usable,
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
from sercli.commands.printing import progress
from sercli.errors import UserError
from sercli.visible import counted, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sercli.commands.images import Images
    from sercli.data import ImageSource
    from sercli.encoders.loading import LoadedEncoder
    from sercli.evals.look.records import Chosen, Neighbours, Seen

_MOST = 64  # images: more do not fit a page
_DRAWN = 8


@dataclass(frozen=True)
class LookOptions:
    """What is looked at."""

    panel: ClassVar[str] = "What is looked at"

    images: Annotated[
        str | None,
        typer.Option(
            metavar="FILE,...|I,...",
            help="Image files, or numbers of images of the val split (of train where there is no "
            "val), from 0. Default: --num of them, drawn with --seed.",
        ),
    ] = None
    num: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST, help="How many images are drawn.", show_default=str(_DRAWN)),
    ] = None
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which images are drawn.", show_default="0")
    ] = None
    data: Data = None
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="L,...",
            help="Blocks whose tokens are shown, 0 is the embedding: `0,3,12`. Default: the tapped "
            "one, and one at each quarter of the depth.",
        ),
    ] = None
    layer: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Block whose attention is shown; [CLS] must be in it. Default: the last.",
        ),
    ] = None
    neighbours: Annotated[
        int, typer.Option(min=0, max=20, help="Nearest training images of each; 0: none.")
    ] = 5
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side in pixels, a multiple of the patch. Default: of training."),
    ] = None
    batch_size: BatchSize = 256


@option_objects
def look(what: LookOptions, run: RunOptions, model: ModelOptions) -> None:
    """Draw what an encoder does with a few images: attention, patch tokens, nearest neighbours.

    Attention is what [CLS] gives each patch in a block, in each head and in their mean. Tokens are
    shown by their first three principal components, shared by all the images. Neighbours are the
    training images whose [CLS] is nearest by cosine; `--limit` bounds how many are searched.
    Written are `figures/look-attention`, `look-tokens` and `look-neighbours` (PNG and SVG) and
    `results/look.npz` with the arrays.
    """
    numbers, files = _images(what)
    layers = parse_layers(what.layers)
    require_usable(model, run)
    place = place_of(what.data)
    has_data = _has_data(model, place)
    if has_data or not files:
        require_images(model, place)
    from sercli.commands.subject import destination
    from sercli.engine.runtime import choose_device, runtime_for
    from sercli.evals.look import records

    device = choose_device(run.device)
    runtime = runtime_for(device, run.precision)
    if has_data:
        subject = resolve_subject(model, run, data=place, image_size=what.image_size)
        loaded, images, tapped = subject.loaded, subject.images, subject.tapped_layer
    else:
        loaded, images, tapped = read_model(model), None, None
    say_what_was_read(loaded)
    depth = loaded.encoder.depth
    shown = records.token_layers(depth, layers, tapped)
    attention = records.attention_layer(loaded, what.layer)
    size = what.image_size or loaded.image_size
    chosen = _chosen(images, numbers, files, what)
    seen = records.look(
        loaded, chosen, runtime=runtime, layers=shown, attention=attention, image_size=size
    )
    train, near = _training_images(images, what), None
    if train is not None:
        with progress() as update:
            near = records.neighbours(
                loaded,
                chosen,
                seen,
                train,
                runtime=runtime,
                num=what.neighbours,
                limit=run.limit,
                image_size=size,
                batch_size=what.batch_size,
                workers=loader_processes(run, device),
                progress=update,
            )
    classes = (chosen.source if train is None else train).classes
    _save(
        destination(asked_for(model), run.out),
        model,
        _figures(loaded, model.source, chosen, seen, near, classes),
        records.arrays_of(chosen, seen, near, classes),
    )
    for line in _missing(loaded, attention, near, what):
        say_to_stderr(line)


def _has_data(model: ModelOptions, data: str | None) -> bool:
    from sercli.runs.facts import facts_of

    return data is not None or facts_of(model.source).data_path is not None


def _training_images(images: Images | None, what: LookOptions) -> ImageSource | None:
    """Those among which neighbours are sought; None: none are asked for, or known."""
    if images is None or not what.neighbours or not images.has("train"):
        return None
    return images.open("train")


def _images(what: LookOptions) -> tuple[list[int] | None, list[Path]]:
    """Numbers of images, or files; neither where some are to be drawn.

    Raises:
        UserError: They are too many, both, to be drawn as well, or a file is not there.
    """
    text = what.images
    if text is None:
        return None, []
    drawn = [f"--{name}" for name in ("num", "seed") if getattr(what, name) is not None]
    if drawn:
        raise UserError(
            f"--images with {' and '.join(drawn)}", "images are named, or drawn", "leave one out"
        )
    parts = [part.strip() for part in text.split(",") if part.strip()]
    # A name may have commas.
    parts = [text] if Path(text).is_file() else parts
    if not 1 <= len(parts) <= _MOST:
        raise UserError(f"--images names {len(parts)} images", f"1 to {_MOST} fit a page")
    if all(re.fullmatch(r"\d{1,18}", part) for part in parts):
        return [int(part) for part in parts], []
    for part in parts:
        if not Path(part).is_file():
            raise UserError(
                f"--images {part}",
                "image files, or numbers of images, are needed",
                "for instance 0,17,250 or cat.jpg,dog.png",
            )
    return None, [Path(part) for part in parts]


def _chosen(
    images: Images | None, numbers: list[int] | None, files: list[Path], what: LookOptions
) -> Chosen:
    from sercli.evals.look.records import Chosen, Files

    if files or images is None:
        return Chosen(Files(files), tuple(range(len(files))), labelled=False)
    return Chosen.of(images.open_unseen(), numbers, num=what.num or _DRAWN, seed=what.seed or 0)


def _save(
    target: Path,
    model: ModelOptions,
    figures: dict[str, tuple[Figure, str]],
    arrays: dict[str, Any],
) -> None:
    import numpy as np

    from sercli.commands.subject import open_or_create
    from sercli.report.figures.style import save_figure
    from sercli.runs.files import write_atomic

    run = open_or_create(target, owner=asked_for(model).owner, command=command_line())
    path = run.predictions("look")
    write_atomic(path, partial(np.savez_compressed, **arrays))
    paths = [path]
    for name, (figure, description) in figures.items():
        paths += save_figure(figure, run.figures, f"look-{name}", description=description)
    say(f"wrote {', '.join(map(str, paths))}")


def _figures(
    loaded: LoadedEncoder,
    source: str,
    chosen: Chosen,
    seen: Seen,
    near: Neighbours | None,
    classes: Sequence[str],
) -> dict[str, tuple[Figure, str]]:
    """Each with what there is to see."""
    from sercli.report.figures import look as drawing

    name = source if source.startswith("timm:") else Path(source).resolve().name
    name = f"{name} ({loaded.key})"
    images = counted(len(chosen.indices), "image")
    blocks = ", ".join(map(str, seen.tokens))
    figures: dict[str, tuple[Figure, str]] = {
        "tokens": (
            drawing.tokens_figure(
                seen.pictures, seen.tokens, title=f"Patch tokens of {name}, by block"
            ),
            f"Patch tokens of {images} after blocks {blocks} of {name}, coloured by their first "
            "three principal components, beside each image: equal colours are alike tokens.",
        )
    }
    if seen.attention is not None:
        heads = counted(seen.attention.shape[1], "head")
        figures["attention"] = (
            drawing.attention_figure(
                seen.pictures,
                seen.attention,
                title=f"What [CLS] attends to in block {seen.attention_layer} of {name}",
            ),
            f"Attention of [CLS] to the patches of {images} in block {seen.attention_layer} of "
            f"{name}: beside each image the mean of {heads}, then each; bright is most.",
        )
    if near is not None:
        figures["neighbours"] = _neighbours(chosen, seen, near, classes, name)
    return figures


def _neighbours(
    chosen: Chosen, seen: Seen, near: Neighbours, classes: Sequence[str], name: str
) -> tuple[Figure, str]:
    from sercli.report.figures import look as drawing

    own = chosen.labels.tolist()
    rows = [
        [
            drawing.Neighbour(
                picture=picture,
                cosine=float(cosine),
                label=classes[label] if classes else "",
                right=label == own[index] if chosen.labelled else None,
            )
            for picture, cosine, label in zip(
                near.pictures[index],
                near.similarity[index],
                near.labels[index].tolist(),
                strict=True,
            )
        ]
        for index in range(len(own))
    ]
    labels = [classes[label] if chosen.labelled else "" for label in own]
    figure = drawing.neighbours_figure(
        seen.pictures, labels, rows, title=f"Nearest of {near.bank:,} training images, {name}"
    )
    all_of_them = [one.right for row in rows for one in row]
    right = f": {sum(map(bool, all_of_them))} of {len(all_of_them)} are of the image's class"
    return figure, (
        f"{counted(len(own), 'image')}, each with its {near.indices.shape[1]} nearest of "
        f"{near.bank} training images by [CLS] of {name}{right if chosen.labelled else ''}."
    )


def _missing(
    loaded: LoadedEncoder, attention: int | None, near: Neighbours | None, what: LookOptions
) -> list[str]:
    """What was not drawn, and why."""
    lines = []
    if attention is None:
        lines.append(f"{loaded.source} has no [CLS]: no attention is drawn")
    if near is None and what.neighbours:
        lines.append("no training images are known (--data): no neighbours are drawn")
    return lines
