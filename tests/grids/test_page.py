"""The page about grids says what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sercli.commands.grid_words import read_words
from sercli.grids.jobs import Places, plan_jobs
from sercli.grids.reading import find_grid, grid_names, read_grid
from sercli.grids.schema import PARTS, Grid, Part
from tests.support.pages import codes, text_of
from tests.support.paths import ROOT

PAGE = ROOT / "sercli" / "grids" / "README.md"


def test_the_table_of_keys_has_all_of_them() -> None:
    def keys() -> Iterator[str]:
        for name in Grid.model_fields:
            part: type[Part] | None = PARTS.get(name)
            if part is None:
                yield name
            else:
                yield from (f"{name}.NAME.{key}" for key in part.model_fields)

    rows: Any = re.findall(r"^\| (`.*?) \|", text_of(PAGE), re.MULTILINE)
    assert sorted(key for row in rows for key in codes(row)) == sorted(keys())


def test_the_example_is_a_grid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", text_of(PAGE), re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(example)
    plan = plan_jobs(read_grid(file), Places(tmp_path / "out"))
    assert len(plan.jobs) == 7 + 7 * 2 + 3 + 6
    for job in plan.jobs:
        if not job.is_training:
            read_words(job.words)


def test_a_grid_opens_with_its_command() -> None:
    for name in grid_names():
        head = find_grid(name).read_text().split("\n\n")[0].splitlines()
        comments = [line for line in head if line.startswith("#")]
        assert comments[-1].startswith("# ser reproduce "), name
