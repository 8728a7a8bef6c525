"""Every format of a comparison says what its JSON says, cell by cell, read by other readers."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sercli
from sercli.protocols import contract_of
from sercli.report.compare.tables import Table
from sercli.report.formats.tidy import parquet, tidy_csv
from sercli.runs.result import Result
from tests.support.run_grid import make_run

ADDONS = [("none", None), ("ser", 3), ("ser", 12), ("augself", 12), ("stl", 12)]
TEXT: Any = {"keep_default_na": False, "na_values": [""], "dtype": str}  # as it stands there
SIGNS = ("", " =1|2", ',"<b>', "%")  # of names, which formats escape


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of two seeds and methods, a few with names that formats escape, at random incomplete."""
    root = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(16)
    paths = []
    for method in ("moco", "dino"):
        for addon, layer in ADDONS:
            for seed in range(2):
                sign = SIGNS[int(random.integers(len(SIGNS)))]
                name = f"{method}-{addon}-{layer}-{seed}{sign}"
                path = make_run(
                    root / name,
                    method=method,
                    addon=addon,
                    layer=layer,
                    seed=seed,
                    images=int(random.integers(50, 60)) if addon == "stl" else 50,
                    rows=int(random.integers(0, 4)),
                )
                for result in ("linear-eval--ser", "robustness--imagenet-c"):
                    if random.random() < 0.25:
                        (path / "results" / f"{result}.json").unlink()
                paths.append(path)
    return paths


@pytest.fixture(scope="module")
def table(runs: list[Path]) -> Table:
    return sercli.compare_runs(runs, columns=["knn", "linear-eval", "run", "equiv-score"])


@pytest.fixture(scope="module")
def told(table: Table) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(table.render("json"))
    assert len(value["rows"]) == 20
    assert sum(len(row["cells"]) for row in value["rows"]) == 20 * 9
    return value


def test_csv(table: Table, told: dict[str, Any]) -> None:
    frame = pd.read_csv(io.StringIO(table.render("csv")), **TEXT)
    assert len(frame) == len(told["rows"])
    parts = {
        "": lambda cell: cell["value"],
        "/low": lambda cell: cell["low"],
        "/high": lambda cell: cell["high"],
        "/floor": lambda cell: cell["floor"],
        "/difference": lambda cell: (cell["difference"] or {}).get("value"),
        "/difference/p_adjusted": lambda cell: (cell["difference"] or {}).get("adjusted_p"),
        "/n": lambda cell: (cell["data"] or {}).get("images"),
    }
    compared = 0
    for column in told["columns"]:
        for part, get in parts.items():
            values = [get(row["cells"].get(column["key"], {})) for row in told["rows"]]
            name = f"{column['key']}{part}"
            if name not in frame:
                assert not any(value is not None for value in values), name
                continue
            read = [None if pd.isna(value) else float(value) for value in frame[name]]
            assert read == values, name
            compared += sum(value is not None for value in values)
    assert compared > 400
    assert frame["run"].tolist() == [row["runs"][0]["path"] for row in told["rows"]]


def _shown(column: dict[str, Any], cell: dict[str, Any], text: str) -> None:
    """A cell for people: its first number is the value as its column prints numbers."""
    if cell["value"] is None:
        assert text in {"—", "undefined", ""}, text
        return
    found = re.search(r"-?\d+(?:\.\d+)?", text.replace("**", ""))
    assert found is not None, text
    if column["kind"] in {"percent", "score", "ratio", "rate"}:
        decimals = {"percent": 2, "score": 3, "ratio": 3, "rate": 1}[column["kind"]]
        assert found[0] == f"{cell['value']:.{decimals}f}", (column["key"], text)
    else:  # 12.5 min, 1.234 G: three digits and a unit
        assert float(found[0]) > 0
    if cell["difference"] is not None:
        signed = re.findall(r"[+-]\d+\.\d+", text)
        assert any(abs(float(one) - cell["difference"]["value"]) < 0.0051 for one in signed), text


@pytest.mark.parametrize("form", ["markdown", "html"])
def test_tables_for_people(form: str, table: Table, told: dict[str, Any]) -> None:
    text = table.render(form)
    rows = _markdown_rows(text) if form == "markdown" else _html_rows(text)
    assert len(rows) == len(told["rows"])
    for row, cells in zip(told["rows"], rows, strict=True):
        numbers = cells[-len(told["columns"]) :]
        for column, cell in zip(told["columns"], numbers, strict=True):
            _shown(column, row["cells"].get(column["key"], {"value": None}), cell)


def _markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


class _Rows(HTMLParser):
    """The rows of a page's first table, in texts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.is_over = False

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        if self.is_over:
            return
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.is_over = self.is_over or tag == "table"

    def handle_data(self, data: str) -> None:
        if not self.is_over and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def _html_rows(text: str) -> list[list[str]]:
    reader = _Rows()
    reader.feed(text[text.index("<table") :])
    return [[cell.strip() for cell in row] for row in reader.rows[1:]]


def test_the_tidy_frame_is_every_result_in_each_of_its_forms(runs: list[Path]) -> None:
    frame = sercli.results(*runs)
    stored = {
        (str(path), result.name, metric): value
        for path in runs
        for file in (path / "results").glob("*.json")
        for result in [Result.of_run(file)]
        for metric, value in result.metrics.items()
        if not metric.endswith(("/low", "/high"))
    }
    as_csv = pd.read_csv(io.StringIO(tidy_csv(frame)), **TEXT)
    forms = [frame, as_csv]
    if pytest.importorskip("pyarrow", reason="parquet is pyarrow's"):
        forms.append(pd.read_parquet(io.BytesIO(parquet(frame))))
    for form in forms:
        own = form[form.protocol != "run"]
        names = own.protocol + ("--" + own.variant).fillna("")
        values = own.value.astype(float)
        found = dict(zip(zip(own.run, names, own.metric, strict=True), values, strict=True))
        assert found.keys() == stored.keys()
        assert all(found[key] == value for key, value in stored.items())
    assert contract_of("knn").name in set(frame.protocol)


def test_curves_are_the_lines_of_metrics_jsonl(runs: list[Path]) -> None:
    frame = sercli.curves(*runs)
    read = [
        pd.read_json(path / "metrics.jsonl", lines=True, precise_float=True).assign(run=str(path))
        for path in runs
        if (path / "metrics.jsonl").stat().st_size
    ]
    expected = pd.concat(read, ignore_index=True)
    assert len(frame) == len(expected) > 10
    for name in expected:
        left, right = frame[name].tolist(), expected[name].tolist()
        pairs = zip(left, right, strict=True)
        assert all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in pairs), name
