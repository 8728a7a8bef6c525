"""The time left: from jobs of a kind, by FLOPs, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sercli.grids.eta import Estimator, Left, Timed
from sercli.grids.jobs import Job
from sercli.visible import duration


def job(kind: str, name: str = "") -> Job:
    return Job(name or kind, kind, (kind,), Path(kind))


FLOPS = {"pretrain": 100.0, "long": 300.0, "knn": 10.0}


def flops_of(one: Job) -> float | None:
    return FLOPS.get(one.name)


def test_jobs_of_a_kind_tell_by_their_flops() -> None:
    estimator = Estimator(flops_of)
    assert estimator.seconds(job("pretrain")) is None
    estimator.timed += [Timed("pretrain", 50.0, 100.0), Timed("pretrain", 70.0, 100.0)]
    assert estimator.seconds(job("pretrain", "long")) == pytest.approx(180.0)  # 0.6 s a FLOP


def test_a_kind_of_which_none_is_done_goes_by_the_rate_of_others() -> None:
    estimator = Estimator(flops_of, [Timed("pretrain", 50.0, 100.0)])
    assert estimator.seconds(job("knn")) == pytest.approx(5.0)
    estimator.timed.append(Timed("knn", 8.0, 10.0))
    assert estimator.seconds(job("knn")) == pytest.approx(8.0)


def test_without_flops_a_kind_goes_by_its_median() -> None:
    estimator = Estimator(flops_of, [Timed("detect", 5.0, None), Timed("detect", 9.0, None)])
    assert estimator.seconds(job("detect")) == pytest.approx(7.0)
    assert estimator.seconds(job("other")) is None


def test_what_is_left_names_what_is_not_known() -> None:
    estimator = Estimator(flops_of, [Timed("pretrain", 60.0, 100.0)])
    left = estimator.left([job("pretrain"), job("knn"), job("detect"), job("detect")])
    assert left == Left(pytest.approx(66.0), ("detect",))
    assert str(left) == "about 66 s and detect left"
    assert str(Left(0.0, ("detect",))) == ""


def test_rows_are_read_as_written_and_others_passed_over() -> None:
    timed = Timed("knn", 8.0, 10.0)
    assert Timed.of_row(timed.to_json("x")) == timed
    assert Timed.of_row({"kind": "knn", "seconds": 1, "flops": None}) == Timed("knn", 1.0, None)
    for row in (
        {},
        {"kind": 3, "seconds": 1},
        {"kind": "k", "seconds": "1"},
        {"kind": "k", "seconds": -1},
    ):
        assert Timed.of_row(row) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (98.0, "98 s"), (720.0, "12 min"), (12_240.0, "3.4 h"), (180_000.0, "2.1 days")],
)
def test_durations_are_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
