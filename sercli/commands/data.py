"""`ser data`: write the embedded world as files, and check a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sercli.commands.data_shard import shard
from sercli.commands.options import option_objects
from sercli.commands.printing import progress, shown
from sercli.visible import counted, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from sercli.data.images.check import CheckReport, Fact, SplitReport
    from sercli.data.shapes.files import Derived, Detection, FileSet
    from sercli.data.shapes.settings import Setting

app = typer.Typer(
    help="Write the embedded world as files; check a data set, or copy it into shards.",
    no_args_is_help=True,
)
app.command()(shard)

SettingName = Literal["shapes", "scenes"]
_LISTED = 50


@dataclass(frozen=True)
class DerivedOptions:
    """What is made of the first images of val, and the set for object detection."""

    panel: ClassVar[str] = "Further sets"

    corrupted: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Images of val in each of the 75 cells of imagenet-c/; 0: none. Default: 20, or "
            "one a class if there are more classes, or all of val if it has fewer.",
        ),
    ] = None
    perturbed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images of val in each of the 10 perturbations of imagenet-p/, as videos, which "
            "need PyAV (pip install 'sercli[robustness]'); 0: none.",
        ),
    ] = 0
    derived_size: Annotated[
        int,
        typer.Option(
            help="Side in pixels in imagenet-c/ and imagenet-p/: that which the model takes, as "
            "these are not resized. The default is that of recipes/shapes."
        ),
    ] = 48
    detection: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images in coco/train2017, and the same with masks of classes in voc/; val has a "
            "quarter as many; 0: neither.",
        ),
    ] = 256
    detection_size: Annotated[
        int, typer.Option(help="Side in pixels of the images in coco/ and voc/.")
    ] = 128


@app.command()
@option_objects
def shapes(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New directory to write.")],
    more: DerivedOptions,
    train: Annotated[
        int | None, typer.Option(help="Images in train/.", show_default="4096; scenes: 8192")
    ] = None,
    val: Annotated[
        int | None,
        typer.Option(
            help="Images in val/ and in each of the other sets.", show_default="1024; scenes: 2048"
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 96,
    setting: Annotated[
        SettingName,
        typer.Option(
            help="shapes: one large object an image; scenes: small ones of two sorts, whose class "
            "is which sorts they are and how they lie (what `--data shapes:scenes` is)."
        ),
    ] = "shapes",
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other images.")] = 0,
) -> None:
    """Write the embedded world as JPEG files.

    DIR gets `train/<class>/` and `val/<class>/`; and, for `ser robustness`, `imagenet-r/<class>/`
    (painted) and `imagenet-a/<class>/` (turned), each with some of the classes, `sketch/<class>/`
    (drawn), `imagenet-v2/{matched-frequency,threshold-0.7,top-images}/` with class folders named 0,
    1, 2…, `imagenet-c/<corruption>/<severity>/<class>/` and, if asked for, `imagenet-p/`. For
    object detection it gets `coco/`, in COCO's format, and for `ser segment` the same pictures with
    masks as `voc/`, in VOC's layout. DIR appears when it is complete, or not at all.
    """
    from sercli.data.shapes.files import Derived, Detection, file_sets
    from sercli.data.shapes.settings import named

    world = named(setting)
    train = world.num_images["train"] if train is None else train
    val = world.num_images["val"] if val is None else val
    sets = file_sets(train, val, setting=world)
    usual = max(20, len(world.classes))  # every class needs an image
    corrupted = min(usual, val) if more.corrupted is None else more.corrupted
    derived = Derived(more.derived_size, corrupted, more.perturbed)
    coco = Detection(more.detection, more.detection_size)
    _write_sets(directory, sets, derived, coco, setting=world, size=size, seed=seed)
    written = [
        f"{counted(len(sets) - 2, 'robustness set')} of {val:,}",
        *_further_sets(derived, coco),
    ]
    say(
        f"wrote {directory}: {train:,} train and {counted(val, 'val image')} of {size} px; "
        f"{', '.join(written)}"
    )


def _write_sets(
    directory: Path,
    sets: tuple[FileSet, ...],
    derived: Derived,
    coco: Detection,
    *,
    setting: Setting,
    size: int,
    seed: int,
) -> None:
    """Write them, and show how far it is."""
    from sercli.data.shapes.files import write_sets

    total = sum(one.num_images for one in sets) + derived.num_files + coco.num_files
    done = 0
    with progress() as update:

        def count(number: int) -> None:
            nonlocal done
            done += number
            update(f"writing {directory}", done, total)

        write_sets(
            directory,
            sets,
            derived,
            detection=coco,
            setting=setting,
            size=size,
            seed=seed,
            progress=count,
        )


def _further_sets(derived: Derived, coco: Detection) -> Iterator[str]:
    if derived.corrupted:
        yield (
            f"imagenet-c with {counted(derived.corrupted, 'image')} of {derived.side} px in each "
            "of 75 cells"
        )
    if derived.perturbed:
        yield f"imagenet-p with {counted(derived.perturbed, 'video')} of each of 10 perturbations"
    if coco.num_train:
        numbers = " and ".join(f"{number} {split}" for split, number in coco.num_images.items())
        yield f"coco with {numbers} images of {coco.size} px, and voc with their masks"


@app.command()
def check(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="The data set; several are taken as one."),
    ],
    fast: Annotated[
        bool, typer.Option("--fast", help="Read only the files' headers, not their pixels.")
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            help="folder, unlabelled, list, archives, parquet, arrow, coco, voc, ade20k, "
            "imagenet-r, imagenet-a, imagenet-sketch, imagenet-v2 (or one of its sets, "
            "imagenet-v2-top-images), imagenet-c or imagenet-p. Default: by what is in DIR."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A data set whose classes a robustness set must have. Default: ImageNet's, or "
            "those of train/ or val/ beside DIR.",
        ),
    ] = None,
) -> None:
    """Read every image of a data set and report what is there and what is wrong.

    DIR holds `train/<class>/` and `val/<class>/`, or class folders of its own. Reported are images
    per split and class, sizes, pixel formats, files that cannot be read, empty class folders, and
    classes that only train or only val has. Or DIR is ImageNet-R, -A, -Sketch, -V2, -C or -P: then
    also what is not as published, such as a missing corruption or class, or images of another set.
    Or DIR is in COCO's format (`annotations/instances_*.json`): then also annotations that break a
    rule or do not fit their image, and categories that train and val do not share. Or DIR has
    masks of indices (VOC's or ADE20K's folders): then also images without one, of another size, or
    with an index of no class. Or DIR is a tar or zip, a directory of such, or a pattern as
    'train-{0000..1023}.tar': then also members that cannot be used, keys that stand twice, labels
    out of range, and a shard missing from a numbered series. Or DIR is a list of images (a path a
    line, with a label or without): then also lines that name no image, name one twice, or lack a
    label. Or it has images and no folders, or is `unlabelled:DIR`: images without labels.
    Or DIR holds parquet or Arrow files as Hugging Face writes them, or is one: then also files that
    are cut short or have other columns, labels out of range, and rows that hold no image.
    The exit status is 0 if nothing is wrong, otherwise 2.
    """
    from sercli.data.checking import check_data
    from sercli.data.images.check import Reading
    from sercli.runs.places import joined

    directory = Path(joined([str(place) for place in places]))
    with progress() as update:
        report = check_data(
            directory,
            Reading(
                progress=lambda what, done, total: update(f"reading {what}", done, total),
                decode=not fast,
            ),
            layout=layout,
            classes_of=classes,
        )
    _print_report(directory, report, fast=fast)


def _print_report(directory: Path, report: CheckReport, *, fast: bool) -> None:
    """What was found.

    Raises:
        UserError: Something is wrong.
    """
    from sercli.errors import UserError
    from sercli.screen import Screen

    if report.taken_as:
        say(f"{directory} is taken as {report.taken_as}")
    if report.splits:
        Screen().print(_summary(directory, report.splits))
    for note in report.notes:
        say(f"note: {note}")
    if report.problems:
        _print_problems(report.problems)
        raise UserError(
            f"{directory} has {counted(len(report.problems), 'problem')}",
            report.rule,
            "mend or remove what is listed above",
        )
    total = sum(split.num_images for split in report.splits)
    file = "video" if report.taken_as.startswith("imagenet-p") else "image"
    how = f"{'has' if total == 1 else 'have'} a readable header" if fast else "can be read"
    say(f"all {counted(total, file)} {how}" if total != 1 else f"the only {file} {how}")


def _summary(directory: Path, splits: tuple[SplitReport, ...]) -> Table:
    """One column a split, one row a fact."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(shown(str(directory))), title_justify="left")
    table.add_column("")
    columns = []
    for split in splits:
        table.add_column(shown(split.split), justify="right")
        column = dict(
            [
                _row("images", split.num_images),
                *(_row(name, fact) for name, fact in split.facts.items()),
                _row("width in pixels", split.sizes[:, 0]),
                _row("height in pixels", split.sizes[:, 1]),
            ]
        )
        modes = (f"{mode} {number:,}" for mode, number in split.modes.most_common())
        column["pixel formats"] = shown(", ".join(modes) or "-")
        columns.append(column)
    for name in max(columns, key=len):  # what has no labels has fewer
        table.add_row(name, *(column.get(name, "-") for column in columns))
    return table


def _row(name: str, fact: Fact | NDArray[np.int32]) -> tuple[str, str]:
    """What a fact is called, and what it says."""
    import numpy as np

    if isinstance(fact, int):
        return name, f"{fact:,}"
    name += ": min / median / max"
    if not fact.size:
        return name, "-"
    return name, f"{fact.min():,} / {np.median(fact):,g} / {fact.max():,}"


def _print_problems(problems: tuple[str, ...]) -> None:
    say(*problems[:_LISTED])  # each in a line of its own: one that is broken is hard to copy
    if len(problems) > _LISTED:
        say(f"and {len(problems) - _LISTED:,} more")
