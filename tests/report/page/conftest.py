"""A page about four runs and one that has just begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sercli.report.figures import style
from sercli.report.page.building import write_report
from tests.support.html_page import Page
from tests.support.run_dirs import bare_run, log, picture, whole_run


@contextmanager
def coarse() -> Iterator[None]:
    """PNG files of few pixels: most of a page's time is theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DOTS_PER_INCH", 30)
        yield


@pytest.fixture(autouse=True)
def _coarse() -> Iterator[None]:
    with coarse():
        yield


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """None, SER at 3, 9 and 12, with pictures; and one that is still in progress."""
    root = tmp_path_factory.mktemp("runs")
    none = whole_run(root / "none")
    picture(none, "equiv-tokens", description='Tokens of "none" & <others>')
    picture(none, "coco-detect--torchvision", seed=1)
    picture(none, "equiv-score", seed=2)  # whose numbers are a chart
    picture(none, "look-attention", seed=3)
    for layer in (3, 9, 12):
        whole_run(root / f"ser-{layer}", addon="ser", layer=layer)
    log(
        bare_run(root / "begun", addon="stl", status="running", timings={}),
        steps=1,
        equivariance=True,
    )
    return sorted(root.iterdir())


@pytest.fixture(scope="package")
def written(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "page.html"
    with coarse():  # not as long as the fixture lives: tests of other folders come in between
        write_report(runs, out, title="A < B")
    return out


@pytest.fixture(scope="package")
def page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))
