"""What a grid costs: FLOPs, counted on shapes, and hours of a device that `ser bench` measured.

Nothing is trained and no pixel is read. Of a training the FLOPs are those of all its steps; of an
evaluation those of the encoder's forward passes, as often as the grid says (`encodes:`): what
evaluators train on top of it is small. An evaluation of which the grid does not say it has none.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sercli.data import ImageSource, ShapesSource, open_source
from sercli.engine.flops import count_flops, on_meta, product_counter
from sercli.engine.resuming import training_source
from sercli.errors import UserError
from sercli.grids.jobs import Job
from sercli.recipe.files import Resolved
from sercli.recipe.schedule import Schedule
from sercli.recipe.schema import Recipe
from sercli.runs.files import read_json
from sercli.runs.reading import shown

NOMINAL = {"train": 1_281_167, "val": 50_000}  # ImageNet's, where its folder is not here
_CLASSES = 1000


@dataclass
class Counter:
    """Counts FLOPs of jobs, each recipe's once.

    Attributes:
        recipes: Run directory's name → its recipe, where that is known.
        assumed: Folders that are not here, of which the numbers of ImageNet's images are taken.
    """

    recipes: Mapping[str, Resolved]
    assumed: set[str] = field(default_factory=set)
    _trained: dict[str, float] = field(default_factory=dict)
    _encoded: dict[str, float] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    def flops(self, job: Job) -> float | None:
        """FLOPs of a job; None where they are not counted.

        Raises:
            UserError: Its recipe cannot be trained, or its images cannot be read.
        """
        if not job.run:
            return None
        resolved = self.recipes.get(job.directory.name)
        if resolved is None:
            return None
        recipe = resolved.recipe
        if job.is_training:
            return self._of_training(recipe)
        images = self._images(job, recipe)
        return images * self._of_image(recipe) if images else None

    def _of_training(self, recipe: Recipe) -> float:
        alike = recipe.model_copy(update={"seed": 0}).model_dump_json()
        if alike not in self._trained:
            steps = Schedule.of(recipe.train, self._size(recipe, "train")).total_steps
            counted = count_flops(recipe)
            self._trained[alike] = steps * (counted.step + counted.again)
        return self._trained[alike]

    def _images(self, job: Job, recipe: Recipe) -> float:
        """How many images an evaluation encodes."""
        encodes = {} if job.evaluation is None else job.evaluation.encodes
        return sum(
            times * (1 if what == "more" else self._size(recipe, what))
            for what, times in encodes.items()
        )

    def _of_image(self, recipe: Recipe) -> float:
        """FLOPs of an encoder's forward pass of one image."""
        alike = recipe.model.model_dump_json() + str((recipe.addon, recipe.data.image_size))
        if alike not in self._encoded:
            side = recipe.data.image_size
            encoder = on_meta(recipe).encoder.eval()
            with product_counter() as counter, torch.no_grad():
                encoder(torch.empty(1, 3, side, side, device="meta"))
            self._encoded[alike] = float(counter.get_total_flops())
        return self._encoded[alike]

    def _size(self, recipe: Recipe, split: str) -> int:
        alike = f"{split} {recipe.data.model_dump_json()}"
        if alike not in self._sizes:
            self._sizes[alike] = len(self._source(recipe, split))
        return self._sizes[alike]

    def _source(self, recipe: Recipe, split: str) -> ImageSource:
        path = recipe.data.path
        try:
            if split == "train":
                return training_source(recipe)
            return open_source(
                path,
                split,
                image_size=recipe.data.image_size,
                num_images=recipe.data.num_val,
                seed=recipe.seed,
                classes=recipe.data.classes,
            )
        except UserError:
            if Path(path).exists():
                raise
        self.assumed.add(path)
        return ShapesSource(split, image_size=16, num_images=_nominal(recipe, split))


def _nominal(recipe: Recipe, split: str) -> int:
    """About how many images of ImageNet a recipe sees: of its classes, and its share of train."""
    classes = recipe.data.classes
    share = 1.0 if classes is None else min(1.0, len(classes) / _CLASSES)
    share *= recipe.data.share if split == "train" else 1.0
    return max(1, round(share * NOMINAL[split]))


@dataclass(frozen=True)
class Speed:
    """How fast a device takes training steps, from a file of `ser bench step`.

    Attributes:
        device: Its name.
        rates: FLOP/s by recipe: of compiled steps where those were measured.
    """

    device: str
    rates: Mapping[str, float]

    @classmethod
    def from_file(cls, path: Path) -> Speed:
        """Read what `ser bench step --json` writes.

        Raises:
            UserError: It is no such file, or holds no timed step.
        """
        found = read_json(path)
        rates: dict[str, dict[str, float]] = {"compiled": {}, "": {}}
        tables = found.get("tables")
        for table in tables if isinstance(tables, list) else []:
            rows = table.get("rows") if isinstance(table, Mapping) else None
            if isinstance(rows, list) and table.get("benchmark") == "step":
                for row in rows:
                    name, rate = _rate(row)
                    recipe, _, way = name.partition(", ")
                    if rate is not None and way in rates:
                        rates[way][recipe] = rate
        kept = rates["compiled"] or rates[""]
        if not kept:
            raise UserError(
                f"{path} has no timed step",
                "a file of `ser bench step` is needed",
                "ser bench step --recipe RECIPE --against RECIPE --json FILE.json",
            )
        device = found.get("device")
        return cls(device if isinstance(device, str) else shown(device), kept)

    def seconds(self, flops: float, recipe: str) -> float:
        """What so many FLOPs take: at the recipe's own rate, else at the median of all."""
        return flops / self.rates.get(recipe, statistics.median(self.rates.values()))


def _rate(row: Any) -> tuple[str, float | None]:
    """The name of a row, and its FLOP/s if it was timed."""
    if not isinstance(row, Mapping):
        return "", None
    name, flops, seconds = row.get("step"), row.get("flops"), row.get("seconds")
    timed = all(isinstance(one, int | float) and one > 0 for one in (flops, seconds))
    return str(name), flops / seconds if timed else None  # type: ignore[operator]
