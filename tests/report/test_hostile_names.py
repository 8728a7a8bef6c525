"""Names of runs, metrics and states that are markup, escape sequences or formulas: in each format
they stay names, and the table keeps its lines.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from sercli.report import compare_runs
from sercli.report.compare.tables import Cell, Column, Note, Row, Table
from sercli.report.figures.corruptions import CorruptionRow, corruption_figure
from sercli.report.figures.detections import DetectionPanel, Shown, detection_figure
from sercli.report.figures.style import save_figure
from sercli.report.formats.renderers import RENDERERS
from sercli.report.formats.terminal import plain
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from sercli.visible import READABLE, visible
from tests.support.command_line import run_in_process
from tests.support.hostile import HOSTILE
from tests.support.html_page import Page

UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def table_of(name: str) -> Table:
    """A table that has a name wherever one from outside can stand."""
    column = Column(f"knn/ap/{name}", name, "percent", "up", explanation=name, protocol_id="0" * 12)
    provenance = {"runs": [{"path": name, "status": name, "device": name, "results": {name: {}}}]}
    provenance["runs"][0]["results"][name] = {"protocol_id": "0" * 12}
    row = Row(name, "2", {column.key: Cell(31.2)}, baseline=name, provenance=provenance)
    return Table(name, [column], [row], [Note(None, name)], [name], provenance)


@pytest.mark.parametrize("form", [form for form in RENDERERS if form != "csv"])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_format_hands_on_what_is_not_seen(name: str, form: str) -> None:
    text = table_of(name).render(form)
    text.encode()  # halves of surrogate pairs cannot be
    assert not UNSEEN.search(text)
    assert "31.2" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminals_table_has_the_whole_name(name: str) -> None:
    shown = plain(table_of(name), width=300)
    assert all(word in shown for word in visible(name).split())
    ascii_ = plain(table_of(name), width=300, encoding="ascii")
    assert ascii_.replace("↑", "^").replace("─", "-").replace("•", "o").isascii()


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_keeps_its_lines_and_cells(name: str) -> None:
    lines = table_of(name).render("markdown").split("\n\n")[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 4
    # Nothing that Markdown or HTML would read is left bare.
    assert not re.search(r"(?<!\\)(?:\\\\)*[`<\[~$&]", lines[2])


@pytest.mark.parametrize("name", HOSTILE)
def test_csv_has_one_line_a_row_and_no_formula(name: str) -> None:
    text = table_of(name).render("csv")
    assert not UNSEEN.search(text.replace("\r\n", ""))
    head, row = csv.reader(io.StringIO(text, newline=""))
    assert len(head) == len(row)
    cells = dict(zip(head, row, strict=True))
    for cell in (*head, *row):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cells["method"].removeprefix("'") == visible(name)
    assert cells[f"knn/ap/{visible(name)}"] == "31.2"


@pytest.mark.parametrize("name", HOSTILE)
def test_json_has_the_name_itself(name: str) -> None:
    read = json.loads(table_of(name).render("json"))
    assert read["rows"][0]["label"] == name


@pytest.mark.parametrize("name", HOSTILE)
def test_html_has_the_name_as_text(name: str) -> None:
    page = Page(table_of(name).render("html"))
    assert visible(name) in page.text
    assert not {one.tag for one in page.elements} & {"b", "img", "svg", "iframe"}
    assert len(page.all("script")) == 1
    assert all(one.attributes["href"].startswith("#") for one in page.all("a"))


def test_a_bracket_behind_a_line_of_latex_is_no_argument() -> None:
    lines = table_of("[x]|y").render("latex").splitlines()
    row = lines[lines.index("\\midrule") + 1]
    assert row.startswith("{}[x]\\textbar{}y & ")


def test_legends_say_what_is_there() -> None:
    for form in ("terminal", "markdown", "latex", "html"):
        text = table_of("knn").render(form)
        assert "higher is better" in text
        assert "lower" not in text
    row = CorruptionRow("fog", "weather", False, [1.0, 2.0, 3.0, 4.0, 5.0], 3.0, None)
    figure = corruption_figure([row], title="of a run")
    assert "AlexNet" not in figure.axes[0].get_xlabel()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()][-1] == "mean"


@pytest.mark.parametrize("name", ["a\x1b[31m\nb", "$", "$\\frac{1$", "猫", "caf\udce9<b>"])
def test_figures_write_names_as_they_are(name: str, tmp_path: Path) -> None:
    found = [Shown(name, (1, 1, 4, 4), None, 0.9)]
    panel = DetectionPanel(np.zeros((9, 9, 3), np.uint8), found, found)
    row = CorruptionRow(name, "own", True, [1.0], 1.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (detection_figure([panel], title=name), corruption_figure([row], title=name)):
            _, svg = save_figure(figure, tmp_path, "figure")
            text = svg.read_text(encoding="utf-8")
            assert not UNSEEN.search(text)


# -- The command -----------------------------------------------------------------------------------


def make_run(path: Path, name: str) -> RunDir:
    record = {"status": name, "recipe_name": name, "device": name, "titles": {"method": name}}
    run = RunDir.create(path, recipe="method: {name: own}\n", run=record)
    run.write_result(
        Result(
            protocol={"name": "knn", "variant": None, "version": 1, "settings": {}},
            model={"source": name, "key": "student", "matched": 1, "expected": 1},
            data={"path": name, "n": 10, "partial": False},
            metrics={"top1": 50.0, f"ap/{name}": 1.0},
        )
    )
    return run


@pytest.mark.parametrize("name", HOSTILE)
def test_compare_of_a_run_of_that_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name.replace("/", "|")
    make_run(place, name)
    table = compare_runs([place], columns=["*"])
    assert any(column.key.endswith(name) for column in table.columns)
    for form in RENDERERS:
        out = tmp_path / f"table.{form}"
        words = ["compare", place, "--columns", "*", "--format", form, "--out", out]
        assert run_in_process(words, monkeypatch, capsys)[0] == 0
        assert not UNSEEN.search(out.read_bytes().decode().replace("\r\n", "\n"))


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "interrupted")
    assert "[interrupted]" in compare_runs([tmp_path / "run"]).render("terminal")


def test_a_table_in_ascii_is_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sercli.commands.compare import print_for_people

    make_run(tmp_path / "run", "λ × n₂")
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors=READABLE)
    monkeypatch.setattr("sys.stdout", stream)
    print_for_people(compare_runs([tmp_path / "run"]))
    stream.flush()
    lines = raw.getvalue().decode("ascii").splitlines()
    rule = next(index for index, line in enumerate(lines) if line.startswith("---"))
    assert "lambda x n2" in lines[rule + 1]
    assert len(lines[rule + 1]) == len(lines[rule])
