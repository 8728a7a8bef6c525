"""What `import sercli` gives to those who compare runs in Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sercli
from sercli.cli import app
from sercli.errors import UserError
from sercli.report.formats.renderers import RENDERERS
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    paths = []
    for name, top1 in (("a", 50.0), ("b", 52.5)):
        run = RunDir.create(tmp_path / name, recipe=None, run={"status": "done"})
        rule = {"name": "knn", "variant": None, "version": 1, "settings": {"k": 20}}
        data = {"path": "shapes", "n": 200, "partial": False}
        run.write_result(Result(rule, {"source": name}, data, {"top1": top1, "k10/top1": 40.0}))
        paths.append(run.path)
    return paths


def test_it_is_what_the_command_prints(runs: list[Path]) -> None:
    first, second = map(str, runs)
    table = sercli.compare_runs([first, second], baseline=first, columns=["knn/*"])
    difference = table.rows[1].cells["knn/top1"].difference
    assert difference is not None
    assert difference.value == 2.5
    options = ["--baseline", first, "--columns", "knn/*"]
    for form in RENDERERS:
        typed = CliRunner().invoke(app, ["compare", first, second, "--format", form, *options])
        assert typed.stdout_bytes.decode() == table.render(form), form
    with pytest.raises(UserError, match=r"format 'pdf'; known: terminal, markdown"):
        table.render("pdf")


def test_a_protocol_id_is_that_of_its_results(runs: list[Path]) -> None:
    (result,) = RunDir(runs[0]).read_results()
    assert sercli.protocol_id(result.protocol) == result.protocol_id
    assert sercli.protocol_id({**result.protocol, "version": 2}) != result.protocol_id


def test_neither_torch_nor_pandas_is_needed() -> None:
    program = (
        "import sys, sercli; seen = {'torch', 'pandas'} & set(sys.modules); assert not seen, seen;"
        "sercli.compare_runs, sercli.protocol_id;"
        "seen = {'torch', 'pandas'} & set(sys.modules); assert not seen, seen"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_public_is_there() -> None:
    assert all(getattr(sercli, name) is not None for name in sercli.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        sercli.nonsense  # noqa: B018
