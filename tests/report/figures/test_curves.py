"""Lines and points of many runs: labels, styles, and what a long line becomes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sercli.report.figures.curves import (
    Line,
    Point,
    lines_figure,
    points_figure,
    short,
    spread_out,
    thinned,
)
from sercli.report.figures.style import SERIES, series_style


def test_no_two_of_32_series_look_alike() -> None:
    looks = {(s["color"], str(s["linestyle"])) for s in map(series_style, range(32))}
    assert len(looks) == 32
    for one, other in itertools.pairwise(map(series_style, range(40))):
        assert one["color"] != other["color"]
        assert one["linestyle"] != other["linestyle"]
        assert one["marker"] != other["marker"]


@given(
    st.lists(st.floats(-50, 150), max_size=40),
    st.floats(0.5, 20),
)
def test_labels_keep_their_distance_their_order_and_inside(
    wanted: list[float], pitch: float
) -> None:
    places = spread_out(wanted, pitch, low=0, high=100)
    room = min(pitch, 100 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    found = [places[index] for index in order]
    assert all(after - before >= room - 1e-9 for before, after in itertools.pairwise(found))
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in found)


def test_labels_that_do_not_meet_stay_where_they_are() -> None:
    assert spread_out([70, 10, 40], 5, low=0, high=100) == [70, 10, 40]
    assert spread_out([50, 50], 10, low=0, high=100) == [45, 55]


def test_a_long_line_keeps_its_ends_its_peaks_and_its_gaps() -> None:
    y: list[float | None] = [math.sin(step / 50) for step in range(10_000)]
    y[1234], y[8765] = 7.0, -9.0
    y[5000:5100] = [None] * 100
    x, kept = thinned(range(10_000), y)
    assert len(x) <= 2 * 200 + 2 + 200
    assert (x[0], x[-1]) == (0, 9999)
    assert max(v for v in kept if np.isfinite(v)) == 7.0
    assert min(v for v in kept if np.isfinite(v)) == -9.0
    assert any(np.isnan(kept))
    assert [y[int(place)] for place in x if y[int(place)] is not None] == [
        value for value in kept if np.isfinite(value)
    ]
    assert thinned([1, 2], [3.0, None])[0] == [1, 2]


def test_ten_lines_have_ten_labels_and_intervals() -> None:
    lines = [
        Line(f"run {n}", n, [0, 1, 2], [n, n + 1, None], [n - 0.1] * 3, [n + 0.1] * 3)
        for n in range(10)
    ]
    figure = lines_figure(lines, xlabel="block", ylabel="score", whole=True)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [f"run {n}" for n in range(10)]
    assert axes.get_xlabel() == "block"
    intervals, leaders = axes.collections
    assert len(intervals.get_segments()) == 30
    assert len(leaders.get_segments()) == 10
    assert list(axes.get_xticks()) == [0, 1, 2]


@pytest.mark.parametrize(("values", "scale"), [([100.0, 0.1], "log"), ([100.0, 0.0], "linear")])
def test_a_scale_is_logarithmic_where_all_is_above_0(values: list[float], scale: str) -> None:
    figure = lines_figure([Line("a", 0, [1, 2], values)], xlabel="", ylabel="", log=True)
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_yscale() == scale
    assert not any("$" in tick.get_text() for tick in axes.get_yticklabels())


def test_a_run_that_has_just_begun_is_a_point() -> None:
    axes = lines_figure([Line("a", 3, [1], [2.0])], xlabel="", ylabel="").axes[0]
    assert any(line.get_marker() == "o" for line in axes.get_lines())
    assert {line.get_color() for line in axes.get_lines()} == {SERIES[3]}


@pytest.mark.parametrize("count", [3, 20])
def test_points_have_crosses_and_names_or_numbers(count: int) -> None:
    points = [
        Point(f"run {n}", n, n / 10, n, (n / 10 - 0.1, n / 10 + 0.1), (n - 1, n + 1), path="p")
        for n in range(count)
    ]
    axes = points_figure(points, xlabel="x", ylabel="y").axes[0]
    assert len(axes.collections) == 2 * count
    texts = [text.get_text() for text in axes.texts]
    assert {f"run {n}" for n in range(count)} <= set(texts)
    assert texts.count("1") == (2 if count > 8 else 0)  # at the point, and in the key
    low, high = axes.get_ylim()
    assert low < -1
    assert high > count


def test_a_label_is_one_line_that_is_not_long() -> None:
    assert short("a\nb\x1b") == r"a\nb\x1b"
    assert len(short("x" * 5000)) == 36
