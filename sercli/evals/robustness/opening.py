"""Sets to evaluate on, all opened and checked before any is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sercli.data.robustness.imagenet_classes import imagenet_classes, is_imagenet
from sercli.data.source import ImageSource
from sercli.errors import UserError
from sercli.evals.robustness.reading import InOrder, OnTheFly, require_side

if TYPE_CHECKING:
    from sercli.data.robustness.sets import LabelledSet, PerturbedSet


_OTHERS = ("imagenet-c", "imagenet-p")  # not a labelled set each


class Corruptions(Protocol):
    """A grid of corrupted sets: ImageNet-C's files, or made on the fly."""

    @property
    def corruptions(self) -> Sequence[str]: ...
    @property
    def partial(self) -> bool: ...
    @property
    def notes(self) -> Sequence[str]: ...
    def source(self, corruption: str, severity: int) -> ImageSource: ...


@dataclass(frozen=True)
class Sets:
    """Sets to evaluate on, opened and checked.

    Attributes:
        labelled: Name → set; "val", if it is there, first.
        grids: "imagenet-c" or "imagenet-c-otf" → path and set.
        perturbed: Path and set of ImageNet-P, or None.
    """

    labelled: Mapping[str, LabelledSet]
    grids: Mapping[str, tuple[str, Corruptions]]
    perturbed: tuple[str, PerturbedSet] | None


def open_sets(
    folders: Mapping[str, Path],
    classes: tuple[str, ...],
    *,
    v2: Sequence[Path] = (),
    val: ImageSource | None = None,
    on_the_fly: bool = False,
    image_size: int,
    allow_partial: bool = False,
) -> Sets:
    """Open all sets before any is evaluated, so that a wrong one is told at once.

    Args:
        folders: "imagenet-c", "imagenet-p" or a kind of labelled set → directory.
        classes: Of the head, in its order.
        v2: Directories that are or hold sets of ImageNet-V2.
        val: Clean images.
        on_the_fly: Whether `val` is corrupted while it is read.
        image_size: The classifier's; files of ImageNet-C and -P must have it.
        allow_partial: Whether incomplete sets are accepted.

    Raises:
        UserError: A set is missing, incomplete, of other classes than the head, or its pictures
            have another side; or the head knows some of ImageNet's classes, but not all.
    """
    from sercli.data.robustness import sets as files

    if folders or v2:
        _require_whole_head(classes)
    labelled: dict[str, LabelledSet] = {}
    grids: dict[str, tuple[str, Corruptions]] = {}
    perturbed = None
    named = [(kind, path) for kind, path in folders.items() if kind not in _OTHERS]
    for directory in v2:
        named += [(_v2_kind(variant), path) for variant, path in files.find_v2(directory).items()]
    if val is not None:
        clean = InOrder(val, classes)
        labelled["val"] = files.LabelledSet(
            name=val.name, source=clean, subset=None, variant="val", partial=False, notes=()
        )
        if on_the_fly:
            grids["imagenet-c-otf"] = (val.name, OnTheFly(clean, image_size=image_size))
    for kind, path in named:
        if kind in labelled:
            raise UserError(f"two directories hold {kind}: {path} is the second", "one is needed")
        labelled[kind] = files.open_set(kind, path, classes, allow_partial=allow_partial)
    if (grid := folders.get("imagenet-c")) is not None:
        opened = files.open_corrupted(grid, classes, allow_partial=allow_partial)
        cell = opened.source(opened.corruptions[0], 1)
        require_side(cell.load(0).size, image_size, cell.describe(0))
        grids = {"imagenet-c": (str(grid), opened), **grids}
    if (videos := folders.get("imagenet-p")) is not None:
        found = files.open_perturbed(videos, classes, allow_partial=allow_partial)
        name = found.perturbations[0]
        _, width, height = found.header(name, 0)
        require_side((width, height), image_size, f"{videos}/{name}/{found.identifier(name, 0)}")
        perturbed = (str(videos), found)
    return Sets(labelled, grids, perturbed)


def _require_whole_head(classes: Sequence[str]) -> None:
    """A head for some of ImageNet's classes would be asked an easier question."""
    known = set(classes) & set(imagenet_classes())
    if known and not is_imagenet(classes):
        raise UserError(
            f"the head has {len(classes)} classes, {len(known)} of them ImageNet's",
            "the sets of ImageNet are published for all 1000",
            "train the head on the whole of ImageNet-1k",
        )


def _v2_kind(variant: str) -> str:
    """A result of ImageNet-V2 always names which of the three it is of."""
    return f"imagenet-v2-{variant.removeprefix('imagenet-v2-')}"
