"""Which images a model is evaluated on: those asked for, or those that its run was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sercli.data import ImageSource, has_split, open_source
from sercli.data.registry import rendering_kind
from sercli.errors import UserError
from sercli.recipe.class_lists import read_class_list
from sercli.runs.facts import RunFacts
from sercli.visible import say


@dataclass(frozen=True)
class Images:
    """A data set to evaluate on, not opened yet.

    Attributes:
        path: A directory, `shapes`, or what else `data.registry.open_source` opens.
        image_size: Side in pixels at which the embedded world is rendered.
        seed: Which embedded world is rendered.
        num_train, num_val: How many images of it each split has; None: the usual number.
        classes: The names of some of the classes; None: all.
        cache: Where a copy of them may lie; None: nowhere.
    """

    path: str
    image_size: int
    seed: int = 0
    num_train: int | None = None
    num_val: int | None = None
    classes: tuple[str, ...] | None = None
    cache: str | None = None

    def has(self, split: str) -> bool:
        """Whether there is such a split.

        Raises:
            UserError: `path` is no data set.
        """
        return has_split(self.path, split)

    def open(self, split: str) -> ImageSource:
        """One split, "train" or "val".

        Raises:
            UserError: It is missing or no data set.
        """
        source = open_source(
            self.path,
            split,
            image_size=self.image_size,
            num_images={"train": self.num_train, "val": self.num_val}[split],
            seed=self.seed,
            classes=self.classes,
            cache=self.cache,
        )
        for remark in source.remarks():
            say(f"note: {remark}", err=True)
        return source

    def open_unseen(self) -> ImageSource:
        """The val split, or train where there is no val (`split` says which)."""
        return self.open("val" if self.has("val") else "train")


def images_of(
    facts: RunFacts,
    model: str,
    *,
    data: str | None,
    image_size: int,
    classes: str | None = None,
) -> Images:
    """The images asked for, or those the run was trained on.

    The embedded world is the run's (its seed and sizes) wherever the run was trained on it, and so
    are its classes; a share of the images that it was trained on is not.

    Args:
        facts: Of the run.
        model: Its name in messages.
        data: What `open_source` takes; None: what the run was trained on.
        image_size: Side in pixels at which the embedded world is rendered.
        classes: A file that lists them, or "all"; None: those the run was trained on.

    Raises:
        UserError: No data set is asked for and there is no recipe that names one.
    """
    own = facts.data_path
    path = data or own
    if path is None:
        raise UserError(
            f"{model} has no recipe that names its images",
            "only a run directory knows what it was trained on",
            "add --data DIR, or --data shapes for the embedded world",
        )
    names = _classes(classes, facts if own == path else None)
    if rendering_kind(path) is None or own not in (None, path):
        cache = facts.setting("data", "cache") if own == path else None
        return Images(path, image_size, classes=names, cache=None if cache is None else str(cache))
    return Images(
        path,
        image_size,
        facts.seed if isinstance(facts.seed, int) else 0,
        facts.setting("data", "num_train"),
        facts.setting("data", "num_val"),
        names,
    )


def _classes(asked: str | None, facts: RunFacts | None) -> tuple[str, ...] | None:
    """Those in the file asked for, or those of the run; None: all."""
    if asked is not None:
        return None if asked == "all" else read_class_list(Path(asked))
    own = None if facts is None else facts.setting("data", "classes")
    return tuple(map(str, own)) if isinstance(own, list) else None
