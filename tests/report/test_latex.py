"""LaTeX that fits: compiled by pdflatex where there is one, without an overfull box."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sercli.errors import UserError
from sercli.report.compare.tables import Cell, Column, Difference, Note, Row, Table
from sercli.report.formats.latex import WIDTHS, TextWidth, latex, text_width
from sercli.report.formats.latex_floats import dealt
from sercli.report.formats.latex_text import escaped, running, width, wrapped
from sercli.report.formats.renderers import render

HOSTILE = (
    "x\\y", "}}{{", "a_b", "50%", "#1", "$x$", "~", "^", "&", "|", "[x]", "*y", "--limit", "``q''",
    "ü中文", "λ=0", "\\input{/etc/passwd}", "\\end{table}", "<b>", "\x1b[31mred", "a" * 60,
    "/data/a/very/long/path/to/some/run_directory/with-many-parts/seed=0",
    "\N{SLIGHTLY SMILING FACE}", "\\\\[3cm]", "?`!`", "", " ", "MoCo-v3 + SER (layer 3)",
    "DINO + SER (layer 12), λ = 0, 3 seeds",
)  # fmt: skip
HEADINGS = ("kNN top-1", "ImageNet-Sketch top-1", "ES rotation block 3", "FLOPs / λ=0", "c-otf/x/3")
SCALES = {"percent": 100, "score": 1, "ratio": 3, "duration": 1e5, "rate": 5000}
pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex (texlive)")


def random_table(draws: random.Random, num_columns: int) -> Table:
    columns = [
        Column(
            f"c/{place}",
            draws.choice((*HEADINGS, draws.choice(HOSTILE))),
            draws.choice(list(SCALES)),
            draws.choice(("up", "down", "none")),
        )
        for place in range(num_columns)
    ]
    rows = [
        Row(
            draws.choice(HOSTILE) + draws.choice(HOSTILE),
            draws.choice(("2", "2+4-crops", draws.choice(HOSTILE))),
            {column.key: random_cell(draws, SCALES[column.kind]) for column in columns},
            published=place == 3,
        )
        for place in range(draws.choice((1, 4)))
    ]
    notes = [Note("a", " ".join(draws.choices(HOSTILE, k=9))), Note(None, draws.choice(HOSTILE))]
    return Table(draws.choice(HOSTILE), columns, rows, notes, [" ".join(HOSTILE)])


def random_cell(draws: random.Random, scale: float) -> Cell:
    kind = draws.random()
    if kind < 0.1:
        return Cell(undefined=kind < 0.05)
    value = scale * draws.uniform(-0.1, 1) * (10 ** draws.randint(9, 60) if kind > 0.97 else 1)
    half = 0.05 * scale * draws.random()
    change = Difference(0.1 * scale * draws.uniform(-1, 1), adjusted_p=draws.choice((0.01, 0.2)))
    return Cell(
        value,
        **({"low": value - half, "high": value + half} if draws.random() < 0.6 else {}),
        seeds=draws.choice((None, 13)),
        floor=draws.choice((None, draws.random())),
        difference=draws.choice((None, change)),
        marks=tuple(draws.sample(("†", "a", "b", "zz"), draws.choice((0, 1, 4)))),
        best=draws.random() < 0.3,
    )


def overfull(texts: list[str], room: TextWidth, folder: Path, *, times: bool) -> list[str]:
    """What pdflatex complains of in a document of the class's measures; its style is not needed."""
    return re.findall(r"Overfull \\hbox.*", compiled(texts, room, folder, times=times))


def compiled(
    texts: list[str], room: TextWidth, folder: Path, *, times: bool = False, height: float = 2000
) -> str:
    """What pdflatex says of such a document."""
    gap = room.page - 2 * room.column if room.page else 10
    head = [
        "\\documentclass[10pt" + (",twocolumn" if room.page else "") + "]{article}",
        f"\\setlength{{\\textwidth}}{{{room.page or room.column}pt}}",
        f"\\setlength{{\\columnsep}}{{{gap}pt}}",
        "\\usepackage{times}" if times else "",
        f"\\usepackage{{booktabs}}\\setlength{{\\textheight}}{{{height:g}pt}}",
        "\\begin{document}\\typeout{column \\the\\columnwidth}",
    ]
    source = "\n".join([*head, "\n\\clearpage\n".join(texts), "\\end{document}"])
    folder.joinpath("t.tex").write_text(source, encoding="utf-8")
    ran = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    log = folder.joinpath("t.log").read_text(encoding="latin-1")
    assert ran.returncode == 0, log[-2000:]
    assert f"column {room.column:g}" in log
    return log


@pdflatex
@pytest.mark.parametrize("times", [False, True], ids=["computer-modern", "times"])
@pytest.mark.parametrize("name", [*WIDTHS, "200"])
def test_no_table_is_wider_than_the_text(tmp_path: Path, name: str, times: bool) -> None:
    draws, room = random.Random(f"{name}"), text_width(name)
    tables = [random_table(draws, count) for count in (1, 1, 2, 3, 4, 5, 6, 8, 12, 40)]
    assert overfull([latex(table, room) for table in tables], room, tmp_path, times=times) == []


@pdflatex
@pytest.mark.parametrize("name", WIDTHS)
def test_no_float_is_higher_than_the_page(tmp_path: Path, name: str) -> None:
    room = text_width(name)
    cells = {"k/0": Cell(58.11, low=55.09, high=61.13, difference=Difference(0.84))}
    columns = [Column("k/0", "kNN top-1", "percent", "up")]
    rows = [Row(f"MoCo-v3 + SER, run {place}", "2", cells) for place in range(150)]
    notes = [Note(None, f"{place}: {'words of a note ' * 20}") for place in range(40)]
    text = latex(Table("150 runs", columns, rows, notes, ["one against two: +0.84"] * 99), room)
    assert all(text.count(f"run {place} ") == 1 for place in range(150))
    assert all(text.count(f"\n{place}: words") == 1 for place in range(40))
    assert text.count("\n%   one against two: +0.84") == 99  # in no paper
    log = compiled([text], room, tmp_path, height=room.height)
    assert re.findall(r"Float too large.*|Overfull.*|multiply defined", log) == []
    assert "Float too large" in compiled([text], room, tmp_path, height=room.height / 2)


def test_what_is_dealt_keeps_its_order_and_its_room() -> None:
    assert dealt([3, 3, 3, 9, 1], 7) == [[0, 1], [2], [3], [4]]
    assert dealt([3, 3], 7, first=2) == [[], [0, 1]]
    assert dealt([1, 3, 3], 7, first=2) == [[0], [1, 2]]
    assert dealt([], 7) == [[]]


@pdflatex
def test_the_compiler_would_tell(tmp_path: Path) -> None:
    wide = latex(random_table(random.Random(1), 8), text_width("iclr"))
    assert overfull([wide], text_width("200"), tmp_path, times=False) != []


@pdflatex
@pytest.mark.slow
@pytest.mark.parametrize("name", [*WIDTHS, "160", "300pt"])
def test_five_hundred_tables_at_each_width(tmp_path: Path, name: str) -> None:
    draws, room = random.Random(0), text_width(name)
    texts = [latex(random_table(draws, draws.randint(1, 40)), room) for _ in range(500)]
    for times in (False, True):
        assert overfull(texts, room, tmp_path, times=times) == []


def table_of(num_columns: int, label: str = "MoCo-v3") -> Table:
    columns = [Column(f"k/{i}", f"kNN top-{i}", "percent", "up") for i in range(num_columns)]
    cells = {
        c.key: Cell(58.11, low=55.09, high=61.13, difference=Difference(0.84)) for c in columns
    }
    return Table("2 runs", columns, [Row(label, "2", cells), Row("b", "2", cells)], [])


def test_columns_go_below_each_other_before_they_go_into_another_table() -> None:
    one, three, nine = (latex(table_of(count), text_width("300")) for count in (1, 3, 9))
    assert r"MoCo-v3 & 2 & 58.11&\ $\pm$ 3.02 ($+0.84$)" in one
    assert r"58.11&\ $\pm$ 3.02 &" in three
    assert r"\multicolumn{2}{c}{($+0.84$)}" in three
    assert [text.count(r"\end{table}") for text in (one, three)] == [1, 1]
    assert nine.count(r"\end{table}") > 1
    assert all(f"top-{i}~" in nine for i in range(9))


def test_two_columns_of_text_are_taken_where_one_is_too_narrow() -> None:
    assert r"\begin{table}" in latex(table_of(2), WIDTHS["cvpr"])
    assert r"\begin{table*}" in latex(table_of(5), WIDTHS["cvpr"])


def test_long_labels_wrap_and_a_float_has_caption_and_label() -> None:
    text = latex(table_of(3, "DINO + SER (layer 12), λ = 0, with more words"), WIDTHS["article"])
    assert r"\hspace{6pt}" in text
    assert r"\caption{2 runs}" in text
    assert r"\label{tab:2-runs}" in text


def test_signs_are_never_commands_or_joined() -> None:
    assert escaped("--") == "-{}-"
    assert escaped("a_b & 50%") == r"a\_b \& 50\%"
    assert escaped("é中") == r"\'{e}\textbackslash{}u4e2d"
    assert escaped("[x]") == "{}[x]"
    assert r"\allowbreak{}" in running("x" * 40)
    assert running("short words") == "short words"


def test_wrapped_lines_fit_and_lose_nothing() -> None:
    for text in HOSTILE:
        lines = wrapped(f"{text} and {text}", 60, 9, indent=6)
        assert "".join(lines).replace(" ", "") == f"{text}and{text}".replace(" ", "")
        assert all(width(line, 9) <= 60 for line in lines)


@pytest.mark.parametrize("asked", ["wide", "12", "nan", "1e9", ""])
def test_other_widths_are_refused(asked: str) -> None:
    with pytest.raises(UserError, match="160 to 5000 points"):
        text_width(asked)


def test_a_width_is_a_class_or_points() -> None:
    assert text_width("cvpr") == TextWidth("cvpr", 237, 496.9, 641)
    assert text_width("412.5pt") == text_width("412.5") == TextWidth("412.5", 412.5)
    assert "text width of 412.5pt" in render([table_of(1)], "latex", latex_width="412.5")
