"""A preset on top of a recipe replaces every value that any preset fills in."""

import pytest
import yaml

from sercli.addons.ser import SERConfig
from sercli.families import addon_configs, method_configs
from sercli.recipe import files

PRESETS = ("paper", "authors-code", "summary")
# Of every key that a preset fills in: a value that is no preset's, where there is one.
ODD = {
    "fraction": 0.125, "temperature": 0.77, "weight": 0.9, "negatives": "cross-view+spatial:1",
    "base": "full", "elements": "complementary", "share": "per-rank", "keys": "rank-local",
    "key_projector": "student",
}  # fmt: skip


def ser_of(recipe, *settings):
    tables = dict(methods=method_configs(), addons=addon_configs())
    told = files.read(str(recipe))
    return files.resolve(told, str(recipe), settings=settings, **tables).recipe.addon


def filled(preset, method="moco"):
    return SERConfig.expand({"preset": preset}, method=method)


def test_these_are_all_keys_that_presets_fill_in():
    keys = {
        key for preset in PRESETS for method in method_configs() for key in filled(preset, method)
    }
    assert keys == ODD.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_leaves_nothing_of_what_a_recipe_says_of_its_keys(tmp_path, preset):
    recipe = tmp_path / "odd.yaml"
    recipe.write_text(yaml.safe_dump({"extends": "shapes/moco-ser", "addon": ODD}))
    odd = ser_of(recipe)
    assert {key: getattr(odd, key) for key in ODD} == ODD
    # The preset without a recipe's values: SER's own defaults, and what the preset fills in.
    fresh = SERConfig(name="ser", **filled(preset))
    found = ser_of(recipe, f"addon.preset={preset}")
    assert {key: getattr(found, key) for key in ODD} == {key: getattr(fresh, key) for key in ODD}
    assert found.preset == preset
