"""Figures: what is drawn, and that files are whole, reproducible and free of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from sercli.report.figures.equivariance import (
    LayerCurves,
    TokenRow,
    equivariance_figure,
    principal_colours,
    token_figure,
)
from sercli.report.figures.style import save_figure

LAYERS = [0, 1, 2, 3]


def panel(name: str, score: list[float | None]) -> LayerCurves:
    low = [None if v is None else v - 0.1 for v in score]
    high = [None if v is None else v + 0.1 for v in score]
    floor = [0.5] * len(score)
    return LayerCurves(name, score, low, high, floor, floor, floor)


def token_row(grid: tuple[int, int] = (3, 5)) -> TokenRow:
    draws = np.random.default_rng(0)
    h, w = grid
    image = draws.random((4 * h, 4 * w, 3), np.float32)
    maps = draws.standard_normal((h, w, 6)).astype(np.float32)
    turned = np.rot90(maps).copy()
    return TokenRow("rot90", image, np.rot90(image), maps, turned, maps)


def test_curves_show_the_values_and_leave_undefined_ones_out() -> None:
    figure = equivariance_figure(
        LAYERS,
        [panel("rotation", [0.8, None, 0.7, 0.9]), panel("mirror", [0.9] * 4)],
        [0.5, 0.0, 0.4, 0.3],
        title="a title",
        tapped_layer=2,
    )
    first = figure.axes[0]
    lines = {str(line.get_label()): line for line in first.get_lines()}
    assert_allclose(lines["score, 95% interval"].get_ydata(), [0.8, np.nan, 0.7, 0.9])
    assert_allclose(lines["energy"].get_ydata(), [0.5, 0.0, 0.4, 0.3])
    assert "×: undefined" in {text.get_text() for text in first.texts}
    assert "×: undefined" not in {text.get_text() for text in figure.axes[1].texts}
    assert [line for line in first.get_lines() if list(line.get_xdata()) == [2, 2]]


def test_everything_undefined_is_still_a_figure() -> None:
    figure = equivariance_figure([0], [panel("rotation", [None])], [0.0], title="")
    assert figure.axes[0].get_ylim()[0] == 0.0


def test_a_negative_score_is_inside_the_axes() -> None:
    figure = equivariance_figure([0, 1], [panel("rotation", [-0.4, 0.2])], [0.5, 0.5], title="")
    assert figure.axes[0].get_ylim()[0] <= -0.5


def test_files_are_whole_and_reproducible(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        figure = token_figure([token_row()], title="a_b $x$")
        save_figure(figure, tmp_path / folder, "tokens", description="Tokens & turns: é")
    with Image.open(tmp_path / "one" / "tokens.png") as image:
        image.load()
        assert image.width > 1000
        assert image.info["Description"] == "Tokens & turns: é"
    vector = ElementTree.parse(tmp_path / "one" / "tokens.svg")
    described = [node.text for node in vector.iter() if node.tag.endswith("}description")]
    assert described == ["Tokens & turns: é"]
    for suffix in ("png", "svg"):
        one, two = (tmp_path / folder / f"tokens.{suffix}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"tokens.png", "tokens.svg"}


def test_equal_tokens_have_equal_colours_in_all_maps() -> None:
    row = token_row()
    observed, seen, moved = principal_colours([row.observed, row.seen, row.moved])
    assert observed.shape == (3, 5, 3)
    assert seen.shape == (5, 3, 3)
    assert_allclose(observed, moved)
    assert_allclose(np.rot90(observed), seen)
    assert observed.min() == 0.0
    assert observed.max() == 1.0
    assert len(np.unique(observed.reshape(-1, 3), axis=0)) == 15


def test_colours_are_the_leading_components() -> None:
    draws = np.random.default_rng(1)
    latent = draws.standard_normal((40, 40, 3)) * [9, 5, 2]
    basis = np.linalg.qr(draws.standard_normal((8, 8)))[0][:3]
    tokens = (latent @ basis + 0.01 * draws.standard_normal((40, 40, 8)) + 100).astype(np.float32)
    (colours,) = principal_colours([tokens])
    for channel in range(3):
        within = (colours[..., channel] > 0) & (colours[..., channel] < 1)
        shade, truth = colours[..., channel][within], latent[..., channel][within]
        assert abs(np.corrcoef(shade, truth)[0, 1]) > 0.98


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_and_constant_maps_have_colours(width: int) -> None:
    narrow = np.random.default_rng(0).standard_normal((4, 4, width)).astype(np.float32)
    for maps in (narrow, np.ones_like(narrow)):
        (colours,) = principal_colours([maps])
        assert colours.shape == (4, 4, 3)
        assert np.isfinite(colours).all()


def test_pictures_are_drawn_to_scale() -> None:
    row = token_row((4, 4))
    small = TokenRow("scale0.75", row.image, row.image[:12, :12], row.observed, row.seen, row.moved)
    axes = token_figure([small], title="").axes
    widths = [a.get_images()[0].get_extent()[1] * 2 for a in axes]
    assert widths == [4, 3, 4, 4, 4]
    assert {a.get_xlim() for a in axes} == {(-2.0, 2.0)}


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, sercli.report.figures.equivariance, sercli.report.figures.corruptions;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
