"""Three doors for a method or an add-on of one's own: a file by option, by recipe, or a package."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sercli.errors import UserError
from sercli.families import addon_class, default_recipe, resolve, title_of
from sercli.families.plugins import copies_for_run, families
from sercli.recipe.schema import Plugin
from tests.support import toy_addon, toy_objective

ADDON, OBJECTIVE = (Path(module.__file__ or "") for module in (toy_addon, toy_objective))
TOY = ADDON.read_text(encoding="utf-8")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(file: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        families(Plugin(file=str(file)))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed distribution `ser-toy` with both toys, outside the checkout."""
    site = tmp_path / "site"
    write(site / "ser_toy" / "__init__.py", "")
    write(site / "ser_toy" / "addon.py", TOY)
    write(site / "ser_toy" / "objective.py", OBJECTIVE.read_text(encoding="utf-8"))
    info = site / "ser_toy-1.5.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: ser-toy\nVersion: 1.5\n")
    write(
        info / "entry_points.txt",
        "[sercli.addons]\ntoy = ser_toy.addon:Toy\n[sercli.methods]\ntoy = ser_toy.objective:Toy\n",
    )
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in [name for name in sys.modules if name.startswith("ser_toy")]:
        del sys.modules[name]


# -- doors -----------------------------------------------------------------------------------------


def test_by_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "mine.py", TOY)
    monkeypatch.chdir(tmp_path)
    resolved = resolve("shapes/moco-none", (), {"addon.name": "toy"}, plugins=[Path("mine.py")])
    assert resolved.recipe.addon.model_dump()["width"] == 64
    (record,) = resolved.recipe.plugins
    assert record.file == str(file)
    assert record.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert resolved.origins["plugins"] == "--plugin"


def test_by_recipe_also_by_one_that_extends_it(tmp_path: Path) -> None:
    write(tmp_path / "lab" / "toy.py", TOY)
    write(
        tmp_path / "lab" / "base.yaml",
        "extends: shapes/moco-none\nplugins: [toy.py]\naddon: {name: toy, layer: 2}\n",
    )
    mine = write(tmp_path / "mine.yaml", "extends: lab/base\naddon: {width: 32}\n")
    resolved = resolve(str(mine), (), {})
    assert resolved.recipe.addon.model_dump() == {
        "name": "toy", "layer": 2, "weight": 1.0, "tap": "cls", "width": 32,
    }  # fmt: skip
    assert [one.file for one in resolved.recipe.plugins] == [str(tmp_path / "lab" / "toy.py")]
    again = write(tmp_path / "again.yaml", resolved.recipe.to_yaml())
    assert resolve(str(again), (), {}).recipe == resolved.recipe


@pytest.mark.usefixtures("package")
def test_by_an_installed_package() -> None:
    resolved = resolve("shapes/base", (), {"method.name": "toy", "addon.name": "toy"})
    assert resolved.recipe.plugins == (Plugin(distribution="ser-toy", version="1.5"),)
    addon = addon_class(resolved.recipe.addon)
    assert addon is not None
    assert addon.__module__ == "ser_toy.addon"
    with pytest.raises(UserError, match="known: none, augself, stl, equimod, essl, ser, toy"):
        resolve("shapes/base", (), {"method.name": "toy", "addon.name": "toi"})


def test_a_package_is_not_looked_for_where_a_name_of_ours_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sercli.families.plugins.entry_points", lambda **_: pytest.fail("looked"))
    assert resolve("shapes/moco-ser", (), {}).recipe.plugins == ()


@pytest.mark.usefixtures("package")
def test_listing_loads_no_package() -> None:
    assert list(families().addons)[-1] == "toy"
    assert "toy" in families().methods
    assert "ser_toy.addon" not in sys.modules


def test_a_recipe_without_plugins_is_written_as_before() -> None:
    resolved = resolve("shapes/moco-ser", (), {})
    assert "plugins" not in yaml.safe_load(resolved.recipe.to_yaml())
    assert "plugins" not in resolved.origins


@pytest.mark.parametrize(
    ("method", "addon", "data", "recipe", "flags"),
    [
        (None, None, None, "shapes/moco-ser", {}),
        ("dino", "none", "/images", "imagenet/dino-none", {}),
        (None, "toy", None, "shapes/moco-none", {"addon.name": "toy"}),
        ("dino", "toy", "/images", "imagenet/dino-none", {"addon.name": "toy"}),
        ("toy", "ser", None, "shapes/base", {"method.name": "toy", "addon.name": "ser"}),
        ("toy", "toy", "/images", "imagenet/base", {"method.name": "toy", "addon.name": "toy"}),
    ],
)
def test_without_a_recipe_the_nearest_one_is_taken(
    method: str | None, addon: str | None, data: str | None, recipe: str, flags: dict[str, str]
) -> None:
    found = default_recipe(method=method, addon=addon, data=data, plugins=[ADDON, OBJECTIVE])
    assert (found.recipe, found.flags) == (recipe, flags)
    resolve(found.recipe, (), found.flags, plugins=[ADDON, OBJECTIVE])


def test_names_and_titles_of_a_class_stand_before_those_of_its_settings(tmp_path: Path) -> None:
    text = TOY + '\n\nclass Other(Toy):\n    name = "other"\n    title = "The Other"\n'
    found = families(Plugin(file=str(write(tmp_path / "two.py", text)))).addons
    assert [title_of(found[name]) for name in ("toy", "other")] == ["toy", "The Other"]
    classes = [addon_class(found[name](name=name)) for name in ("toy", "other")]
    assert [one and one.__name__ for one in classes] == ["Toy", "Other"]


def test_one_that_builds_on_ours_has_a_place_and_a_title_of_its_own(tmp_path: Path) -> None:
    text = "from sercli.methods.moco.model import MoCo\n\nclass Mine(MoCo):\n    name = 'mine'\n"
    found = families(Plugin(file=str(write(tmp_path / "m.py", text)))).methods
    assert list(found) == ["moco", "dino", "barlow-twins", "mine"]
    assert title_of(found["mine"]) == "mine"
    assert title_of(found["moco"]) == "MoCo-v3"


def test_equal_files_are_one_plugin_and_tables_do_not_see_each_other(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name / "toy.py", TOY) for name in "ab")
    both = families(Plugin(file=str(one)), Plugin(file=str(two)))
    assert len(both.files) == 1
    changed = write(tmp_path / "c" / "toy.py", TOY.replace("= 64", "= 65"))
    tables = [families(Plugin(file=str(file))).addons for file in (one, changed)]
    assert [table["toy"].model_fields["width"].default for table in tables] == [64, 65]


# -- what is refused -------------------------------------------------------------------------------

HEAD = "from sercli.addons import Addon, SummaryConfig\nfrom sercli.methods import Method\n"
CONFIG = 'class C(SummaryConfig):\n    name: str = "mine"\n'
BUILT = "    needs_images = (1, '')\n    def loss(self, given): ...\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", ["(line 1)", "ModuleNotFoundError", "no_such_module"]),
        ("x = 1\n\nx.y", ["cannot be imported (line 3): AttributeError"]),
        ("def f(:", ["cannot be imported (line 1): SyntaxError"]),
        ("raise SystemExit(3)", ["SystemExit: 3"]),
        ("x = 1", ["has no class of its own"]),
        (HEAD, ["has no class of its own"]),
        (
            HEAD + CONFIG + "class A(Addon):\n    Config = C\n",
            ["A of the", "is abstract: it lacks loss"],
        ),
        (HEAD + "class A(Addon):\n" + BUILT, ["has the Config None", "a subclass of TermConfig"]),
        (HEAD + "class A(Addon):\n    Config = int\n" + BUILT, ["has the Config int"]),
        (
            HEAD + CONFIG + "class A(Addon):\n    Config = C\n    def loss(self, given): ...\n",
            ["lacks needs_images"],
        ),
        (
            HEAD + "class A(Addon):\n    Config = SummaryConfig\n" + BUILT,
            ["is called None", "give its Config one"],
        ),
        (
            HEAD + "class A(Addon):\n    Config = SummaryConfig\n    name = 'A b'\n" + BUILT,
            ["'A b'"],
        ),
        (TOY.replace('"toy"', '"ser"'), ["has the addon 'ser'", "and so has ser itself"]),
        (TOY + "\n\nclass Again(Toy):\n    pass\n", ["has two addons toy"]),
    ],
)
def test_one_clear_line(tmp_path: Path, text: str, words: list[str]) -> None:
    refused(write(tmp_path / "bad.py", text), *words)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.py", "there is no plug-in")
    refused(tmp_path, "there is no plug-in")


def test_one_name_of_two_files(tmp_path: Path) -> None:
    one = write(tmp_path / "one.py", TOY)
    two = write(tmp_path / "two.py", TOY + "\n")
    with pytest.raises(
        UserError, match=r"two.py has the addon 'toy', and so has the plug-in .*one"
    ):
        families(Plugin(file=str(one)), Plugin(file=str(two)))


@pytest.mark.usefixtures("package")
def test_one_name_of_a_file_and_a_package(tmp_path: Path) -> None:
    file = write(tmp_path / "toy.py", TOY + "\n")
    with pytest.raises(UserError, match=r"and so has the package ser-toy 1\.5"):
        families(Plugin(file=str(file)))
    sha = hashlib.sha256(file.read_bytes()).hexdigest()  # as a run records it: its own copy counts
    assert "toy" in families(Plugin(file=str(file), sha256=sha)).addons


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (
            "toy = ser_toy.nowhere:Toy",
            "the addon toy of the package ser-toy 1.5 cannot be imported",
        ),
        ("toy = ser_toy.addon:Tap", "it must be a subclass of sercli's Addon"),
        ("mine = ser_toy.addon:Toy", "its entry point is called 'mine'"),
        ("ser = ser_toy.addon:Toy", "the addon 'ser', and so has ser itself"),
    ],
)
def test_a_package_that_cannot_be_used(package: Path, points: str, words: str) -> None:
    write(package / "ser_toy-1.5.dist-info" / "entry_points.txt", f"[sercli.addons]\n{points}\n")
    with pytest.raises(UserError, match=words) as caught:
        resolve("shapes/moco-none", (), {"addon.name": points.split()[0].replace("ser", "x")})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plugins", ["toy.py", "[{file: a.py, distribution: b}]", "[3]", "{a: b}"])
def test_a_list_that_is_none(tmp_path: Path, plugins: str) -> None:
    mine = write(tmp_path / "mine.yaml", f"extends: shapes/moco-ser\nplugins: {plugins}\n")
    with pytest.raises(UserError, match="a list of Python files is needed"):
        resolve(str(mine), (), {})


def test_by_set_it_is_refused() -> None:
    with pytest.raises(UserError, match="use --plugin FILE"):
        resolve("shapes/moco-ser", ("plugins=[a.py]",), {})


# -- what a run records ----------------------------------------------------------------------------


def test_a_run_has_copies_under_names_of_their_own(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "toy.py", TOY)
    two = write(tmp_path / "b" / "toy.py", OBJECTIVE.read_text(encoding="utf-8"))
    records, contents = copies_for_run(families(*(Plugin(file=str(f)) for f in (one, two))).files)
    assert [record.file for record in records] == ["plugins/toy.py", "plugins/toy-2.py"]
    assert [record.copied_from for record in records] == [str(one), str(two)]
    assert contents == {"toy.py": one.read_bytes(), "toy-2.py": two.read_bytes()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """recipe.yaml and the copy, as a run has them."""
    mine = write(tmp_path / "toy.py", TOY)
    resolved = resolve("shapes/moco-none", (), {"addon.name": "toy"}, plugins=[mine])
    records, contents = copies_for_run(resolved.recipe.plugins)
    for name, content in contents.items():
        write(tmp_path / "run" / "plugins" / name, content.decode())
    text = resolved.recipe.model_copy(update={"plugins": records}).to_yaml()
    return write(tmp_path / "run" / "recipe.yaml", text)


def test_a_run_goes_by_its_copy_and_tells_that_the_file_has_changed(
    tmp_path: Path, run: Path
) -> None:
    assert resolve(str(run), (), {}).notes == ()
    write(tmp_path / "toy.py", "raise RuntimeError")
    (note,) = resolve(str(run), (), {}).notes
    assert "toy.py has changed since" in note
    (tmp_path / "toy.py").unlink()
    assert resolve(str(run), (), {}).notes == ()


def test_a_lost_copy_is_replaced_by_the_file_itself(tmp_path: Path, run: Path) -> None:
    (run.parent / "plugins" / "toy.py").unlink()
    assert resolve(str(run), (), {}).recipe.addon.name == "toy"
    write(tmp_path / "toy.py", TOY + "\n")
    with pytest.raises(UserError, match="is not what the recipe was written for"):
        resolve(str(run), (), {})


def test_a_run_without_its_file_can_be_shown_and_not_trained(tmp_path: Path, run: Path) -> None:
    whole = resolve(str(run), (), {})
    (tmp_path / "toy.py").unlink()
    (run.parent / "plugins" / "toy.py").unlink()
    with pytest.raises(UserError, match=r"there is no plug-in .*toy\.py"):
        resolve(str(run), (), {})
    shown = resolve(str(run), (), {}, tolerant=True)
    assert shown.recipe.model_dump(mode="json") == whole.recipe.model_dump(mode="json")
    (note,) = shown.notes
    assert "its settings are shown as they were written" in note


def test_a_run_without_its_package_can_be_shown_and_not_trained(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = resolve("shapes/moco-none", ("addon.width=7",), {"addon.name": "toy"})
    file = write(tmp_path / "run" / "recipe.yaml", resolved.recipe.to_yaml())
    write(package / "ser_toy-1.5.dist-info" / "METADATA", "Name: ser-toy\nVersion: 1.6\n")
    assert resolve(str(file), (), {}).notes == ("note: ser-toy is 1.6 now, and was 1.5",)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(package)])
    with pytest.raises(UserError, match=r"addon toy is of the package ser-toy 1\.5; which is not"):
        resolve(str(file), (), {})
    assert resolve(str(file), (), {}, tolerant=True).recipe.addon.model_dump()["width"] == 7
