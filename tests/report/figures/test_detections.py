"""The picture of detections beside the ground truth."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox
from PIL import Image

from sercli.data.shapes.detection import ShapesDetection
from sercli.data.shapes.outlines import CLASSES
from sercli.report.figures.detections import DetectionPanel, Shown, detection_figure
from sercli.report.figures.style import save_figure


def _panel(index: int, *, size: int = 96, score: float = 0.9) -> DetectionPanel:
    source = ShapesDetection("val", image_size=size, num_images=1, seed=2)
    picture = source.render(index)
    truth = [Shown(CLASSES[one.label], one.box, one.mask) for one in picture.objects]
    found = [Shown(one.name, one.box, one.mask, score) for one in truth]
    return DetectionPanel(picture.image, truth, found)


def _pictures(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_images()]


def _boxes(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def _labels(axes: Axes) -> list[str]:
    return sorted(text.get_text() for text in axes.texts)


def test_objects_stand_where_they_are_and_low_scores_are_left_out() -> None:
    panel = _panel(3)
    low = Shown("ring", (1.5, 2.25, 30, 10), None, 0.49)
    found = [*panel.found, low, Shown("ring", (1.5, 2.25, 30, 10), None, 0.5)]
    figure = detection_figure([DetectionPanel(panel.image, panel.truth, found)], title="a title")
    truth, detected = _pictures(figure)
    assert (truth.get_title(), detected.get_title()) == (
        "ground truth",
        "detections (score ≥ 0.5)",
    )
    assert _labels(truth) == sorted(one.name for one in panel.truth)
    assert _labels(detected) == sorted([*(f"{one.name} 0.90" for one in panel.truth), "ring 0.50"])
    drawn = {(*box.get_xy(), box.get_width(), box.get_height()) for box in _boxes(detected)}
    assert drawn == {*(one.box for one in panel.truth), (1.5, 2.25, 30, 10)}
    # Pixel (x, y) covers x…x+1, y…y+1, as in COCO's boxes.
    assert list(truth.get_images()[0].get_extent()) == [0, 96, 96, 0]
    assert (truth.get_xlim(), truth.get_ylim()) == ((0, 96), (96, 0))
    title = detection_figure([panel], title="", least_score=0.75).axes[1].get_title()
    assert title == "detections (score ≥ 0.75)"


def test_masks_are_mixed_into_the_pixels_they_cover() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:10, 3:9] = True
    figure = detection_figure(
        [DetectionPanel(image, [Shown("a", (3, 5, 6, 5), mask)], [])], title=""
    )
    truth, detected = _pictures(figure)
    shown = np.asarray(truth.get_images()[0].get_array())
    colour = np.array([int(_colour(truth)[start : start + 2], 16) for start in (1, 3, 5)])
    assert (shown[~mask] == 100).all()
    assert np.abs(shown[mask] - (0.65 * 100 + 0.35 * colour)).max() <= 0.5
    assert (np.asarray(detected.get_images()[0].get_array()) == 100).all()
    assert (image == 100).all()


def _colour(axes: Axes, position: int = 0) -> str:
    return to_hex(_boxes(axes)[position].get_edgecolor())


def test_a_class_has_one_colour_everywhere_and_seven_classes_differ() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    some = [Shown(name, (4, 4, 30 - 2 * number, 20)) for number, name in enumerate("gfedcba")]
    one = DetectionPanel(image, some, [Shown("c", (4, 4, 9, 9), None, 0.6)])
    other = DetectionPanel(image, [Shown("c", (4, 4, 9, 9))], [Shown("a", (4, 4, 9, 9), None, 1.0)])
    first, found, second, last = _pictures(detection_figure([one, other], title=""))
    colours = dict(zip("gfedcba", (_colour(first, n) for n in range(7)), strict=True))
    assert len(set(colours.values())) == 7
    assert _colour(found) == _colour(second) == colours["c"]
    assert _colour(last) == colours["a"]


def _extents(axes: Axes) -> list[Bbox]:
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    patches = [text.get_bbox_patch() for text in axes.texts]
    assert all(patches)
    return [patch.get_window_extent(renderer) for patch in patches if patch is not None]


@pytest.mark.parametrize("size", [96, 1024])
def test_labels_lie_apart_and_inside_the_picture(size: int) -> None:
    panel = _panel(3, size=size)
    twins = [
        Shown("dumbbell", (one.box[0] + 1, one.box[1] + 1, *one.box[2:]), None, 0.7)
        for one in panel.found
    ]
    edge = [Shown("cross", (size - 12, -3, 20, 30), None, 0.8)]
    found = [*panel.found, *twins, *edge]
    figure = detection_figure([DetectionPanel(panel.image, panel.truth, found)], title="")
    figure.draw_without_rendering()
    for axes, number in zip(_pictures(figure), (4, 9), strict=True):
        extents, picture = _extents(axes), axes.get_window_extent()
        assert len(extents) == number
        for one, other in itertools.combinations(extents, 2):
            both = Bbox.intersection(one, other)
            assert both is None or both.width * both.height < 1
        for one in extents:
            assert picture.x0 - 1 < one.x0 < one.x1 < picture.x1 + 1
            assert picture.y0 - 1 < one.y0 < one.y1 < picture.y1 + 1


@pytest.mark.parametrize(("number", "columns"), [(1, 2), (2, 2), (3, 4), (4, 4)])
def test_images_stand_in_one_or_two_columns(number: int, columns: int) -> None:
    figure = detection_figure([_panel(index) for index in range(number)], title="")
    pictures = _pictures(figure)
    assert len(pictures) == 2 * number
    lefts = {round(axes.get_position().x0, 3) for axes in pictures}
    assert len(lefts) == columns
    assert sum(bool(axes.get_title()) for axes in pictures) == columns


def test_small_images_stay_pixels_and_large_ones_are_averaged() -> None:
    small, large = (_pictures(detection_figure([_panel(0, size=s)], title="")) for s in (96, 1024))
    assert small[0].get_images()[0].get_interpolation() == "nearest"
    assert large[0].get_images()[0].get_interpolation() != "nearest"


def test_images_of_other_shapes_and_without_objects_are_drawn(tmp_path: Path) -> None:
    panels = [
        DetectionPanel(np.full((*shape, 3), 90, np.uint8), [], [])
        for shape in ((20, 90), (200, 30), (64, 64))
    ]
    figure = detection_figure(panels, title="none_of $x$")
    for axes, panel in zip(_pictures(figure)[::2], panels, strict=True):
        box = axes.get_window_extent()
        height, width = panel.image.shape[:2]
        assert box.height / box.width == pytest.approx(height / width, rel=0.01)
    paths = save_figure(figure, tmp_path, "detections")
    with Image.open(paths[0]) as image:
        image.load()
        assert image.width > 1000
    ElementTree.parse(paths[1])


def test_files_are_reproducible(tmp_path: Path) -> None:
    files = [
        save_figure(detection_figure([_panel(2)], title="t"), tmp_path / folder, "detections")
        for folder in ("one", "two")
    ]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_no_torch_is_imported() -> None:
    code = "import sys, sercli.report.figures.detections; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
