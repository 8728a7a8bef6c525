"""The JSON Schema of recipes takes every recipe there is, and no wrong one."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from sercli.commands import recipe as commands
from sercli.families import addon_configs, method_configs, resolve
from sercli.families.json_schema import recipe_schema
from sercli.recipe.files import recipe_names, recipes_root
from sercli.recipe.listing import read_head, runnable_names
from sercli.runs.text import parse_yaml
from tests.support import toy_addon

SCHEMA = recipe_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def errors(text: str, validator: Any = VALIDATOR) -> list[str]:
    return [error.message for error in validator.iter_errors(parse_yaml(text))]


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert "prefixItems" not in json.dumps(SCHEMA)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_fits(name: str) -> None:
    assert errors((recipes_root() / f"{name}.yaml").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", [name for name in runnable_names() if "imagenet" in name])
def test_every_resolved_recipe_fits(name: str) -> None:
    assert errors(resolve(name, (), {}).recipe.to_yaml()) == []


@pytest.mark.parametrize(
    "text",
    [
        "extends: shapes/moco-ser\nmethod: {momentum: 0.9}\naddon: {fraction: 0.5}",
        "addon.layer: 3\nviews.local.size: 24",
        "views: {setting: 2}",
        "views: {setting: 2+4-crops, crop_area: [0.1, 1]}",
        "plugins: [mine.py, {file: a.py, sha256: ab}, {distribution: d, version: '1'}]",
        "train: {max_steps: null, lr: 1e-3}",
        "addon: {name: none}",
        "{}",
    ],
)
def test_what_fits(text: str) -> None:
    assert errors(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "train: {lrr: 1}",
        "train: {lr: -1}",
        "train: {lr: fast}",
        "train: {batch_size: 1.5}",
        "trian: {lr: 1}",
        "method: {name: mocco}",
        "method: {name: moco, prototypes: 3}",
        "method: {name: dino, momentum: 2}",
        "method: {momentun: 0.9}",
        "addon: {name: none, layer: 3}",
        "addon: {name: ser, tap: cls}",
        "addon: {name: augself, tap: mean}",
        "addon: {layer: 0}",
        "views: {setting: 4}",
        "views: {crop_area: [0.1, 0.2, 0.3]}",
        "views: {crop_area: [0.1]}",
        "model: {init: mae}",
        "extends: [a, b]",
        "plugins: mine.py",
        "plugins: [3]",
        "data:",
    ],
)
def test_what_does_not_fit(text: str) -> None:
    assert errors(text)


def test_each_method_and_addon_has_its_keys_with_descriptions_and_bounds() -> None:
    for section, configs in (("method", method_configs()), ("addon", addon_configs())):
        branches = SCHEMA["properties"][section]["oneOf"][:-1]
        assert [one["properties"]["name"]["const"] for one in branches] == list(configs)
        for one, config in zip(branches, configs.values(), strict=True):
            assert set(one["properties"]) == set(config.model_fields)
    ser = SCHEMA["properties"]["addon"]["oneOf"][-2]["properties"]
    assert ser["fraction"]["description"] == "share of b₂"
    assert (ser["fraction"]["exclusiveMinimum"], ser["fraction"]["maximum"]) == (0, 1)


def test_those_of_plugins_are_among_them() -> None:
    text = "addon: {name: toy, width: 3}"
    assert errors(text)
    ours = jsonschema.Draft7Validator(recipe_schema([Path(toy_addon.__file__ or "")]))
    assert errors(text, ours) == []
    assert errors("addon: {name: toy, widht: 3}", ours)


def test_the_command_writes_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(commands.app, ["schema"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == SCHEMA
    file = tmp_path / "mine.yaml"
    file.write_text("# yaml-language-server: $schema=x.json\n# What it is.\nseed: 1\n")
    assert read_head(str(file)).about == "What it is."
