"""What kinds of data there are, and the one answer to "what is this data".

Each kind is one object of a subclass of `DataKind`. A file in `data/kinds/` that registers one with
`@register` is all that a new kind takes: nothing else in ser asks whether a path is the embedded
world or a set in COCO's format.
Importing this does not import torch.
"""

from __future__ import annotations

import abc
import functools
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from sercli.data.source import no_labels
from sercli.data.subset import with_classes, with_share
from sercli.errors import UserError
from sercli.runs.places import require_place

if TYPE_CHECKING:
    from sercli.data.coco.source import DetectionSource
    from sercli.data.images.check import CheckReport, Reading
    from sercli.data.masks.source import MaskSource
    from sercli.data.source import ImageSource

SPLITS = ("train", "val")


@dataclass(frozen=True)
class DetectorDefaults:
    """What trains a detector on a kind of data unless the user says otherwise.

    Attributes:
        engine: Which implementation of Mask R-CNN.
        preset: Its canvas, batch and schedule, by name.
    """

    engine: str
    preset: str


class DataKind(abc.ABC):
    """A kind of data: how it is recognised, opened and checked.

    Attributes:
        name: Short and unique; errors list it.
        title: What a person calls such data, with its article.
        given_as: What `--data` takes for it, in few words; "": another's words are for it, too.
        layouts: What `ser data check --layout` takes for it; none: it cannot be checked.
        only_checked: Whether such a directory is opened as class folders all the same, and only
            its check is another.
        asked_first: Whether it is told by how it is written, before it is looked at as a path.
        asked_last: Whether it takes what no other kind recognises.
        rendered: Whether its images are made from the run's seed, in any number and at any size:
            equal image ids of two seeds are different images then.
        recipes: Folder under `recipes/` of the recipe that is taken where none is named.
        num_classes: How many classes there are, where it is known without opening it.
        measured_against_classes: Whether its check compares it with the classes of another set.
        detector: What a detector on it is by default; None: it has no boxes and masks.
        has_classes_of_pixels: Whether it has a class for every pixel.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    given_as: ClassVar[str] = "a directory"
    layouts: ClassVar[tuple[str, ...]] = ()
    only_checked: ClassVar[bool] = False
    asked_first: ClassVar[bool] = False
    asked_last: ClassVar[bool] = False
    rendered: ClassVar[bool] = False
    recipes: ClassVar[str] = "imagenet"
    num_classes: ClassVar[int | None] = None
    measured_against_classes: ClassVar[bool] = False
    detector: ClassVar[DetectorDefaults | None] = None
    has_classes_of_pixels: ClassVar[bool] = False

    @abc.abstractmethod
    def recognises(self, path: str) -> bool:
        """Whether what the user named is of this kind; `path` need not exist."""

    @abc.abstractmethod
    def has_split(self, path: str, split: str) -> bool:
        """Whether there is such a split, "train" or "val", without reading its images.

        Raises:
            UserError: It holds no images that can be trained on.
        """

    def has_labels(self, path: str) -> bool:
        """Whether its images have labels, as far as names and a few bytes tell.

        Raises:
            UserError: It cannot be looked at.
        """
        del path
        return True

    @abc.abstractmethod
    def open(
        self, path: str, split: str, *, image_size: int, num_images: int | None, seed: int
    ) -> ImageSource:
        """Open one split as images with or without labels; see `open_source`.

        Raises:
            UserError: It is missing, or holds no images that can be trained on.
        """

    def open_detection(
        self, path: str, split: str, *, image_size: int, seed: int
    ) -> DetectionSource:
        """Open one split with boxes and masks; see `open_detection`.

        Raises:
            UserError: It has none.
        """
        del split, image_size, seed
        raise UserError(f"{path} is {self.title}", "a set with boxes and masks is needed")

    def require_detection(self, path: str) -> None:
        """Refuse what `open_detection` would miss, without reading any annotation.

        Raises:
            UserError: Files of a split are missing.
        """
        del path

    def open_masks(self, path: str, split: str, *, image_size: int, seed: int) -> MaskSource:
        """Open one split with a class for every pixel; see `data.masks.opening`.

        Raises:
            UserError: It has none.
        """
        del split, image_size, seed
        raise UserError(f"{path} is {self.title}", "a set with a class for every pixel is needed")

    def require_masks(self, path: str) -> None:
        """Refuse what `open_masks` would miss, without reading any mask.

        Raises:
            UserError: It has no such layout.
        """
        del path

    def check(
        self,
        path: Path,
        reading: Reading,
        *,
        layout: str | None,
        classes_of: Path | None,
    ) -> CheckReport:
        """Read all of it and report what is there and what is wrong; see `checking.check_data`.

        Raises:
            UserError: It cannot be checked.
        """
        del reading, layout, classes_of
        raise UserError(f"{path} is {self.title}", "it cannot be checked")


# -- Which there are ------------------------------------------------------------------------------

_KINDS: dict[str, DataKind] = {}
_Kind = TypeVar("_Kind", bound=type[DataKind])


def register(kind: _Kind) -> _Kind:
    """Class decorator: from now on there is data of this kind.

    Raises:
        ValueError: Another kind has its name.
    """
    if kind.name in _KINDS:
        raise ValueError(f"there is a kind of data {kind.name!r} already")
    _KINDS[kind.name] = kind()
    return kind


@functools.cache
def _import_kinds() -> None:
    package = importlib.import_module("sercli.data.kinds")
    for module in sorted(one.name for one in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")


def kinds() -> list[DataKind]:
    """Every kind of data, in the order in which they are asked whether they recognise a path."""
    _import_kinds()
    return sorted(_KINDS.values(), key=lambda kind: (not kind.asked_first, kind.asked_last))


def find_kind(path: str) -> DataKind | None:
    """The kind of what a user named, as it is opened; None: it does not exist or is none.

    Raises:
        UserError: It is no path: a URL, say.
    """
    asked = [one for one in kinds() if not one.only_checked]
    if written := next((o for o in asked if o.asked_first and o.recognises(path)), None):
        return written
    require_place(path, "data")
    return next((one for one in asked if one.recognises(path)), None)


def kind_of(path: str) -> DataKind:
    """The kind of what a user named, as it is opened.

    Raises:
        UserError: It does not exist. (What exists and is no data set, the last kind refuses.)
    """
    if (kind := find_kind(path)) is not None:
        return kind
    if Path(path).exists():
        return kinds()[-1]
    *ways, last = dict.fromkeys(one.given_as for one in reversed(kinds()) if one.given_as)
    raise UserError(
        f"{path} does not exist",
        f"a data set is {', '.join(ways)} or {last}",
        "check the path, or make one with `ser data shapes DIR`",
    )


def recipes_for(path: str) -> str:
    """Folder under `recipes/` of the recipe that is taken for such data where none is named."""
    kind = find_kind(path)
    return DataKind.recipes if kind is None else kind.recipes


def rendering_kind(path: str) -> DataKind | None:
    """The kind that renders a path's images from the run's seed; None: they are in files.

    Only the name is looked at, so that it can be asked of results made on another machine.
    """
    return next((one for one in kinds() if one.rendered and one.recognises(path)), None)


def _rendered_titles() -> str:
    return " or ".join(dict.fromkeys(one.title for one in kinds() if one.rendered))


def require_sizes_used(path: str, *, num_train: int | None, num_val: int | None) -> None:
    """Refuse numbers of images (of a recipe) where they would be ignored.

    Raises:
        UserError: One is given for data that are not rendered.
    """
    if (num_train or num_val) and rendering_kind(path) is None:
        raise UserError(
            f"data.num_train and data.num_val only size {_rendered_titles()}; data.path is {path!r}"
        )


# -- Images --------------------------------------------------------------------------------------


def open_source(
    path: str,
    split: str,
    *,
    image_size: int,
    num_images: int | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    share: float = 1.0,
    cache: str | None = None,
) -> ImageSource:
    """Open one split of a data set.

    Args:
        path: `shapes` for the embedded world (a folder of that name is `./shapes`), otherwise a
            directory: with `train/` and `val/` folders of class folders it is read by split; with
            class folders of its own all of it is "train". Or what another kind recognises.
        split: "train" or "val".
        image_size: Side in pixels at which the embedded world is rendered; files keep their size.
        num_images: Images of the embedded world (default: 4096 in train, 1024 in val).
        seed: Which embedded world is rendered, and which share is drawn; train and val of one seed
            share no image.
        classes: Names of the classes to restrict it to; None: all.
        share: How much of each class there is of train, above 0 and at most 1.
        cache: Where a copy of the set may lie, which is read then; see `data.shards.cache`.

    Raises:
        UserError: The directory, the split, a class or its images are missing, the classes of
            `val/` differ from those of `train/`, or `num_images` is given for a directory.
        ValueError: A share of another split than train is asked for.
    """
    _require_split_name(split)
    if share != 1 and split != "train":
        raise ValueError(f"a share of {split}: what is measured on stays whole")
    if num_images is not None and rendering_kind(path) is None:
        names = " or ".join(f"`{one.name}`, {one.title}" for one in kinds() if one.rendered)
        raise UserError(
            f"num_images = {num_images} with the directory {path}",
            f"the number of images can be chosen only for {names}",
            "leave it out",
        )
    kind = kind_of(path)
    source = kind.open(path, split, image_size=image_size, num_images=num_images, seed=seed)
    if cache is not None:
        from sercli.data.shards.cache import from_cache

        source = from_cache(source, Path(cache))
    if classes is not None:
        source = with_classes(source, classes)
    return with_share(source, share, seed=seed)


def has_split(path: str, split: str) -> bool:
    """Whether a data set has a split, without reading its images.

    Raises:
        UserError: `path` is no data set with images to train on.
    """
    _require_split_name(split)
    return kind_of(path).has_split(path, split)


def require_labelled(path: str, wanted_for: str) -> None:
    """Refuse a set without labels before it is listed, where names and a few bytes tell.

    Args:
        path: What a user named.
        wanted_for: What needs the labels, as `source.require_labels` takes it.

    Raises:
        UserError: It has none.
    """
    if not kind_of(path).has_labels(path):
        raise no_labels(path, wanted_for)


def _require_split_name(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is neither train nor val")


# -- Boxes and masks ------------------------------------------------------------------------------


def detection_kind(path: str) -> DataKind:
    """The kind of a detection set; what none recognises is COCO's, which tells what is missing.

    Raises:
        UserError: It is no path: a URL, say.
    """
    require_place(path, "data")
    able = [one for one in kinds() if one.detector is not None]
    return next((one for one in able if one.recognises(path)), _KINDS["coco"])


def require_detection(path: str) -> None:
    """Refuse a detection set without both of its splits, before the seconds that reading one takes.

    Raises:
        UserError: Files of one are missing.
    """
    detection_kind(path).require_detection(path)


def open_detection(path: str, split: str, *, image_size: int, seed: int = 0) -> DetectionSource:
    """Open one split of a detection set.

    Args:
        path: `shapes`, or a directory in COCO's format.
        split: "train" or "val".
        image_size: Side in pixels at which the embedded world is rendered; files keep their size.
        seed: The embedded world's, as in `open_source`.

    Raises:
        UserError: It is missing, or not in COCO's format.
    """
    return detection_kind(path).open_detection(path, split, image_size=image_size, seed=seed)
