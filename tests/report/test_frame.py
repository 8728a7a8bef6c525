"""`sercli.results` and `sercli.curves`: what is in the files, and of which dtype."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from scipy import stats

import sercli
from sercli.errors import UserError
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

COLUMNS = [
    *("run", "method", "addon", "layer", "views", "seed", "protocol", "variant", "metric"),
    *("value", "low", "high", "n", "partial", "protocol_id"),
]
DTYPES = {
    **dict.fromkeys(COLUMNS, "string"),
    **dict.fromkeys(("layer", "seed", "n"), "Int64"),
    **dict.fromkeys(("value", "low", "high"), "float64"),
    "partial": "boolean",
}


def make_run(path: Path, recipe: dict[str, Any] | None, **record: Any) -> RunDir:
    text = None if recipe is None else yaml.safe_dump(recipe)
    return RunDir.create(path, recipe=text, run={"status": "done", **record})


def recipe(addon: str = "ser", *, layer: int = 3, weight: float = 1.0, seed: int = 0) -> Any:
    return {
        "seed": seed,
        "method": {"name": "barlow_twins"},
        "addon": {"name": addon, "layer": layer, "weight": weight},
        "views": {"setting": "2+4-crops"},
    }


def add(run: RunDir, name: str, metrics: dict[str, float | None], **data: Any) -> None:
    protocol, _, variant = name.partition("--")
    rule = {"name": protocol, "variant": variant or None, "version": 1, "settings": {}}
    run.write_result(Result(rule, {"source": "x"}, {"path": "set", **data}, metrics))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    ours = make_run(tmp_path / "ours", recipe(seed=4), timings={"train_seconds": 12})
    add(ours, "knn", {"top1": 31.2, "top5": 80.0, "top5/low": 79.0, "top5/high": 81.5}, n=1000)
    add(ours, "equiv-score", {"es/block03/rotation": None, "energy/block03": 0.5}, n=64)
    theirs = make_run(tmp_path / "theirs", None)
    add(theirs, "robustness--imagenet-r", {"top1": 20}, n=50, partial=True)
    return [ours.path, theirs.path]


def of(frame: pd.DataFrame, metric: str) -> pd.Series:
    (place,) = frame.index[frame.metric == metric]
    return frame.loc[place]


def test_a_row_a_metric_with_its_interval(runs: list[Path]) -> None:
    frame = sercli.results(*runs)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 6
    stored, wilson = of(frame, "top5"), of(frame[frame.protocol == "knn"], "top1")
    assert (stored.value, stored.low, stored.high) == (80.0, 79.0, 81.5)
    assert (wilson.method, wilson.addon, wilson.layer) == ("barlow-twins", "ser", 3)
    assert (wilson.views, wilson.seed, wilson.n, wilson.partial) == ("2+4-crops", 4, 1000, False)
    expected = stats.binomtest(312, 1000).proportion_ci(method="wilson")
    assert (wilson.low, wilson.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    told = json.loads(RunDir(runs[0]).result("knn").read_text())
    assert wilson.protocol_id == told["protocol_id"]
    foreign = frame[frame.run == str(runs[1])].iloc[0]
    assert (foreign.protocol, foreign.variant, foreign.value) == ("robustness", "imagenet-r", 20.0)
    assert foreign.partial
    assert foreign[["method", "addon", "layer", "views", "seed"]].isna().all()


def test_undefined_is_nan_and_what_was_not_measured_has_no_row(runs: list[Path]) -> None:
    frame = sercli.results(*runs)
    undefined = of(frame, "es/block03/rotation")
    assert math.isnan(undefined.value)
    assert undefined.n == 64
    assert "es/block03/hflip" not in set(frame.metric)
    time = of(frame, "train_seconds")
    assert (time.protocol, time.value) == ("run", 12.0)
    assert time[["variant", "n", "partial", "protocol_id"]].isna().all()


@pytest.mark.parametrize("some", [True, False])
def test_dtypes_do_not_depend_on_what_there_is(runs: list[Path], some: bool) -> None:
    frame = sercli.results(*(runs if some else ()))
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == DTYPES
    assert sercli.results(*runs, *runs).equals(sercli.results(*runs))


def test_settings_are_columns_of_their_own(tmp_path: Path) -> None:
    paths = []
    for name, of_run in (("a", recipe(weight=0)), ("b", recipe(weight=0.5)), ("c", None)):
        run = make_run(tmp_path / name, of_run)
        add(run, "knn", {"top1": 1.0})
        paths.append(run.path)
    frame = sercli.results(*paths, settings=["addon.weight", "addon.layer", "no.such"])
    assert frame["addon.weight"].tolist()[:2] == [0.0, 0.5]
    assert frame["addon.layer"].dtype == "Int64"
    assert frame["addon.layer"].tolist() == [3, 3, pd.NA]
    assert frame["no.such"].isna().all()
    with pytest.raises(UserError, match="settings 'addon'"):
        sercli.results(settings=["addon"])


def test_curves_have_a_row_a_logged_step(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, recipe()) for name in ("one", "two"))
    one.append_metrics({"step": 1, "epoch": 0.5, "loss": 3, "skipped": False})
    one.append_metrics({"step": 2, "epoch": 1.0, "loss": None, "skipped": True, "knn_top1": 20.0})
    one.metrics.write_text(one.metrics.read_text() + '{"step": 3, "lo')  # cut short by a kill
    two.append_metrics({"step": 1, "loss": 2.5, "momentum": 1, "note": "a word", "run": "x"})
    frame = sercli.curves(one.path, two.path)
    assert list(frame.columns) == [
        *("run", "step", "epoch", "loss", "skipped", "knn_top1", "momentum")
    ]
    assert frame.run.tolist() == [str(one.path)] * 2 + [str(two.path)]
    assert frame.step.tolist() == [1, 2, 1]
    assert (frame.step.dtype, frame.skipped.dtype) == ("Int64", "boolean")
    assert frame.loss.tolist()[::2] == [3.0, 2.5]
    assert math.isnan(frame.loss[1])
    assert frame.knn_top1.isna().tolist() == [True, False, True]
    assert frame.skipped.tolist() == [False, True, pd.NA]
    assert sercli.curves().empty


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    for ask in (sercli.results, sercli.curves):
        with pytest.raises(UserError, match="does not exist"):
            ask(tmp_path / "missing")


def test_pandas_comes_with_the_first_frame_and_torch_never() -> None:
    program = (
        "import sys, sercli; sercli.results; assert not {'torch', 'pandas'} & set(sys.modules);"
        "sercli.results(), sercli.curves(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
