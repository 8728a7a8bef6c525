"""Pictures that evaluators left in runs: copies small enough for a page, and where the whole is."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from PIL import Image

from sercli.errors import UserError
from sercli.protocols import PROTOCOLS, contract_of
from sercli.report.compare.runs import Entry, Run
from sercli.report.page.charts import slug
from sercli.report.page.gathering import Problem
from sercli.runs.reading import MIB, read_bytes

BUDGET = 3 * MIB  # of all pictures of a page, as text
_LARGEST_FILE, _MOST_PIXELS = 16 * MIB, 40_000_000
_STEPS = ((1000, 82), (800, 74), (640, 66), (480, 55), (320, 45))  # pixels wide, quality
# Of evaluators that write no result, and so have no contract.
_OTHERS: Mapping[str, str] = {
    "look-attention": "Where the last block attends",
    "look-tokens": "Patch tokens as colours",
    "look-neighbours": "Nearest neighbours",
}
OTHER_COMMAND = "look"


@dataclass(frozen=True)
class Picture:
    """A figure of a run.

    Attributes:
        stem: Name of its files in the run, without a suffix.
        heading: What kind of picture it is.
        label: Whose it is.
        alt: What there is to see.
        png: Its file; an SVG may lie beside it.
    """

    stem: str
    heading: str
    label: str
    alt: str
    png: Path

    @property
    def name(self) -> str:
        """A name for a file of our own, of plain letters."""
        return slug(self.stem)


@dataclass(frozen=True)
class Shown:
    """A picture as it stands on the page.

    Attributes:
        uri: The whole image as text.
        width, height: Pixels.
    """

    picture: Picture
    uri: str
    width: int
    height: int


def find_pictures(entries: Sequence[Entry], problems: list[Problem]) -> list[Picture]:
    """The pictures in figures/ of all runs, by kind; those of results that are charts are not."""
    found = [
        picture
        for entry in entries
        for run in entry.runs
        for picture in _of_run(entry, run, problems)
    ]
    kinds = list(dict.fromkeys(heading for heading in [*_headings().values()]))
    order = {heading: place for place, heading in enumerate(kinds)}
    return sorted(found, key=lambda one: (order.get(one.heading, len(order)), one.stem))


def missing_pictures(found: Sequence[Picture]) -> list[tuple[str, str]]:
    """Kinds of pictures that no run has, each with the command that makes it."""
    commands = {
        **{
            heading: protocol.name
            for protocol in PROTOCOLS.values()
            for heading in protocol.pictures.values()
        },
        **dict.fromkeys(_OTHERS.values(), OTHER_COMMAND),
    }
    there = {picture.heading for picture in found}
    return [
        (heading, f"ser {command} RUN")
        for heading, command in commands.items()
        if heading not in there
    ]


def _headings() -> dict[str, str]:
    """Pattern of a file's name → heading, in the order of the page."""
    told = {
        pattern: heading
        for protocol in PROTOCOLS.values()
        for pattern, heading in protocol.pictures.items()
    }
    return {**told, **_OTHERS}


def _of_run(entry: Entry, run: Run, problems: list[Problem]) -> Iterator[Picture]:
    drawn = {
        name
        for name, result in run.results.items()
        if any(
            quantity.by_block or quantity.grid
            for quantity in contract_of(str(result.protocol["name"])).quantities
        )
    }
    headings = _headings()
    label = entry.label if len(entry.runs) == 1 else f"{entry.label}, seed {run.seed}"
    for png in sorted(run.directory.figures.glob("*.png")):
        if png.stem in drawn or png.name.startswith("."):
            continue
        fits = (heading for pattern, heading in headings.items() if fnmatchcase(png.stem, pattern))
        heading = next(fits, png.stem.replace("-", " "))
        try:
            told = _described(png)
        except UserError as error:
            problems.append(Problem(run.path, str(error)))
            continue
        yield Picture(
            stem=png.stem,
            heading=heading[:1].upper() + heading[1:],
            label=label,
            alt=told or f"{heading} of {label}; its file says no more.",
            png=png,
        )


def _described(png: Path) -> str:
    """What the file says there is to see; empty where it says nothing.

    Raises:
        UserError: It is no picture, or a very large one.
    """
    told = _opened(png).info.get("Description", "")
    return str(told)[:2000]


def _opened(png: Path) -> Image.Image:
    data = read_bytes(png, limit=_LARGEST_FILE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG",))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{png} is no PNG file", "figures are", "repeat the evaluation") from error
    if image.width * image.height > _MOST_PIXELS:
        raise UserError(f"{png} has {image.width} × {image.height} pixels", "figures have fewer")
    return image


def shown(pictures: Sequence[Picture], problems: list[Problem], budget: int) -> list[Shown]:
    """The pictures as text, all as large as the budget has room for; then the first of them.

    Args:
        pictures: In the order of the page.
        problems: What is damaged is added to them.
        budget: Bytes of all of them.
    """
    # Where there are many, none of them can be large.
    share = budget / max(1, len(pictures))
    steps = _STEPS[sum(share < least for least in (60_000, 30_000, 15_000)) :]
    images: list[tuple[Picture, Image.Image]] = []
    for picture in pictures:
        try:
            image = _on_white(_opened(picture.png))
        except (UserError, OSError, ValueError, SyntaxError) as error:
            problems.append(Problem(str(picture.png), f"it cannot be decoded ({error})"))
            continue
        image.thumbnail((steps[0][0], 4 * steps[0][0]), Image.Resampling.LANCZOS, reducing_gap=2)
        images.append((picture, image))
    made: list[Shown] = []
    for width, quality in steps:
        made, left = [], budget
        for picture, image in images:
            one = _as_text(picture, image, width, quality)
            left -= len(one.uri)
            if left < 0:
                break
            made.append(one)
        if len(made) == len(images):
            break
    return made


def _on_white(image: Image.Image) -> Image.Image:
    """As it looks on paper."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _as_text(picture: Picture, image: Image.Image, width: int, quality: int) -> Shown:
    small = image.copy()
    small.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=2)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Shown(picture, f"data:image/webp;base64,{text}", small.width, small.height)
