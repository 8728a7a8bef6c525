"""The folders of methods/ and addons/ are the only list of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sercli
from sercli.families import addon_class, addon_configs, method_class, method_configs, title_of
from sercli.recipe.files import from_mapping

PACKAGE = Path(sercli.__file__).parent


def test_the_folders_are_the_list_in_the_order_of_the_papers_tables() -> None:
    assert list(method_configs()) == ["moco", "dino", "barlow-twins"]
    assert list(addon_configs()) == ["none", "augself", "stl", "equimod", "essl", "ser"]
    for kind, known in (("methods", method_configs()), ("addons", addon_configs())):
        folders = {file.parent.name for file in (PACKAGE / kind).glob("*/__init__.py")}
        assert {name.replace("-", "_") for name in known} == folders


def test_titles() -> None:
    methods = [title_of(config) for config in method_configs().values()]
    addons = [title_of(config) for config in addon_configs().values()]
    assert methods == ["MoCo-v3", "DINO", "Barlow Twins"]
    assert addons == ["none", "AugSelf", "STL", "EquiMod", "E-SSL", "SER"]


def test_a_class_is_that_of_its_settings() -> None:
    for name, config in method_configs().items():
        assert method_class(config(name=name)).Config is config
    for name, config in addon_configs().items():
        addon = addon_class(config(name=name))
        assert (addon is None) == (name == "none")
        assert addon is None or addon.Config is config


def test_every_key_that_a_preset_fills_in_gives_way_to_it() -> None:
    config = addon_configs()["ser"]
    presets = config.model_fields["preset"].annotation.__args__
    filled = {key for preset in presets for key in config.expand({"preset": preset}, method="moco")}
    assert filled == config.presets_fill
    assert filled <= set(config.model_fields)


def test_a_preset_on_top_replaces_each_key_of_the_layers_below(tmp_path: Path) -> None:
    from sercli.families import resolve

    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: shapes/moco-ser\naddon: {key_projector: teacher}\n")
    assert resolve(str(mine), (), {}).recipe.addon.key_projector == "teacher"
    preset = resolve(str(mine), ("addon.preset=authors-code",), {}).recipe.addon
    assert preset.key_projector == "student"


def test_no_other_file_names_a_method() -> None:
    """But add-ons' presets, other people's layouts, probes' presets, and what the paper reports."""
    ours = (
        *("methods/", "addons/", "encoders/foreign/", "evals/linear/", "report/compare/published"),
        "protocols/linear",  # titles of the probes' presets
    )
    named = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if re.search('"(moco"|dino"|barlow)', file.read_text(encoding="utf-8"))
    }
    assert not {file for file in named if not file.startswith(ours)}


@pytest.mark.parametrize(
    "code",
    [
        "import sercli.methods, sercli.addons",
        "from sercli.recipe import schema, files, listing",
        "from sercli.families import resolve; resolve('shapes/moco-ser', (), {})",
        "from sercli.addons import SummaryConfig, TermConfig",
        "import sercli.report.compare.runs",
    ],
)
def test_what_only_reads_imports_no_torch(code: str) -> None:
    subprocess.run([sys.executable, "-c", f"{code}\n{NO_TORCH}"], check=True)


NO_TORCH = "import sys; assert not {'torch', 'timm', 'pandas', 'matplotlib'} & set(sys.modules)"


def test_unknown_names_are_refused_by_all_there_are() -> None:
    tree = {"method": {"name": "moco"}, "addon": {"name": "sre"}}
    with pytest.raises(sercli.errors.UserError, match=r"known: none, augself.* did you mean ser"):
        from_mapping(tree, methods=method_configs(), addons=addon_configs())
