"""Heat maps of a page: each number at its place and in its colour, in both formats."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import matplotlib as mpl
from PIL import Image

from sercli.report.figures.style import DOTS_PER_INCH
from sercli.report.figures.tiles import heat_tiles

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "a<b>&\x1b[31m\n\udcff\u202e"
ROWS = [("fog", [90.0, 30.0, None], None), ("snow", [0.0, 50.0, 100.0], 50.0)]
TILES = heat_tiles(ROWS, ["1", "2", "3"], title="of a run", below="severity")


def test_every_number_is_text_in_its_row_and_column() -> None:
    root = ElementTree.fromstring(TILES.svg("what there is"))
    assert root.findtext(f"{SVG}desc") == "what there is"
    at = {
        (one.text, float(one.attrib["x"]), float(one.attrib["y"]))
        for one in root.iter(f"{SVG}text")
    }
    place = {text: (x, y) for text, x, y in at}
    assert place["90.0"][0] == place["0.0"][0] < place["30.0"][0] < place["100.0"][0]
    assert place["90.0"][1] == place["30.0"][1] < place["0.0"][1] == place["100.0"][1]
    assert place["3"][0] == place["100.0"][0]
    assert [text for text, _, _ in at].count("–") == 2  # neither the value nor the mean is known


def test_colours_are_viridis_from_0_to_100() -> None:
    image = Image.open(io.BytesIO(TILES.png("what there is")))
    assert image.info["Description"] == "what there is"
    scale = DOTS_PER_INCH / 72
    assert image.size == (round(TILES.width * scale), round(TILES.height * scale))
    boxes = dict(zip(["90", "30", "0", "50", "100", "mean"], TILES.boxes, strict=False))
    for percent in ("90", "30", "0", "50", "100"):
        (x, y, _, _), colour = boxes[percent]
        expected = mpl.colormaps["viridis"](int(percent) / 100, bytes=True)[:3]
        assert image.getpixel((int((x + 2) * scale), int((y + 2) * scale))) == tuple(expected)
        assert colour == "#{:02x}{:02x}{:02x}".format(*expected)


def test_a_name_steers_nothing_and_fits() -> None:
    long = "x" * 60
    tiles = heat_tiles([(HOSTILE, [1.0], 1.0), (long, [2.0], 2.0)], ["1"], title=HOSTILE, below="")
    root = ElementTree.fromstring(tiles.svg(HOSTILE.replace("\x1b", "").replace("\udcff", "")))
    texts = [one.text or "" for one in root.iter(f"{SVG}text")]
    assert {r"a<b>&\x1b[31m\n\xff\u202e", long} <= {*texts}
    assert tiles.boxes[0][0][0] > 200  # points: the cells begin right of the longest name
    assert Image.open(io.BytesIO(tiles.png("x"))).width > 200
