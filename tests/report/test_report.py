"""The report room without run directories: statistics, table rules, formats, published numbers."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys

import pytest

from sercli.report.compare import published as paper
from sercli.report.compare.tables import (
    Cell,
    Column,
    Difference,
    Note,
    Row,
    Scored,
    Table,
    best_labels,
    cell_text,
)
from sercli.report.formats.latex import latex, text_width
from sercli.report.formats.renderers import RENDERERS
from sercli.report.formats.terminal import plain
from tests.support.html_page import Page

# -- the table's rules ----------------------------------------------------------------------------

ACCURACY = Column("knn/top1", "kNN top-1", "percent", "up", ranked=True, protocol_id="a1")
ERROR = Column("c/mce", "mCE", "percent", "down", ranked=True)


def rows_of(*cells: Cell, column: Column = ACCURACY) -> list[Row]:
    return [Row(f"run {i}", "2", {column.key: cell}) for i, cell in enumerate(cells)]


def test_best_is_shared_at_the_printed_precision() -> None:
    rows = rows_of(Cell(31.204), Cell(31.196), Cell(31.1949), Cell())
    assert best_labels(ACCURACY, rows) == {0, 1}
    lower = rows_of(Cell(80.0), Cell(79.0), column=ERROR)
    assert best_labels(ERROR, lower) == {1}


def test_best_needs_rivals_on_the_same_images() -> None:
    whole, half = Scored("val", 1000), Scored("val", 500)
    part = Scored("val", 500, partial=True)
    assert best_labels(ACCURACY, rows_of(Cell(31.0))) == set()
    assert best_labels(ACCURACY, rows_of(Cell(31.0, data=whole), Cell(32.0, data=half))) == set()
    assert best_labels(ACCURACY, rows_of(Cell(31.0, data=whole), Cell(99.0, data=part))) == set()
    both = rows_of(Cell(31.0, data=whole), Cell(32.0, data=whole), Cell(99.0, data=part))
    assert best_labels(ACCURACY, both) == {1}


def test_published_rows_never_win() -> None:
    rows = rows_of(Cell(31.0), Cell(32.0))
    rows.append(Row("paper", "2", {ACCURACY.key: Cell(99.0)}, published=True))
    assert best_labels(ACCURACY, rows) == {1}


def test_unranked_columns_have_no_best() -> None:
    column = Column("run/images_per_s", "Images/s", "rate")
    assert best_labels(column, rows_of(Cell(1.0), Cell(2.0), column=column)) == set()


def test_cell_text_parts() -> None:
    score = Column("es", "ES", "score", "up")
    text = cell_text(score, Cell(0.9724, low=0.968, high=0.978, floor=0.614))
    assert (text.value, text.spread, text.floor) == ("0.972", "± 0.005", "0.61")
    assert cell_text(score, Cell()).value == "—"
    assert cell_text(score, Cell(undefined=True)).value == "undefined"
    assert cell_text(score, Cell(difference=Difference(0.26))).value == ""
    assert ACCURACY.signed(-0.001) == "+0.00"
    assert ACCURACY.signed(0.84) == "+0.84"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(85.2, "85 s"), (123.4, "2.1 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert Column("run/train_seconds", "Train time", "duration").text(seconds) == shown


# -- formats --------------------------------------------------------------------------------------

NASTY = r"a|b_c & 50% #1 {x} $y ~ ^ \z <b>*i*, λ=0.5"


@pytest.fixture
def table() -> Table:
    """Everything a format meets: escapes, best, stars, marks, floors, a published row."""
    score = Column("equiv-score/es/block03/rotation", "ES rotation", "score", "up", "Why <1 & >0.")
    time = Column("run/train_seconds", "Train time", "duration")
    significant = Difference(1 / 3, -0.1, 0.7, p_value=0.01, adjusted_p=0.02, images=1000)
    rows = [
        Row("MoCo-v3", "2", {ACCURACY.key: Cell(31.2, low=30.1, high=32.3)}),
        Row(
            NASTY,
            "2+4",
            {
                ACCURACY.key: Cell(1 / 3, difference=significant, marks=("†", "a"), best=True),
                score.key: Cell(0.9721, floor=0.61, data=Scored("val", 64)),
                time.key: Cell(123.4),
            },
            baseline="MoCo-v3",
            provenance={"runs": [{"path": "runs/a", "results": {}, "status": "done"}]},
        ),
        Row(
            "SER [published]",
            "2",
            {ACCURACY.key: Cell(difference=Difference(0.84))},
            published=True,
        ),
    ]
    notes = [Note(None, "Passed --limit."), Note("†", "Partial."), Note("a", "Other data: x_y.")]
    provenance = {
        "ser": "0.1.0",
        "runs": [
            {"path": "runs/a", "git_commit": "abc", "results": {"knn": {"protocol_id": "a1"}}}
        ],
    }
    return Table("2 runs", [ACCURACY, score, time], rows, notes, ["A against B."], provenance)


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_every_format_says_what_matters(table: Table, name: str) -> None:
    text = RENDERERS[name](table)
    assert text.endswith("\n")
    assert "\x1b" not in text
    for word in ("MoCo-v3", "published", "0.33333" if name in {"csv", "json"} else "0.33"):
        assert word in text
    if name != "csv":
        assert "Partial." in text
        assert "A against B." in text


def test_plain_text_fits_and_keeps_all_columns(table: Table) -> None:
    for width in (60, 100):
        text = plain(table, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "• 0.33†\u1d43" in text or "• 0.33† \u1d43" in text
        assert "+0.33*" in text
        assert "floor 0.61" in text
        assert "2.1 min" in text
    assert plain(table, width=60).count("MoCo-v3") > plain(table, width=100).count("MoCo-v3")


def test_short_labels_cut_no_heading() -> None:
    # As many columns as fit beside labels of one letter, and not beside their heading.
    columns = [Column(f"toy/{letter}", "Accuracy", "percent") for letter in "abcdefghij"]
    rows = [Row("x", "2", {column.key: Cell(50.0) for column in columns})]
    for width in range(40, 101):
        text = plain(Table("1 run", columns, rows, []), width=width)
        assert "Method" in text
        assert text.count("Accuracy") == len(columns), f"{width} columns\n{text}"
        assert "…" not in text


def test_markdown_pipes_align_and_are_escaped(table: Table) -> None:
    lines = [line for line in RENDERERS["markdown"](table).splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert len({len(line) for line in lines}) == 1
    assert r"a\|b\_c" in lines[3]
    assert r"**0.33** (+0.33\*)" in lines[3]


def test_latex_is_balanced_and_escaped(table: Table) -> None:
    text = latex(table, text_width("900"))
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) >= 4
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"a\textbar{}b\_c \& 50\% \#1 \{x\} \$y" in text
    assert r"\textbf{0.33}" in text
    assert "-{}-limit" in text
    assert r"\begin{tabular}{llr@{}lr@{}lr@{}l}" in text
    assert "^{*}" in text


def test_csv_is_rfc_4180_with_full_precision(table: Table) -> None:
    text = RENDERERS["csv"](table)
    assert text.count("\r\n") == 4
    header, first, second, third = csv.reader(io.StringIO(text, newline=""))
    cells = dict(zip(header, second, strict=True))
    assert float(cells["knn/top1"]) == 1 / 3
    assert float(cells["knn/top1/difference"]) == 1 / 3
    assert float(cells["knn/top1/difference/p"]) == 0.01
    assert cells["method"] == NASTY
    assert dict(zip(header, first, strict=True))["knn/top1/low"] == "30.1"
    assert dict(zip(header, third, strict=True))["published"] == "true"
    assert "run/train_seconds/low" not in header


def test_json_is_nested_and_keeps_protocols(table: Table) -> None:
    value = json.loads(RENDERERS["json"](table))
    assert value["columns"][0]["protocol_id"] == "a1"
    cell = value["rows"][1]["cells"]["knn/top1"]
    assert cell["value"] == 1 / 3
    assert cell["difference"]["significant"] is True
    assert cell["best"] is True
    assert value["rows"][1]["runs"][0]["path"] == "runs/a"
    assert value["rows"][2]["published"] is True


def test_html_is_one_page_of_its_own_script_and_style(table: Table) -> None:
    text = RENDERERS["html"](table)
    page = Page(text)
    names = {one.tag for one in page.elements}
    assert {"table", "caption", "th", "footer", "style"} <= names
    assert not names & {"link", "img", "iframe", "b"}
    assert not any("src" in one.attributes for one in page.elements)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert "&lt;b&gt;" in text
    assert "ser 0.1.0" in text
    assert "<strong>0.33</strong>" in text


# -- published numbers ----------------------------------------------------------------------------


def test_published_gains_are_the_differences_of_published_values() -> None:
    base = next(row for row in paper.ROWS if row.addon == "none")
    for row in paper.ROWS:
        number = row.numbers.get(paper.LINEAR)
        same = row.method == "moco" and row.views == "2"
        if same and number and number.value is not None and number.difference is not None:
            expected = number.value - base.numbers[paper.LINEAR].value
            assert number.difference == pytest.approx(expected, abs=1e-9)


def test_published_matching_follows_method_views_and_layer() -> None:
    def linear(*runs: paper.Identity) -> list[float | None]:
        return [row.numbers[paper.LINEAR].value for row in paper.matching(runs).rows]

    assert linear(paper.Identity("moco", "none", "2")) == [68.44]
    assert linear(paper.Identity("moco", "ser", "2", 9)) == [68.72]
    assert linear(paper.Identity("moco", "ser", "2", 5)) == [69.28]
    assert linear(paper.Identity("moco", "ser", "2", 3, weight_zero=True)) == [68.82]
    assert linear(paper.Identity("moco", "ser", "2+4-crops", 3)) == [71.56]
    assert linear(paper.Identity("moco", "equimod", "3", 12)) == [68.95]
    assert linear(paper.Identity("moco", "equimod", "3", 3)) == [69.51]
    assert linear(paper.Identity("dino", "none", "2")) == []
    rows = paper.matching([paper.Identity("dino", "ser", "2", 3)]).rows
    assert rows[0].numbers[paper.LINEAR].difference == 0.26


def test_the_report_room_never_imports_torch() -> None:
    code = (
        "import sys, sercli.report.compare.comparison, sercli.commands.compare;"
        "import sercli.report.formats.renderers;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
