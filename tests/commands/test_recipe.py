"""`ser recipe list`, `show`, `diff` and `check`."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from sercli import families
from sercli.commands import printing
from sercli.commands import recipe as commands
from sercli.data.registry import find_kind
from sercli.engine import pretraining
from sercli.engine.flops import count_flops
from sercli.engine.plan import make_plan
from sercli.errors import UserError
from sercli.recipe import files as recipe_files
from sercli.recipe import listing as recipe_listing
from sercli.recipe.listing import Difference, Value
from sercli.runs.text import parse_yaml

NAMES = recipe_listing.runnable_names()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(commands.app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    """Standard output of a command that succeeds."""
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def fails(*arguments: object, match: str) -> Result:
    result = run(*arguments)
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    assert match in str(result.exception)
    assert "\n" not in str(result.exception)
    return result


def resolve(name: object, *settings: str) -> recipe_files.Resolved:
    return families.resolve(str(name), settings, {})


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in."""
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


# -- list ------------------------------------------------------------------------------------------


def test_list_has_every_recipe_but_the_bases() -> None:
    root = recipe_files.recipes_root()
    files = {f.relative_to(root).with_suffix("").as_posix() for f in root.rglob("*.yaml")}
    expected = sorted(
        name for name in files if Path(name).name != "base" and not name.startswith("grids/")
    )
    listed = json.loads(done("list", "--format", "json"))
    assert [one["recipe"] for one in listed] == expected
    assert set(listed[0]) == {"recipe", "about", "published", "command"}
    lines = done("list").splitlines()
    assert lines[0].split() == ["recipe", "what", "it", "is", "published", "command"]
    assert [line.split()[0] for line in lines[1:]] == expected
    for one, line in zip(listed, lines[1:], strict=True):  # nothing is cut off
        assert all(text in line for text in one.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_head_says_what_it_is_and_its_command(name: str) -> None:
    head = recipe_listing.read_head(name)
    assert head.about, f"recipes/{name}.yaml does not say what it is in its first comment line"
    assert head.command, f"recipes/{name}.yaml has no comment line with its command"
    assert not head.published.endswith(".")
    words = shlex.split(head.command)
    assert "pretrain" in words
    given = {a: b for a, b in pairwise(words) if a.startswith("--")}
    kind = find_kind(given.get("--data", "shapes"))
    world = "imagenet" if kind is None else kind.recipes
    default = f"{world}/{given.get('--method', 'moco')}-{given.get('--addon', 'ser')}"
    assert given.get("--recipe", default) == name, f"the command of {name} trains another recipe"


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("# What.\n# ser pretrain\nseed: 1\n# later\n", ("What.", "", "ser pretrain")),
        (
            "\n# What. Published: 69.28 top-1, FLOPs × 1.008. More\n# of it.\n#\n# a note\n"
            "# torchrun x pretrain\nseed: 1\n",
            ("What. More of it.", "69.28 top-1, FLOPs × 1.008", "torchrun x pretrain"),
        ),
        ("# What. Published: 1.5 top-1\n# ser x\n", ("What.", "1.5 top-1", "ser x")),
        ("# Published: 1.5 (10 epochs).\n", ("", "1.5 (10 epochs)", "")),
        ("# ser pretrain\n# What, and\n# ser is named.\n", ("What, and", "", "ser pretrain")),
        ("#\n# serene\n", ("serene", "", "")),
        ("seed: 1\n# no head\n", ("", "", "")),
        ("", ("", "", "")),
    ],
)
def test_heads(tmp_path: Path, text: str, head: tuple[str, str, str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    found = recipe_listing.read_head(str(file))
    assert (found.about, found.published, found.command) == head


@pytest.mark.parametrize("pattern", ["shapes/*", "SHAPES/*", "shapes/"])
def test_a_filter_is_a_part_of_names_or_a_shell_pattern(pattern: str) -> None:
    listed = [one["recipe"] for one in json.loads(done("list", pattern, "--format", "json"))]
    assert listed == [name for name in NAMES if name.startswith("shapes/")]


def test_a_filter_that_matches_nothing() -> None:
    fails("list", "moco-sre", match="did you mean")
    fails("list", "shapes/mco*", match="no recipe matches 'shapes/mco*'")
    fails("list", "[", match="no recipe matches '['")
    fails("list", "base", match="no recipe matches 'base'")


@pytest.mark.parametrize("width", [80, 120, 160, 300])
def test_a_terminal_breaks_no_name_and_no_command(width: int) -> None:
    heads = [recipe_listing.read_head(name) for name in NAMES]
    screen = io.StringIO()
    printing.print_first_that_fits(
        commands._list_tables(heads), Console(file=screen, width=width, color_system=None)
    )
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for head in heads:
        assert f" {head.recipe} " in text
        assert head.command in text or "ser recipe show" in text
    if width == 300:
        assert "ser recipe show" not in text
    assert "69.28" in text


def test_list_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['ser', 'recipe', 'list']\n"
        "from sercli import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop\n"
        "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# -- show ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), ("train.lr=1e-3", "addon.preset=summary")])
def test_show_says_what_is_resolved(settings: tuple[str, ...]) -> None:
    resolved = resolve("imagenet/moco-ser", *settings)
    options = [item for text in settings for item in ("--set", text)]
    shown = json.loads(done("show", "imagenet/moco-ser", *options, "--format", "json"))
    assert shown["values"] == resolved.recipe.model_dump(mode="json")
    assert shown["origins"] == resolved.origins
    assert shown["published"].startswith("69.28 top-1")
    lines = done("show", "imagenet/moco-ser", *options).splitlines()
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["setting", "value", "from"]
    assert [line.split()[0] for line in table[1:]] == list(resolved.origins)
    for line, origin in zip(table[1:], resolved.origins.values(), strict=True):
        assert line.endswith(f"  {origin}")
    (line,) = (line for line in table if line.startswith("train.lr "))
    assert line.split()[1] == str(resolved.recipe.train.lr)
    assert any(line.startswith("command: ") for line in lines[: lines.index("")])


def test_origins_are_full_names() -> None:
    origins = resolve("imagenet/moco-ser").origins
    assert origins["data.path"] == "imagenet/base"
    assert origins["method.name"] == "imagenet/moco-none"
    assert origins["addon.layer"] == "imagenet/moco-ser"
    assert origins["addon.temperature"] == "preset paper"
    assert origins["seed"] == "default"


def test_origins_may_be_left_out() -> None:
    assert "origins" not in json.loads(
        done("show", "shapes/moco-ser", "--no-origins", "--format", "json")
    )
    assert "default" not in done("show", "shapes/moco-ser", "--no-origins")
    fails("show", "shapes/moco-ser", "--origins", "--format", "yaml", match="--origins with")


@pytest.mark.parametrize("name", NAMES)
def test_yaml_is_a_recipe_that_resolves_to_the_same(name: str, tmp_path: Path) -> None:
    text = done("show", name, "--set", "seed=7", "--format", "yaml")
    assert text == resolve(name, "seed=7").recipe.to_yaml()
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    assert resolve(file).recipe == resolve(name, "seed=7").recipe
    assert done("show", file, "--format", "yaml") == text
    assert "no difference" in done("diff", file, file)


def test_a_run_directory_and_its_recipe_may_be_shown(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    resolved = resolve("shapes/moco-none", "seed=3")
    (run_dir / "recipe.yaml").write_text(resolved.recipe.to_yaml(), encoding="utf-8")
    for given in (run_dir, run_dir / "recipe.yaml"):
        assert parse_yaml(done("show", given, "--format", "yaml"))["seed"] == 3
        assert f"  {run_dir / 'recipe.yaml'}\n" in done("show", given)
        assert _different_keys("shapes/moco-none", given) == ["seed"]


def test_bad_names_are_one_line(workplace: Path) -> None:
    fails("show", "shapes/moco-sre", match="did you mean shapes/moco-ser?")
    fails("show", workplace, match="no recipe")
    fails("diff", "shapes/moco-ser", "nothing/of-this-kind", match="no recipe")
    fails("show", "shapes/moco-ser", "--set", "train.learning_rate=1", match="train.lr")
    (workplace / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    fails("show", "binary.yaml", match="no valid YAML")


# -- diff ------------------------------------------------------------------------------------------


def _different_keys(first: object, second: object) -> list[str]:
    return list(json.loads(done("diff", first, second, "--format", "json"))["differences"])


def test_diff_finds_what_differs_and_nothing_else() -> None:
    assert _different_keys("shapes/moco-none", "shapes/moco-none-long") == ["train.epochs"]
    assert _different_keys("shapes/moco-ser", "shapes/moco-ser-weight0") == ["addon.weight"]
    assert _different_keys("shapes/moco-ser", "shapes/moco-ser-undelayed") == ["model.cls_after"]
    assert done("diff", "shapes/moco-ser", "shapes/moco-ser") == "no difference\n"
    assert _different_keys("shapes/moco-ser", "shapes/moco-ser") == []


def test_diff_shows_both_values_and_their_origins() -> None:
    lines = done("diff", "shapes/moco-none", "shapes/moco-none-long").splitlines()
    none, longer = resolve("shapes/moco-none"), resolve("shapes/moco-none-long")
    assert [line.split() for line in lines] == [
        ["setting", "shapes/moco-none", "from", "shapes/moco-none-long", "from"],
        [
            *("train.epochs", str(none.recipe.train.epochs), "shapes/base"),
            *(str(longer.recipe.train.epochs), "shapes/moco-none-long"),
        ],
    ]


def test_diff_of_keys_that_only_one_has() -> None:
    ser, none = resolve("shapes/moco-ser"), resolve("shapes/moco-none")
    expected = [key for key in ser.origins if key.startswith("addon.")]
    assert _different_keys("shapes/moco-ser", "shapes/moco-none") == expected
    assert _different_keys("shapes/moco-none", "shapes/moco-ser") == expected
    found = {one.key: one for one in recipe_listing.differences(none, ser)}
    assert found["addon.name"].first == Value("none", "shapes/base")
    assert found["addon.layer"] == Difference("addon.layer", None, Value(3, "shapes/moco-ser"))
    lines = done("diff", "shapes/moco-none", "shapes/moco-ser").splitlines()
    (line,) = (line for line in lines if line.startswith("addon.layer "))
    assert line.split() == ["addon.layer", "–", "3", "shapes/moco-ser"]


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_shows_all_of_a_difference(width: int) -> None:
    first, second = resolve("imagenet/moco-ser"), resolve("imagenet/moco-ser-authors-code")
    found = recipe_listing.differences(first, second)
    screen = io.StringIO()
    printing.print_first_that_fits(
        commands._difference_tables(first.name, second.name, found),
        Console(file=screen, width=width, color_system=None),
    )
    text = screen.getvalue()
    assert ("from preset paper" in text) == (width == 80)
    assert "preset authors-code" in text
    assert all(one.key in text for one in found)


# -- check -----------------------------------------------------------------------------------------


def test_check_says_what_follows(workplace: Path) -> None:
    recipe = resolve("shapes/moco-ser").recipe
    plan = make_plan(recipe, pretraining.training_source(recipe))
    flops = count_flops(recipe)
    assert done("check", "shapes/moco-ser") == (
        f"ok shapes/moco-ser: {plan.parameters:,} trainable parameters, 36 tokens, "
        f"[CLS] joins after block 3, {plan.schedule.total_steps:,} steps, "
        f"FLOPs / none {flops.ratio_none:.4f}\n"
    )
    assert ", 1 step, " in done("check", "shapes/moco-none", "--set", "train.max_steps=1")
    assert not list(workplace.iterdir())


def test_check_of_one_that_cannot_be_used_is_its_error(workplace: Path) -> None:
    (workplace / "deep.yaml").write_text("extends: shapes/moco-ser\naddon: {layer: 13}\n")
    (workplace / "large.yaml").write_text("extends: shapes/moco-none\ntrain: {batch_size: 5000}\n")
    fails("check", "deep.yaml", match="it must be in 1…12")
    fails("check", "large.yaml", match="train.batch_size 5000 with 4,096 images")
    fails("check", "shapes/moco-none", "--data", "missing", match="missing does not exist")
    fails("check", "shapes/moco-none", "--set", "data.path=gone", match="gone does not exist")


def test_check_goes_through_all_recipes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "deep.yaml").write_text("extends: shapes/moco-ser\naddon: {layer: 13}\n")
    result = fails(
        "check", "deep.yaml", "shapes/moco-none", "moco-nil",
        match="2 of 3 recipes cannot be used")  # fmt: skip
    assert result.stdout.startswith("ok shapes/moco-none: ")
    assert result.stdout.count("\n") == 1
    failed = result.stderr.splitlines()
    assert [line.split(":")[0] for line in failed] == ["FAILED deep.yaml", "FAILED moco-nil"]
    assert "1…12" in failed[0]
    assert result.exception is not None
    assert result.exception.exit_status == 2  # type: ignore[attr-defined]
    names = ["shapes/moco-none", "shapes/moco-delayed-cls"]
    monkeypatch.setattr(recipe_listing, "runnable_names", lambda: names)
    lines = done("check").splitlines()
    assert [line.split(":")[0] for line in lines] == [f"ok {name}" for name in names]


def test_check_without_imagenet_assumes_its_size(workplace: Path) -> None:
    result = run("check", "imagenet/moco-none")
    assert result.exit_code == 0, result.exception
    assert "62,500 steps" in result.stdout
    assert "1,281,167 images were assumed" in result.stderr
    fails("check", "imagenet/moco-none", "--data", "imagenet", match="imagenet does not exist")
    for number in range(4):
        file = workplace / "imagenet" / "train" / "a" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(file)
    fails("check", "imagenet/moco-none", match="2048 with 4 images")
