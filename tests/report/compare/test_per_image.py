"""Ratios of sums in a table: tested over the images that both runs stored, and only over those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sercli.errors import UserError
from sercli.report.compare import comparison
from sercli.report.compare.comparison import Options, compare_runs
from sercli.report.compare.tables import Difference, Table
from sercli.runs.files import file_sha256
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.statistics import MeanRatio, PairedRatios, paired_ratios
from tests.support.run_dirs import bare_run

Arrays = dict[str, np.ndarray]
ACTIONS = ("rot90", "rot180", "rot270", "hflip", "scale0.75", "scale1.25")
CLASSES = ("background", "cat", "never")
ROTATION, MIOU = "equiv-score/es/block03/rotation", "segment/miou"
IMAGES = 30


def of_es(seed: int) -> tuple[dict[str, float], Arrays]:
    """Two blocks, as `ser equiv-score` stores them; images are 0…29."""
    draws = np.random.default_rng(seed)
    observed = draws.gamma(3, 1, (2, IMAGES))
    moved = observed[..., None] * draws.uniform(0.8, 1.2, (2, IMAGES, 6))
    product = moved * draws.uniform(0.5, 0.9, moved.shape)
    arrays = {
        "image_ids": np.array([f"val/{one}" for one in range(IMAGES)]),
        "layers": np.array([0, 3]),
        "transformations": np.array(ACTIONS),
        "observed": observed,
        "moved": moved,
        "product": product,
    }
    scores = 2 * product[1].sum(0) / (observed[1][:, None] + moved[1]).sum(0)
    values = {f"es/block03/{name}": float(one) for name, one in zip(ACTIONS, scores, strict=True)}
    return {**values, "es/block03/rotation": float(scores[:3].mean())}, arrays


def of_segment(seed: int) -> tuple[dict[str, float], Arrays]:
    """The last block and one before it; the truth is the same whatever the seed."""
    truth = np.random.default_rng(99).integers(0, 40, (IMAGES, 3))
    truth[:, 2] = 0
    draws, values, arrays = np.random.default_rng(seed), {}, {}
    for block, place in (("", ""), ("/block03", "block03_")):
        right = draws.binomial(truth, 0.6)
        unions = truth + draws.integers(0, 9, truth.shape)
        each = 100 * right.sum(0)[:2] / unions.sum(0)[:2]
        values |= {f"miou{block}": float(each.mean())}
        values |= {f"pixel_accuracy{block}": float(100 * right.sum() / truth.sum())}
        values |= {} if block else {"iou/background": float(each[0]), "iou/cat": float(each[1])}
        arrays |= {f"{place}intersections": right, f"{place}unions": unions}
        arrays[f"{place}truth"] = truth
    ids = np.array([f"val/{one}" for one in range(IMAGES)])
    return values, {"image_ids": ids, "classes": np.array(CLASSES), **arrays}


def put(
    run: RunDir, name: str, values: dict[str, float], arrays: Arrays, *, path: str = "folder"
) -> None:
    run.results.mkdir(exist_ok=True)
    file = run.predictions(name)
    np.savez(file, **arrays)
    rule = {"name": name, "variant": None, "version": 1, "settings": {}}
    data = {"path": path, "n": IMAGES, "partial": False}
    model = {"source": "run", "key": "student"}
    metrics: dict[str, float | None] = {**values}
    sha256 = file_sha256(file)
    run.write_result(Result(rule, model, data, metrics, predictions_sha256=sha256))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """MoCo-v3 alone and with SER; images of the second stand in another order."""
    made = [bare_run(tmp_path / name, addon=name) for name in ("none", "ser")]
    order = np.random.default_rng(1).permutation(IMAGES)
    for seed, run in enumerate(made):
        for name, of in (("equiv-score", of_es), ("segment", of_segment)):
            values, arrays = of(seed)
            put(run, name, values, turned(arrays, order) if seed else arrays)
    return [run.path for run in made]


def turned(arrays: Arrays, order: np.ndarray) -> Arrays:
    axes = {"observed": 1, "moved": 1, "product": 1}
    whole = ("layers", "transformations", "classes")
    return {
        name: one if name in whole else one.take(order, axis=axes.get(name, 0))
        for name, one in arrays.items()
    }


def change(path: Path, name: str, change_it: Callable[[Arrays], Any]) -> None:
    """Other arrays, and a result that says they are its own."""
    run = RunDir(path)
    arrays = dict(np.load(run.predictions(name)))
    change_it(arrays)
    (result,) = [one for one in run.read_results() if one.name == name]
    put(run, name, {k: v for k, v in result.metrics.items() if v is not None}, arrays)


def difference(table: Table, column: str) -> Difference:
    found = table.rows[1].cells[column].difference
    assert found is not None
    return found


def compared(paths: list[Path], *columns: str) -> Table:
    return compare_runs(paths, Options(baseline=paths[0], columns=columns or (ROTATION, MIOU)))


def expected(make: Callable[[Arrays], tuple[np.ndarray, np.ndarray]], of: Any) -> PairedRatios:
    means = [MeanRatio(*(one.astype(float) for one in make(of(seed)[1]))) for seed in (0, 1)]
    return paired_ratios(*means)


def of_members(*members: int) -> Callable[[Arrays], tuple[np.ndarray, np.ndarray]]:
    def make(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        observed, moved, product = (arrays[k][1] for k in ("observed", "moved", "product"))
        chosen = list(members)
        return 2 * product[:, chosen].T, (observed[:, None] + moved[:, chosen]).T

    return make


def of_classes(*classes: int, block: str = "") -> Callable[[Arrays], tuple[np.ndarray, np.ndarray]]:
    def make(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        chosen = list(classes)
        right, unions = arrays[f"{block}intersections"], arrays[f"{block}unions"]
        return right[:, chosen].T, unions[:, chosen].T

    return make


@pytest.mark.parametrize(
    ("column", "test", "scale"),
    [
        (ROTATION, expected(of_members(0, 1, 2), of_es), 1),
        ("equiv-score/es/block03/scale0.75", expected(of_members(4), of_es), 1),
        (MIOU, expected(of_classes(0, 1), of_segment), 100),
        ("segment/miou/block03", expected(of_classes(0, 1, block="block03_"), of_segment), 100),
        ("segment/iou/cat", expected(of_classes(1), of_segment), 100),
        ("segment/pixel_accuracy", expected(
            lambda arrays: (arrays["intersections"].sum(1)[None], arrays["truth"].sum(1)[None]),
            of_segment,
        ), 100),
    ],
)  # fmt: skip
def test_runs_are_tested_image_by_image(
    runs: list[Path], column: str, test: PairedRatios, scale: float
) -> None:
    found = difference(compared(runs, column), column)
    assert test.interval is not None
    assert test.p_value is not None
    assert found.value == pytest.approx(scale * test.difference)
    assert (found.low, found.high) == pytest.approx(
        (scale * test.interval.low, scale * test.interval.high)
    )
    assert found.p_value == pytest.approx(test.p_value)
    assert (found.images, found.discordant, found.seeds) == (IMAGES, None, None)


def test_the_table_says_which_test_it_is_and_corrects_all_together(runs: list[Path]) -> None:
    table = compared(runs)
    one, two = (difference(table, column) for column in (ROTATION, MIOU))
    values = sorted(value for value in (one.p_value, two.p_value) if value is not None)
    assert max(one.adjusted_p or 0, two.adjusted_p or 0) == pytest.approx(
        max(2 * values[0], values[1])
    )
    said = " ".join(note.text for note in table.notes)
    assert "Student's t test of the jackknife over the images that both runs scored" in said
    assert "McNemar" not in said
    assert "2 paired tests of the table" in said
    assert all(f"jackknife p = {p:.2g}" in " ".join(table.comparisons) for p in values)
    assert all(one.endswith(f"({IMAGES} images).") for one in table.comparisons)
    # By itself as well, without a baseline that is named.
    assert len(compare_runs(runs, Options(columns=(ROTATION,))).comparisons) == 1


def test_of_many_pairs_sums_are_read_where_a_baseline_is_named(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "READ_UNASKED", 0)
    table = compare_runs(runs, Options(columns=(ROTATION, "segment/miou")))
    assert not table.comparisons
    (said,) = [note.text for note in table.notes if "not tested across images" in note.text]
    assert said.startswith("ES rotation block 3, Segment mIoU: not tested across images, as 1 pair")
    assert "--baseline RUN" in said
    assert len(compared(runs).comparisons) == 2


def first_id(arrays: Arrays) -> None:
    arrays["image_ids"][0] = "val/x"


def twice(arrays: Arrays) -> None:
    arrays["image_ids"][1] = arrays["image_ids"][0]


def without(*names: str) -> Callable[[Arrays], None]:
    return lambda arrays: [arrays.pop(name) for name in names] and None


def other_truth(arrays: Arrays) -> None:
    """Equally many pixels in all, in other images."""
    arrays["truth"][[0, 1]] = arrays["truth"][[1, 0]]


def stale(arrays: Arrays) -> None:
    name = "product" if "product" in arrays else "intersections"
    arrays[name] = arrays[name] // 2


@pytest.mark.parametrize(
    ("column", "name", "broken"),
    [
        (ROTATION, "equiv-score", first_id),
        (ROTATION, "equiv-score", twice),
        (ROTATION, "equiv-score", without("product")),
        (ROTATION, "equiv-score", stale),
        (ROTATION, "equiv-score", lambda a: a.update(layers=np.array([0, 9]))),
        (ROTATION, "equiv-score", lambda a: a.update(transformations=np.array(list("abcdef")))),
        (MIOU, "segment", first_id),
        (MIOU, "segment", other_truth),
        (MIOU, "segment", stale),
        ("segment/iou/cat", "segment", lambda a: a.update(classes=np.array(list("abc")))),
    ],
)
def test_what_is_not_of_the_same_images_or_numbers_is_not_tested(
    runs: list[Path], column: str, name: str, broken: Callable[[Arrays], None]
) -> None:
    change(runs[1], name, broken)
    found = difference(compared(runs, column), column)
    assert (found.p_value, found.images) == (None, None)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("equiv-score", lambda a: a.update(product=a["product"][:, :-1])),
        ("equiv-score", lambda a: a.update(observed=a["observed"][0])),
        ("equiv-score", lambda a: a.update(product=a["product"] * np.nan)),
        ("equiv-score", lambda a: a.update(product=a["product"] * 1e307)),
        ("equiv-score", lambda a: a.update(moved=a["moved"] * 1e307)),
        ("equiv-score", lambda a: a.update(product=a["product"].astype(str))),
        ("equiv-score", lambda a: a.update(observed=np.float64(3))),
        ("equiv-score", lambda a: a.update(image_ids=a["image_ids"][1:])),
        ("segment", lambda a: a.update(unions=a["unions"][1:])),
        ("segment", lambda a: a.update(classes=a["classes"][1:])),
        ("segment", lambda a: a.update(truth=a["truth"].astype(float))),
        ("segment", lambda a: a.update(truth=a["truth"].astype(str))),
        ("segment", lambda a: a.update(unions=0 * a["unions"])),
    ],
)
def test_arrays_that_do_not_belong_together_are_one_line(
    runs: list[Path], name: str, broken: Callable[[Arrays], None]
) -> None:
    change(runs[1], name, broken)
    with pytest.raises(UserError) as error:
        compared(runs)
    assert str(RunDir(runs[1]).predictions(name)) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_one_line(runs: list[Path]) -> None:
    path = RunDir(runs[1]).predictions("equiv-score")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"equiv-score\.npz is damaged"):
        compared(runs)


def test_worlds_of_two_seeds_are_not_paired(tmp_path: Path) -> None:
    made = [bare_run(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
    for seed, run in enumerate(made):
        put(run, "equiv-score", *of_es(seed), path="shapes:scenes")
    paths = [run.path for run in made]
    assert difference(compared(paths, ROTATION), ROTATION).p_value is None
    assert not compared(paths, ROTATION).comparisons


def test_equal_runs_have_a_difference_and_no_test(tmp_path: Path) -> None:
    made = [bare_run(tmp_path / name, addon=name) for name in ("none", "ser")]
    for run in made:
        put(run, "equiv-score", *of_es(0))
    table = compared([run.path for run in made], ROTATION)
    found = difference(table, ROTATION)
    assert (found.value, found.p_value) == (0, None)
    assert not table.comparisons
