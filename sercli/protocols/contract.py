"""What a protocol tells of its numbers: what they are called, what they mean, how they compare.

Evaluators write metrics by flat names (`top1`, `es/block03/rot90`, with `…/low` and `…/high` where
there is an interval). A `Protocol` has a `Quantity` for each kind of them; reports build columns
from it and know no protocol by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # what only lists protocols does not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

Unit = Literal["percent", "score", "ratio", "duration", "rate", "count", "memory"]
Axis = Literal["accuracy", "equivariance"]
BLOCK = "block"
# Of every protocol that encodes images; `model.precision` of a result says which it was.
PRECISION = "fp32 or bf16 encoder, sums in fp32/64"
ENDS = ("/low", "/high")
_REMEMBERED = 100_000  # metrics of a protocol; one has 1,400 at most
_SLOT = re.compile(r"\{(\w+)(\*?)\}")


@dataclass(frozen=True)
class PerImage:
    """How a metric follows from what was stored of each image: a mean of ratios of sums over them.

    Attributes:
        arrays: Names of the arrays that it is made of, beside `image_ids`.
        parts: Numerators and denominators, [K, n] each, of the K ratios whose mean it is, in 0…1,
            from these arrays; None: the metric is not among them. A ValueError: they do not belong
            together.
        truth: One of the arrays, [n, …] of whole numbers: what the images are of, on which runs
            that scored the same ones agree.
    """

    arrays: Callable[[Reading], tuple[str, ...]]
    parts: Callable[
        [Mapping[str, NDArray[Any]], Reading],
        tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    ]
    truth: str | None = None


@dataclass(frozen=True)
class Quantity:
    """One kind of metrics.

    Attributes:
        pattern: Their name; `{slot}` stands for a part between slashes, `{slot*}` for all that
            follows, `{block}` for the number of a block: then `--block` chooses between columns.
        heading: What a column is headed; may have the pattern's slots. Empty: the metric's name.
        unit: percent (0…100), score, ratio, duration (seconds), rate (images/s), count, memory
            (GiB).
        better: Which end is better; None: neither, so that nothing is ranked or subtracted.
        default: Shown without being asked for, where some run has a value.
        undefined: "no value" tells something: a default column stays where no run has one.
        interval: "stored": the evaluator writes `/low` and `/high`; "wilson": it does, and where
            an older result lacks them, Wilson's interval of a share of n images stands for them.
        paired: A share of images that stored predictions reproduce: two runs are tested on them.
        per_image: Sums over images that stored arrays reproduce: likewise.
        floor: Pattern of the same number of a random twin.
        variants: Names or wildcards of the protocol's variants that have it; none: all.
        explanation: One sentence for these metrics; None: the protocol's.
        by_block: A report draws it over the blocks; of a quantity of blocks.
        grid: The slots that are rows and columns of a heat map in a report.
        axis: On which axis of a report's picture of accuracy against equivariance it is.
    """

    pattern: str
    heading: str = ""
    unit: Unit = "percent"
    better: Literal["up", "down"] | None = "up"
    default: bool = False
    undefined: bool = False
    interval: Literal["stored", "wilson"] | None = None
    paired: bool = False
    per_image: PerImage | None = None
    floor: str | None = None
    variants: tuple[str, ...] = ()
    explanation: str | None = None
    by_block: bool = False
    grid: tuple[str, str] | None = None
    axis: Axis | None = None

    @property
    def of_block(self) -> bool:
        """Whether there is one for each block."""
        return f"{{{BLOCK}}}" in self.pattern

    def read(self, metric: str, variant: str = "") -> Reading | None:
        """What `metric` is by this quantity; None: another one."""
        if self.variants and not any(fnmatchcase(variant, name) for name in self.variants):
            return None
        match = _expression(self.pattern).fullmatch(metric)
        return None if match is None else Reading(self, metric, match.groupdict())


@dataclass(frozen=True)
class Reading:
    """A metric and the quantity it is one of.

    Attributes:
        slots: What stands in the slots of the quantity's pattern.
    """

    quantity: Quantity
    metric: str
    slots: Mapping[str, str]

    @property
    def heading(self) -> str:
        shown = {**self.slots, **({} if self.block is None else {BLOCK: str(self.block)})}
        return _filled(self.quantity.heading, shown) or self.metric

    @property
    def block(self) -> int | None:
        return int(self.slots[BLOCK]) if BLOCK in self.slots else None

    @property
    def floor(self) -> str | None:
        """The metric that is this one's floor."""
        return None if self.quantity.floor is None else _filled(self.quantity.floor, self.slots)

    @property
    def of_any_block(self) -> str:
        """The metric with its block left open: `es/block{block}/rot90`."""
        slots = {**self.slots, BLOCK: f"{{{BLOCK}}}"}
        return _filled(self.quantity.pattern, slots)


UNKNOWN = Quantity("{metric*}", unit="score", better=None, interval="stored")


@dataclass(frozen=True)
class Protocol:
    """A protocol and all that it measures.

    Attributes:
        name: As in results and of its command.
        title: What it measures, in words that go after "no" and before "column".
        explanation: One sentence on its numbers.
        heading: What a column is headed: words, `{variant}` and `{quantity}`. A word whose
            variant is empty goes.
        quantities: The first that fits a metric counts.
        place: Where its columns stand, the smallest first, as in the paper's tables.
        variants: Titles of variants; others are shown by name.
        order: Variants whose columns come first, in this order; then the others, by name.
        default_block: The block shown where several were scored and none is asked for.
        untested: What to know of differences of its numbers, a sentence, where no test is made.
        undefined_if: An example of when a number of it is undefined.
        pictures: Headings of figures that its evaluator leaves, by their files' names.
    """

    name: str
    title: str
    explanation: str
    heading: str
    quantities: tuple[Quantity, ...]
    place: int
    variants: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    default_block: int | None = None
    untested: str = ""
    undefined_if: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_blocks(self) -> bool:
        return any(quantity.of_block for quantity in self.quantities)

    def read(self, metric: str, variant: str = "") -> Reading:
        """What a metric is; one that no quantity fits, as of another version, by its name only."""
        known = self._read.get((metric, variant))
        if known is not None:
            return known
        readings = (quantity.read(metric, variant) for quantity in self.quantities)
        found = next((one for one in readings if one is not None), None)
        reading = Reading(UNKNOWN, metric, {}) if found is None else found
        if len(self._read) < _REMEMBERED:
            self._read[metric, variant] = reading
        return reading

    @cached_property
    def _read(self) -> dict[tuple[str, str], Reading]:
        """What was asked before: a thousand runs have the same metrics."""
        return {}

    def measures(self, metric: str, variant: str = "") -> bool:
        """Whether a quantity fits a metric."""
        return self.read(metric, variant).quantity is not UNKNOWN

    def title_of(self, quantity: str, variant: str = "") -> str:
        """The heading of a column, for instance "Linear (SER) top-1".

        Args:
            quantity: Of a `Reading`: its heading.
            variant: Variant of the result, shown by its title in `variants`.
        """
        shown = self.variants.get(variant, variant)
        filled = self.heading.format(variant=shown, quantity=quantity)
        return " ".join(word for word in filled.split() if word != "()")

    def rank(self, variant: str) -> int:
        """The place of a variant's columns among those of the protocol."""
        return self.order.index(variant) if variant in self.order else len(self.order)

    def key(self, metric: str, variant: str = "") -> str:
        """The key of a column, `linear-eval--ser/top1`; a `{block}` may stay open.

        Raises:
            ValueError: The protocol measures no such thing.
        """
        if not self.measures(metric.replace(f"{{{BLOCK}}}", "0"), variant):
            raise ValueError(f"{metric!r} of {self.name}: no quantity has such a pattern")
        return f"{self.name}{f'--{variant}' if variant else ''}/{metric}"


def unknown(name: str) -> Protocol:
    """Stands for a protocol that has no contract here: all numbers by name, nothing ranked."""
    return Protocol(
        name=name,
        title=name,
        explanation="",
        heading="{variant} {quantity}",
        quantities=(replace(UNKNOWN, default=True),),
        place=10_000,
        variants={"": name},
    )


def is_end(metric: str) -> bool:
    """Whether a metric is an end of another's interval."""
    return metric.endswith(ENDS)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    # Literal parts and slots take turns.
    parts, position = [], 0
    for slot in _SLOT.finditer(pattern):
        parts.append(re.escape(pattern[position : slot.start()]))
        what = r"\d+" if slot[1] == BLOCK else ".+" if slot[2] else "[^/]+"
        parts.append(f"(?P<{slot[1]}>{what})")
        position = slot.end()
    return re.compile("".join([*parts, re.escape(pattern[position:])]))


def _filled(template: str, slots: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: slots[slot[1]], template)
