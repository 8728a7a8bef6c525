"""`ser recipe list` as Markdown."""

from typer.testing import CliRunner

from sercli.cli import app
from sercli.recipe.listing import Head, markdown_table


def test_the_list_as_markdown_has_a_row_a_recipe():
    done = CliRunner().invoke(app, ["recipe", "list", "moco-ser-layer", "--format", "markdown"])
    assert done.exit_code == 0
    head, rule, *rows = done.output.splitlines()
    assert head == "| recipe | what it is | published | command |"
    assert set(rule) == set("| -")
    assert [row.split(" | ")[0] for row in rows] == [
        f"| `{world}/moco-ser-layer{layer}`"
        for world in ("imagenet", "scenes", "shapes")
        for layer in (12, 9)
    ]
    assert "| 68.72 top-1 (linear probe, 100 epochs) | `torchrun " in rows[1]


def test_a_bar_does_not_end_a_cell():
    row = markdown_table([Head("mine", "a|b", "", "")]).splitlines()[-1]
    assert row == r"| `mine` | a\|b |  |  |"
