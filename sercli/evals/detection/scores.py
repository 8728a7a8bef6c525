"""Average precision as COCO defines it, by pycocotools, with intervals over images.

Images without objects count: what is found in them is wrong. Image and category ids are raw.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli.data.coco.masks import segmentation_fault
from sercli.errors import UserError
from sercli.evals.detection.options import METRICS
from sercli.statistics import jackknife_interval

KINDS = ("bbox", "segm")
# COCO's first six numbers, in its order.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
BOUNDS = ("low", "high")  # ends of an interval, behind the name of what it is of
_GROUPS = 64
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Scores:
    """Average precision of boxes or of masks, in 0…1; None where there is nothing to find.

    Attributes:
        values: By `NAMES`.
        classes: By category name, over IoU 0.5…0.95.
        matches: For intervals; empty if the implementation does not give it.
    """

    values: dict[str, float | None]
    classes: dict[str, float | None]
    matches: tuple[Matches, ...] = ()


@dataclass(frozen=True)
class Matches:
    """How the detections of one category fared, best score first.

    Attributes:
        image: int64 [D], position of the image.
        hit: bool [T, D], matched with an object at each IoU threshold.
        miss: bool [T, D], matched with nothing (neither: ignored).
        objects: int64 [images], objects to find in each.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    miss: NDArray[np.bool_]
    objects: NDArray[np.int64]


def coco_scores(
    truth: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    *,
    kind: str,
    metric: str = "pycocotools",
    check: Callable[[], object] = lambda: None,
) -> Scores:
    """Score detections.

    Args:
        truth: As in an annotation file: images, annotations, categories. All its images count.
        found: COCO's results: image_id, category_id (raw), bbox (x, y, width, height), score and,
            for masks, segmentation.
        kind: "bbox" or "segm".
        metric: The implementation, "pycocotools" or "faster-coco-eval"; they agree.
        check: Called between images of each category, and may raise to stop; the faster
            implementation scores all in one call, before and after which it is called.

    Raises:
        UserError: The implementation is not installed.
        ValueError: A detection of an image or a category that is not in `truth`, or whose mask
            does not fill its image, or an annotation with id 0.
    """
    coco, evaluator_class = _implementation(metric)
    _require_known(truth, found)
    if kind == "segm":
        _require_filled(truth, found)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco()
        # Masks are converted in place: the caller's annotations stay as they are.
        copies = [dict(one) for one in truth["annotations"]]
        reference.dataset = {**truth, "annotations": copies}
        reference.createIndex()
        results = _results(coco, reference, found, kind)
        evaluator = _stoppable(evaluator_class, check)(reference, results, kind)
        evaluator.params.imgIds = sorted(image["id"] for image in truth["images"])
        check()
        evaluator.evaluate()
        check()
        evaluator.accumulate()
        check()
        evaluator.summarize()
    values = {name: _defined(value) for name, value in zip(NAMES, evaluator.stats[:6], strict=True)}
    # [IoU, recall, category, area, most detections]
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    names = names_of_categories({one["id"]: one["name"] for one in truth["categories"]})
    classes = {}
    for position, number in enumerate(evaluator.params.catIds):
        known = precision[:, :, position]
        known = known[known > -1]
        classes[names[number]] = float(known.mean()) if known.size else None
    matches = _matches(evaluator) if metric == "pycocotools" else ()
    return Scores(values, classes, matches)


def names_of_categories(named: Mapping[int, str]) -> dict[int, str]:
    """A name for each category that `ap/NAME` can have beside all other metrics.

    Files may name two alike, and `ap/low` is the end of an interval: such a name has its id behind.

    Args:
        named: What the file calls each, by raw id.
    """
    times = Counter(named.values())
    plain = {name for name in times if times[name] == 1 and name.split("/")[-1] not in BOUNDS}
    with_id = {number: f"{name} ({number})" for number, name in named.items()}
    found = {number: name if name in plain else with_id[number] for number, name in named.items()}
    # "a" twice beside one that is called "a (1)": ids behind all of them are never alike.
    return found if len({*found.values()}) == len(found) else with_id


def _defined(value: float) -> float | None:
    return None if value < 0 else float(value)


def _implementation(metric: str) -> tuple[Any, Any]:
    if metric not in METRICS:
        raise UserError(f"--metric {metric}", f"it must be {' or '.join(METRICS)}")
    try:
        if metric == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            return COCO, COCOeval
        from faster_coco_eval import COCO as FASTER_COCO
        from faster_coco_eval import COCOeval_faster

        return FASTER_COCO, COCOeval_faster
    except ImportError as error:
        raise UserError(
            f"--metric {metric}: it is not installed",
            remedy=f"pip install {metric}",
        ) from error


def _stoppable(evaluator: Any, check: Callable[[], object]) -> Any:
    """An evaluator that may be stopped wherever it goes from one image to the next."""

    class Stoppable(evaluator):
        def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802 its names
            check()
            return super().computeIoU(imgId, catId)

        def evaluateImg(self, imgId: int, *rest: Any) -> Any:  # noqa: N802
            check()
            return super().evaluateImg(imgId, *rest)

    return Stoppable


def _require_known(truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
    images = {image["id"] for image in truth["images"]}
    categories = {one["id"] for one in truth["categories"]}
    if any(one["id"] == 0 for one in truth["annotations"]):
        raise ValueError("an annotation has id 0, which pycocotools counts as no match")
    for one in found:
        if one["image_id"] not in images:
            raise ValueError(f"a detection in image {one['image_id']}, which is not scored")
        if one["category_id"] not in categories:
            raise ValueError(
                f"a detection of category {one['category_id']}, which is not listed: raw ids are "
                "needed, not positions"
            )


def _require_filled(truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
    # Those of `truth` are looked at when they are read. pycocotools compares others without end.
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    for one in found:
        counts = one["segmentation"]["counts"]
        text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
        runs = {"size": [*one["segmentation"]["size"]], "counts": text}
        if fault := segmentation_fault(runs, sizes[one["image_id"]]):
            raise ValueError(f"a detection in image {one['image_id']} has {fault}")


def _results(coco: Any, reference: Any, found: Sequence[Mapping[str, Any]], kind: str) -> Any:
    if not found:
        nothing = coco()
        nothing.dataset = {**reference.dataset, "annotations": []}
        nothing.createIndex()
        return nothing
    # Without its box, a detection's area is that of its mask, which decides small, medium, large.
    left_out = "bbox" if kind == "segm" else "segmentation"
    return reference.loadRes([{k: v for k, v in one.items() if k != left_out} for one in found])


# -- Intervals ------------------------------------------------------------------------------------


def _matches(evaluator: Any) -> tuple[Matches, ...]:
    """What `accumulate` starts from, for all areas and the most detections."""
    parameters = evaluator.params
    images, areas = len(parameters.imgIds), len(parameters.areaRng)
    thresholds, most = len(parameters.iouThrs), parameters.maxDets[-1]
    found = []
    for category in range(len(parameters.catIds)):
        start = category * areas * images
        scores, hits, misses, image = [], [], [], []
        objects = np.zeros(images, np.int64)
        for position, one in enumerate(evaluator.evalImgs[start : start + images]):
            if one is None:
                continue
            objects[position] = np.sum(np.asarray(one["gtIgnore"]) == 0)
            matched = np.asarray(one["dtMatches"])[:, :most].reshape(thresholds, -1) != 0
            ignored = np.asarray(one["dtIgnore"])[:, :most].reshape(thresholds, -1).astype(bool)
            scores.append(np.asarray(one["dtScores"], np.float64)[:most])
            hits.append(matched & ~ignored)
            misses.append(~matched & ~ignored)
            image.append(np.full(matched.shape[1], position))
        order = np.argsort(-np.concatenate(scores or [np.zeros(0)]), kind="mergesort")
        nothing = np.zeros((thresholds, 0), bool)
        found.append(
            Matches(
                image=np.concatenate(image or [np.zeros(0, np.int64)])[order].astype(np.int64),
                hit=np.concatenate(hits or [nothing], axis=1)[:, order],
                miss=np.concatenate(misses or [nothing], axis=1)[:, order],
                objects=objects,
            )
        )
    return tuple(found)


def average_precision(
    matches: Sequence[Matches], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AP at each IoU threshold when each image counts `weights` times.

    Args:
        matches: Which detections match which objects, for each category and image.
        weights: [images], not negative.

    Returns:
        [T], the mean over the categories that have an object in some image of weight > 0; NaN
        where no category has one.
    """
    precisions = []
    for one in matches:
        total = float(weights @ one.objects)
        if total == 0:
            continue
        weight = weights[one.image]
        hits = np.cumsum(one.hit * weight, axis=1)
        misses = np.cumsum(one.miss * weight, axis=1)
        recall = hits / total
        precision = hits / (hits + misses + np.spacing(1))
        # From the right, the best precision at this recall or a higher one.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.concatenate([precision, np.zeros((len(precision), 1))], axis=1)
        at = [
            envelope[np.searchsorted(reached, _RECALLS, side="left")].mean()
            for envelope, reached in zip(precision, recall, strict=True)
        ]
        precisions.append(at)
    if not precisions:
        return np.full(len(matches[0].hit) if matches else 0, np.nan)
    mean: NDArray[np.float64] = np.mean(precisions, axis=0)
    return mean


def intervals(
    matches: Sequence[Matches], *, seed: int = 0, check: Callable[[], object] = lambda: None
) -> dict[str, tuple[float, float]]:
    """Jackknife intervals over images of AP and AP50, in 0…1.

    Args:
        matches: Of each category.
        seed: Of how images are dealt into groups.
        check: Called before each group is left out; may raise to stop.

    Returns:
        By name; empty without matches, of a single image, and where without one group there is
        nothing to find.
    """
    images = len(matches[0].objects) if matches else 0
    groups = min(images, _GROUPS)
    if groups < 2:
        return {}
    point = average_precision(matches, np.ones(images))
    group = np.random.default_rng(seed).permutation(images) % groups
    left_out = []
    for one in range(groups):
        check()
        left_out.append(average_precision(matches, (group != one).astype(np.float64)))
    values = np.array(left_out)
    if np.isnan(values).any():
        return {}
    found = {}
    for name, middle, column in (
        ("ap", float(point.mean()), values.mean(axis=1)),
        ("ap50", float(point[0]), values[:, 0]),
    ):
        ends = jackknife_interval(middle, column.tolist())
        found[name] = (max(0.0, ends.low), min(1.0, ends.high))
    return found


def metrics_of(
    scores: Mapping[str, Scores], *, check: Callable[[], object] = lambda: None
) -> dict[str, float | None]:
    """Flat metrics in percent: `ap`, `mask_ap`, …, `ap/<category>`, `ap50/low`, …

    Args:
        scores: By kind, "bbox" and "segm".
        check: Called before each part of an interval; may raise to stop.
    """
    metrics: dict[str, float | None] = {}
    prefixes = {"bbox": "", "segm": "mask_"}
    for kind, found in scores.items():
        prefix = prefixes[kind]
        metrics |= {f"{prefix}{name}": _percent(value) for name, value in found.values.items()}
        for name, (low, high) in intervals(found.matches, check=check).items():
            for bound, value in zip(BOUNDS, (low, high), strict=True):
                metrics[f"{prefix}{name}/{bound}"] = 100 * value
    for kind, found in scores.items():
        metrics |= {
            f"{prefixes[kind]}ap/{name}": _percent(value) for name, value in found.classes.items()
        }
    return metrics


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
