"""`ser data shard`: copies of a set of images that are read fast from any disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sercli.commands.options import option_objects
from sercli.commands.printing import progress
from sercli.errors import UserError
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.data.shards.making import Made, Space
    from sercli.data.shards.plan import Plan
    from sercli.data.source import ImageSource

_LISTED = 50
_SIDE = 96  # pixels; of what is rendered, to be refused as such


@dataclass(frozen=True)
class ShardOptions:
    """How shards are cut and called."""

    panel: ClassVar[str] = "Shards"

    shard_images: Annotated[
        int | None, typer.Option(min=1, help="Images of a shard.", show_default="about 1 GB")
    ] = None
    name: Annotated[
        str | None,
        typer.Option(help="What names of tars begin with.", show_default="as DIR is called"),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that write.", show_default="one a core")
    ] = None


@option_objects
def shard(
    places: Annotated[
        list[str],
        typer.Argument(metavar="DIR", help="Images of any kind; several are taken as one."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the shards go.")],
    more: ShardOptions,
    form: Annotated[
        Literal["wds", "arrow"],
        typer.Option("--format", help="wds: tars for WebDataset; arrow: for `load_from_disk`."),
    ] = "wds",
    resize: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Bring the shorter side of larger images to so many pixels, as JPEG. What that "
            "does to a probe's accuracy was not measured.",
        ),
    ] = None,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Of these JPEGs, with colours at half resolution.")
    ] = 95,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable",
            help="Leave out images that cannot be read, and list them beside their shard.",
        ),
    ] = False,
) -> None:
    """Copy a set of images into a few large files, for network disks and for other tools.

    Train and val of DIR become `NAME-train-0000.tar`, … (KEY.jpg and KEY.cls, names of classes in
    classes.txt) or, with --format arrow, a folder of `datasets.save_to_disk`. OUT is then named as
    DIR was, and image i of it is image i of DIR, with the same label and the same identifier. Bytes
    of images stay as they are, but for --resize. Beside each shard is its SHA-256, which `sha256sum
    -c` and `ser data check` verify. A command that was stopped goes on when it is repeated: shards
    that are finished, and whole, stay.
    """
    from sercli.data.shards.encoding import Encoding
    from sercli.data.shards.making import make_shards, unreadable_error
    from sercli.data.shards.plan import Options, make_plan, usual_name
    from sercli.runs.places import joined

    data = joined(places)
    if form == "arrow":
        _require_pyarrow()
    if more.name is not None:
        _require_name(more.name)
    options = Options(
        form=form,
        name=more.name or usual_name(data),
        images=more.shard_images,
        encoding=Encoding(resize, quality),
        skip_unreadable=skip_unreadable,
    )
    _require_apart(places, out)
    plan = make_plan(_sources(data), out, options)
    if not all(split.in_order for split in plan.splits.values()):
        say(
            f"note: names in {data} are not all of a form that shards keep: images of {out} are "
            "the same, in another order or under other names"
        )
    with progress() as update:
        made = make_shards(
            plan, update, lambda space: _say_space(plan, space), processes=more.workers
        )
    _say_made(made, out, skipped=skip_unreadable)
    if made.unreadable and not skip_unreadable:
        raise unreadable_error(made, data)


def _require_name(name: str) -> None:
    from sercli.data.images.splits import split_told

    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or split_told(name) is not None:
        raise UserError(
            f"--name {name}",
            "it has letters, digits, _ and -, and no word such as train or val: the split follows",
        )


def _require_pyarrow() -> None:
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            "--format arrow",
            "writing it needs pyarrow, which is not installed",
            "pip install 'sercli[parquet]'",
        )


def _require_apart(places: list[str], out: Path) -> None:
    """What is made must not become part of what is copied."""
    from sercli.data.images.unlabelled import PREFIX

    for data in places:
        inside = Path(data.removeprefix(PREFIX)).resolve()
        if inside.is_dir() and (out.resolve() == inside or inside in out.resolve().parents):
            raise UserError(
                f"{out} lies in {data}", "shards would be taken for its images", "name another"
            )


def _sources(data: str) -> list[ImageSource]:
    """The splits that there are, train first.

    Raises:
        UserError: `data` is no set of images.
    """
    from sercli.data.registry import SPLITS, has_split, open_source

    return [open_source(data, one, image_size=_SIDE) for one in SPLITS if has_split(data, one)]


def _say_space(plan: Plan, space: Space) -> None:
    """What is to be written, before it is."""
    from sercli.data.shards.making import in_words

    if space.kept:
        say(f"{counted(space.kept, 'shard')} of {plan.num_shards:,} in {plan.out} stay as they are")
    if space.shards:
        say(
            f"{counted(space.images, 'image')} go into {counted(space.shards, 'shard')}, about "
            f"{in_words(space.bytes)}; {in_words(space.free)} are free"
        )


def _say_made(made: Made, out: Path, *, skipped: bool) -> None:
    if made.unreadable:
        say(*made.unreadable[:_LISTED])
    if len(made.unreadable) > _LISTED:
        say(f"and {len(made.unreadable) - _LISTED:,} more")
    if skipped and made.unreadable:
        say(
            f"left out: {counted(len(made.unreadable), 'image')} that cannot be read, listed in "
            f"{out}/*.unreadable.txt"
        )
    if skipped or not made.unreadable:
        say(f"{out} is complete; it is named as DIR was: --data {out}")
