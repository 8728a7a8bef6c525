"""Results as tables: blocks of text for the terminal, rows for the heat map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sercli.data.corruptions.catalogue import CATALOGUE, CORRUPTIONS, SEVERITIES
from sercli.protocols.robustness import SETS
from sercli.runs.result import Result

CORRUPTED, ON_THE_FLY, PERTURBED = "imagenet-c", "imagenet-c-otf", "imagenet-p"
NORMALISED = "imagenet-p-mfr"
GRIDS = (CORRUPTED, ON_THE_FLY)
_Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Block:
    """A table to print.

    Attributes:
        title: Line above it.
        headings: Titles of the columns, from left to right.
        rows: Cells as text.
        caption: Explanation below it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


@dataclass(frozen=True)
class GridRow:
    """One corruption of a grid.

    Attributes:
        name: Name of the corruption, as in results.
        group: What kind it is; rows of one kind stand together.
        extra: Whether it is none of ImageNet-C's fifteen, and enters no mean.
        accuracy: Top-1 by severity, percent (None: not measured).
        mean: Over the severities.
        ce: Error relative to AlexNet's, percent; None where that is not known.
    """

    name: str
    group: str
    extra: bool
    accuracy: Sequence[float | None]
    mean: float | None
    ce: float | None


def blocks(results: Mapping[str, Result], model: str) -> list[Block]:
    """Tables of results by variant: labelled sets in one, a grid and perturbations each in one."""
    plain = [one for name, one in results.items() if name not in {*GRIDS, PERTURBED, NORMALISED}]
    found = [_labelled(plain, model)] if plain else []
    found += [_grid(results[name], model) for name in GRIDS if name in results]
    if PERTURBED in results:
        found.append(_perturbed(results[PERTURBED], results.get(NORMALISED), model))
    return found


def _labelled(results: Sequence[Result], model: str) -> Block:
    rows = tuple(
        (
            f"{result.protocol['variant']}{' (partial)' if result.data['partial'] else ''}",
            f"{result.data['n']}",
            f"{result.data['classes']}",
            _number(result.metrics["top1"], 2),
            f"[{_number(result.metrics['top1/low'], 2)}, "
            f"{_number(result.metrics['top1/high'], 2)}]",
            _number(result.metrics["top5"], 2),
        )
        for result in results
    )
    return Block(
        f"Robustness of {short_name(model)} ({results[0].model['key']})",
        ("set", "images", "classes", "top-1", "95 % interval", "top-5"),
        rows,
        "top-1, top-5: percent; classes: those that may be predicted",
    )


def _grid(result: Result, model: str) -> Block:
    values = result.metrics
    rows = [
        (
            f"{row.name}{' *' if row.extra else ''}",
            *(_number(value) for value in (*row.accuracy, row.mean, row.ce)),
        )
        for row in corruption_rows(values)
    ]
    caption = "1 to 5: top-1 by severity, percent; CE: error relative to AlexNet's, percent"
    if any(row.extra for row in corruption_rows(values)):
        caption += "\n* extra, in no mean"
    if result.protocol["variant"] == ON_THE_FLY:
        caption += "\nmade on the fly: a protocol of its own, never to be mixed with ImageNet-C"
    if values["mce"] is None:
        caption += "\nmCE needs all fifteen corruptions"
    elif values["relative_mce"] is None:
        caption += "\nrelative mCE needs the clean error: add --data DIR"
    return Block(
        ": ".join(grid_title(result, model)),
        ("corruption", *map(str, SEVERITIES), "mean", "CE"),
        tuple(rows),
        caption,
    )


def grid_title(result: Result, model: str) -> tuple[str, str]:
    """What a grid of corruptions is of, and its three numbers."""
    values = result.metrics
    numbers = [
        f"{label} {value:.2f} %"
        for label, key in (("top-1", "top1"), ("mCE", "mce"), ("relative mCE", "relative_mce"))
        if (value := values[key]) is not None
    ]
    return _of(result, model), ", ".join(numbers)


def _of(result: Result, model: str) -> str:
    partial = " (partial)" if result.data["partial"] else ""
    name, key = SETS[result.protocol["variant"]], result.model["key"]
    return f"{name} of {short_name(model)} ({key}){partial}"


def _perturbed(result: Result, normalised: Result | None, model: str) -> Block:
    values = result.metrics
    names = [key.partition("/")[2] for key in values if key.startswith("fp/")]
    ratios: _Metrics = {} if normalised is None else normalised.metrics
    headings: tuple[str, ...] = ("perturbation", "FP", "uT5D", "top-1")
    endings: list[tuple[str, ...]] = [()] * (len(names) + 1)
    if normalised is not None:
        headings += ("FR",)
        endings = [(_number(ratios.get(f"fr/{name}")),) for name in names]
        endings.append((_number(ratios["mfr"]),))
    rows = [
        (
            name or "mean",
            _number(values[f"fp{place}"], 4),
            _number(values[f"ut5d{place}"], 3),
            _number(values[f"top1{place}"], 2),
            *ending,
        )
        for name, ending in zip([*names, ""], endings, strict=True)
        for place in (f"/{name}" if name else "",)
    ]
    caption = (
        "FP: share of frames whose prediction flips; uT5D: how far the five best classes move, "
        "0 to 15; top-1: percent of frames"
    )
    if normalised is None:
        caption += "\nmFR needs AlexNet's numbers: --alexnet-p FILE"
    else:
        caption += "\nFR: flip probability relative to AlexNet's, percent; its mean is mFR"
    return Block(_of(result, model), headings, tuple(rows), caption)


def corruption_rows(metrics: _Metrics) -> list[GridRow]:
    """The rows of a grid: the fifteen by kind, then the extra ones, then others."""
    there = dict.fromkeys(key.split("/")[1] for key in metrics if _is_cell(key))
    ordered = [name for name in CATALOGUE if name in there]
    ordered += [name for name in there if name not in CATALOGUE]
    return [
        GridRow(
            name=name,
            group=CATALOGUE[name].kind if name in CATALOGUE else "own",
            extra=name not in CORRUPTIONS,
            accuracy=[metrics.get(f"top1/{name}/{severity}") for severity in SEVERITIES],
            mean=metrics.get(f"top1/{name}"),
            ce=metrics.get(f"ce/{name}"),
        )
        for name in ordered
    ]


def _is_cell(key: str) -> bool:
    parts = key.split("/")
    return len(parts) == 3 and parts[0] == "top1" and parts[2].isdecimal()


def notes(results: Iterable[Result]) -> list[str]:
    """What a reader must know of the sets: a line each, by its set."""
    return [
        f"{result.protocol['variant']}: {note}"
        for result in results
        if result.protocol["variant"] != NORMALISED  # those of the set itself
        for note in result.data.get("notes", ())
    ]


def short_name(model: str) -> str:
    """A run directory or file by its own name."""
    return model if model.startswith("timm:") else Path(model).resolve().name


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
