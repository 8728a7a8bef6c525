"""What a run was, from whatever its directory still says."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sercli.errors import UserError
from sercli.families import resolve
from sercli.recipe.listing import runnable_names
from sercli.runs import text as runs_text
from sercli.runs.facts import facts_of, read_facts
from sercli.runs.run_dir import RunDir
from sercli.runs.text import read_mapping
from tests.support.run_grid import make_run

RECIPE = """
seed: 3
data: {path: shapes, image_size: 32}
method: {name: barlow-twins}
addon: {name: ser, layer: 9, weight: 0.3}
views: {setting: 2+4-crops}
"""


def made(path, recipe=RECIPE, **record):
    return RunDir.create(path, recipe=recipe, run={"status": "done", **record})


def test_all_there_is_to_say(tmp_path):
    titles = {"method": "Barlow Twins", "addon": "SER"}
    timings = {"train_seconds": 12, "device": "cpu", "warm": True}
    facts = facts_of(str(made(tmp_path / "run", titles=titles, timings=timings).path))
    assert facts.path == str(tmp_path / "run")
    assert (facts.name("method"), facts.addon) == ("barlow-twins", "ser")
    assert (facts.tapped_layer, facts.weight) == (9, 0.3)
    assert (facts.seed, facts.status, facts.views) == (3, "done", "2+4-crops")
    assert facts.setting("data", "image_size") == 32
    assert (facts.title("method"), facts.title("addon")) == ("Barlow Twins", "SER")
    assert facts.quantity("timings", "train_seconds") == 12.0
    assert facts.quantity("timings", "device") is facts.quantity("timings", "warm") is None


@pytest.mark.parametrize(
    ("addon", "layer"),
    [
        ("{name: ser, layer: 3}", 3),
        ("{name: mine, layer: 3}", 3),  # of a plug-in that need not be installed
        ("{name: none, layer: 3}", None),
        ("{name: ser}", None),
        ("{name: ser, layer: last}", None),
        ("{layer: 3}", None),
        ("{}", None),
        ("ser", None),
    ],
)
def test_the_tapped_layer(tmp_path, addon, layer):
    run = made(tmp_path / "run", recipe=f"addon: {addon}\n")
    assert read_facts(run).tapped_layer == layer


def test_what_is_missing_is_none_and_no_error(tmp_path):
    bare = read_facts(made(tmp_path / "bare", recipe=None, seed=7))
    assert (bare.recipe, bare.seed, bare.addon, bare.tapped_layer) == ({}, 7, "none", None)
    assert bare.title("method") is bare.weight is bare.setting("data", "path") is None
    old = read_facts(made(tmp_path / "old", recipe="method: {name: barlow_twins}\nfuture: 1\n"))
    assert (old.name("method"), old.seed, old.views) == ("barlow-twins", None, "")

    (tmp_path / "plain").mkdir()
    (tmp_path / "file.pth").touch()
    for model in ("timm:vit_small", tmp_path / "none", tmp_path / "file.pth", tmp_path / "plain"):
        assert facts_of(str(model)).recipe == facts_of(str(model)).record == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("recipe.yaml", "a: [", "no valid YAML"),
        ("recipe.yaml", "a: 1\na: 2\n", "stands twice"),
        ("recipe.yaml", "- 1\n", "holds list; a recipe is a mapping"),
        ("run.json", "{", "not valid JSON"),
        ("run.json", "[]", "holds a list"),
        ("run.json", '{"schema": 99}', "has schema 99"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, text, said):
    run = made(tmp_path / "run")
    (run.path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        facts_of(str(run.path))
    assert str(run.path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_facts_do_not_import_torch():
    code = "import sys, sercli.runs.facts; assert not {'torch', 'pydantic'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", runnable_names())
def test_a_recipe_is_the_same_read_from_either_file(name: str) -> None:
    """run.json's JSON stands for recipe.yaml, and libyaml for PyYAML's own scanner."""
    recipe = resolve(name, (), {}).recipe
    text = recipe.to_yaml()
    assert json.loads(recipe.model_dump_json()) == yaml.load(text, Loader=runs_text._Loader)
    assert runs_text.parse_yaml(text) == yaml.load(text, Loader=runs_text._Loader)


def test_an_edited_recipe_is_read_itself(tmp_path: Path) -> None:
    run = RunDir(make_run(tmp_path / "run", images=40, rows=1, predictions=False))
    before = read_facts(run)
    assert before.recipe == read_mapping(run.recipe)
    run.recipe.write_text(run.recipe.read_text().replace("seed: 0", "seed: 7"))
    assert read_facts(run).recipe["seed"] == 7


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n\ta: 2\n",
        "a: [? b]\n",
        "a: \ufeffb\n",
        "a: 1e-3\nb: no\nc: '2'\nd: 007\ne: 1_0\n",
        "a: 1\na: 2\n",
        "a:\n- 1\n-  2\n- - 3\n",
    ],
)
def test_libyaml_reads_nothing_otherwise(text: str) -> None:
    def outcome(read: Callable[[], object]) -> object:
        try:
            return read()
        except yaml.YAMLError as error:
            return str(error)

    expected = outcome(lambda: yaml.load(text, Loader=runs_text._Loader))
    assert outcome(lambda: runs_text.parse_yaml(text)) == expected
