"""Text from outside: in one line, without what steers a terminal, in any encoding."""

import ast
import io
import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from sercli.screen import Screen
from sercli.visible import READABLE, counted, json_text, one_line, say, spelled, visible
from tests.support.hostile import HOSTILE
from tests.support.paths import ROOT

# Any character at all, halves of surrogate pairs included.
TEXTS = st.text(st.characters(codec=None, exclude_categories=()))


@given(TEXTS)
def test_no_control_character_is_left(text: str) -> None:
    shown = visible(text)
    assert not {unicodedata.category(sign) for sign in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert visible(shown) == shown


def test_what_is_not_seen_is_named() -> None:
    assert visible("a\x1b[31m\n\t\x9b\x7f") == r"a\x1b[31m\n\t\x9b\x7f"
    assert visible("\u202egpj.exe\u2069\ufeff\u200b") == r"\u202egpj.exe\u2069\ufeff\u200b"
    assert visible(b"caf\xe9".decode("utf-8", "surrogateescape")) == r"caf\xe9"
    assert visible("Zoë 猫 👨\u200d👩 λ = ½") == "Zoë 猫 👨\u200d👩 λ = ½"


def test_a_message_is_one_line_and_keeps_the_spaces_of_names() -> None:
    assert one_line("a  b\n  see below\n\n") == "a  b see below"


def test_lines_hold_no_further_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\nforged", "two")
    assert capsys.readouterr().out == "one\\nforged\ntwo\n"


@given(st.dictionaries(TEXTS, TEXTS))
def test_json_reads_back_and_hides_nothing(tree: dict[str, str]) -> None:
    text = json_text(tree, indent=1)
    assert json.loads(text) == tree
    assert visible(text.replace("\n", "")) == text.replace("\n", "")


@given(TEXTS, st.sampled_from(["ascii", "latin-1", "cp1252", "koi8-r", "utf-8", "utf-16"]))
def test_every_encoding_takes_every_text(text: str, encoding: str) -> None:
    assert text.encode(encoding, READABLE).decode(encoding) == spelled(text, encoding)


def test_what_an_encoding_lacks_is_spelled() -> None:
    assert spelled("n₂ = 3 × λ, 31.2 ± 1.4ᵃ … café ┃猫", "ascii") == (
        "n2 = 3 x lambda, 31.2 +- 1.4a ... cafe +?"
    )
    assert spelled("3 × café", "latin-1") == "3 × café"
    assert spelled("λ", "no such encoding") == "λ"


@pytest.mark.parametrize(
    ("number", "what", "said"),
    [
        (1, "epoch", "1 epoch"),
        (2, "epoch", "2 epochs"),
        (0, "class", "0 classes"),
        (1024, "category", "1,024 categories"),
        (2, "patch", "2 patches"),
    ],
)
def test_a_number_and_its_noun_agree(number: int, what: str, said: str) -> None:
    assert counted(number, what) == said


# -- The one console -------------------------------------------------------------------------------


def shown_on_screen(*things: object, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors=READABLE, newline="")
    console = Screen(file=stream, width=300, force_terminal=True, color_system=None)
    console.print(*things)
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_shows_names_as_they_are(name: str) -> None:
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    table.add_row(Text(name, style="bold"))
    seen = shown_on_screen(table, name)
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", seen)  # styles of ours alone
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    words = [part for line in name.split("\n") if (part := visible(line).strip())]
    for part in words:
        assert plain.count(part) >= 4, plain


def test_a_console_knows_what_its_stream_cannot_show() -> None:
    table = Table()
    table.add_column("λ")
    table.add_row("× n₂")
    lines = shown_on_screen(table, encoding="ascii").split("\n")
    assert "| lambda |" in lines[1]
    assert "| x n2   |" in lines[3]


# -- Nobody goes round it --------------------------------------------------------------------------

PRINTS = {"print", "echo", "secho", "Console", "from_markup", "from_ansi"}
# Where printing is done, for all; standard error of a process that is being stopped; a draft line.
ALLOWED = {
    ("sercli/visible.py", "print"),
    ("sercli/commands/printing.py", "print"),
    ("sercli/commands/printing.py", "echo"),
}


def calls(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else ""
            if isinstance(function, ast.Attribute) and function.attr != "print":
                name = function.attr  # .print is a console's, and there is one kind of it
            found.add(name)
            texts = {one.arg: one.value for one in node.keywords}
            if name == "TextColumn" and "markup" not in texts:
                found.add("from_markup")
    return found & PRINTS


def test_text_is_printed_in_one_place() -> None:
    used = {
        (str(file.relative_to(ROOT)), name)
        for file in sorted((ROOT / "sercli").rglob("*.py"))
        for name in calls(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert used - ALLOWED == set(), "say(), printing or Screen take texts literally"
