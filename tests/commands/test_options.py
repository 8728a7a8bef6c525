"""Options as objects: what a command is handed, what `--help` shows of them, what they may be."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from sercli.cli import app
from sercli.commands.options import (
    Activation,
    ModelOptions,
    PositionsWay,
    RunOptions,
    option_objects,
)
from sercli.commands.pretrain import ViewsChoice
from sercli.encoders.asked import ACTIVATIONS
from sercli.errors import UserError
from sercli.evals.detection import options as detection
from sercli.evals.linear import options as linear
from sercli.families import addon_configs, method_configs
from sercli.recipe.schema import PosResize, ViewSetting

EVALUATORS = ("knn", "linear-eval", "robustness", "coco-detect", "segment", "equiv-score")


@dataclass(frozen=True)
class Soup:
    panel: ClassVar[str] = "The soup"

    name: Annotated[str, typer.Argument(metavar="SOUP")]
    salt: Annotated[int, typer.Option(min=0, help="Grains.")] = 3
    spices: Annotated[list[str] | None, typer.Option(help="Any.")] = None


def kitchen(command: Callable[..., None]) -> typer.Typer:
    own = typer.Typer(rich_markup_mode="markdown")
    own.command()(command)
    return own


def test_a_command_is_handed_one_object_and_its_own_options() -> None:
    served: list[Any] = []

    @option_objects
    def cook(soup: Soup, minutes: Annotated[int, typer.Option()] = 20) -> None:
        """Cook."""
        served.append((soup, minutes))

    runner = CliRunner()
    assert runner.invoke(kitchen(cook), ["leek"]).exit_code == 0
    line = ["leek", "--salt", "9", "--spices", "dill", "--spices", "thyme", "--minutes", "5"]
    assert runner.invoke(kitchen(cook), line).exit_code == 0
    assert served == [(Soup("leek"), 20), (Soup("leek", 9, ["dill", "thyme"]), 5)]
    assert runner.invoke(kitchen(cook), []).exit_code == 2  # SOUP has no default
    assert runner.invoke(kitchen(cook), ["leek", "--salt", "-1"]).exit_code == 2
    shown = runner.invoke(kitchen(cook), ["--help"]).output
    assert re.search(r"The soup.*--salt.*Grains.*--spices", shown, re.DOTALL)
    assert shown.index("--minutes") < shown.index("The soup")


def test_a_panel_is_of_one_command_not_of_an_alias() -> None:
    """A copy is put into the panel: the same alias stands in the plain one elsewhere."""
    kind, info = get_args(get_type_hints(RunOptions, include_extras=True)["device"])
    assert (kind, info.rich_help_panel) == (str | None, None)


@pytest.mark.parametrize("command", EVALUATORS)
def test_every_evaluator_has_the_shared_options(command: str) -> None:
    callback = next(one.callback for one in app.registered_commands if one.name == command)
    assert callback is not None
    names = set(inspect.signature(callback).parameters)
    shared = [*get_type_hints(ModelOptions), *get_type_hints(RunOptions)]
    assert names >= {name for name in shared if name != "panel"}


def test_choices_are_those_of_the_code_that_takes_them() -> None:
    assert set(get_args(PositionsWay)) == set(get_args(PosResize))
    assert get_args(Activation) == ACTIVATIONS
    assert get_args(ViewsChoice) == get_args(ViewSetting)
    assert get_args(linear.PresetName) == tuple(linear.PRESETS)
    assert get_args(detection.PresetName) == tuple(detection.PRESETS)


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (["knn", "x", "--positions", "linear"], get_args(PosResize)),
        (["linear-eval", "x", "--preset", "sre"], tuple(linear.PRESETS)),
        (["coco-detect", "x", "--engine", "yolo"], detection.ENGINES),
        (["coco-detect", "x", "--preset", "huge"], tuple(detection.PRESETS)),
        (["coco-detect", "x", "--metric", "mine"], detection.METRICS),
        (["pretrain", "--views", "4"], get_args(ViewSetting)),
        (["compare", "x", "--format", "pdf"], ("terminal", "markdown", "latex", "csv", "html")),
    ],
)
def test_a_choice_that_there_is_not_is_answered_with_those_there_are(
    line: list[str], known: tuple[str, ...]
) -> None:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, line)
    assert result.exit_code == 2
    assert line[-2] in result.output
    assert line[-1] in result.output
    assert all(choice in result.output for choice in known)


@pytest.mark.parametrize(
    ("line", "flag", "table"),
    [
        (("pretrain",), "--method", method_configs),
        (("pretrain",), "--addon", addon_configs),
        (("bench", "addons"), "--method", method_configs),
    ],
)
def test_help_and_completion_know_every_method_and_addon(
    line: tuple[str, ...], flag: str, table: Callable[[], Mapping[str, object]]
) -> None:
    signature = inspect.signature(callback_of(line), eval_str=True)
    info = get_args(signature.parameters[flag.removeprefix("--")].annotation)[1]
    assert set(re.findall(r"[a-z-]+", info.help.partition(":")[2].partition(";")[0])) - {
        "or"
    } == set(table())
    assert info.autocompletion() == list(table())


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_devices_are_those_of_pytorch(name: str) -> None:
    given: list[str | None] = []

    @option_objects
    def command(run: RunOptions) -> None:
        """Run."""
        given.append(run.device)

    assert CliRunner().invoke(kitchen(command), ["--device", name]).exit_code == 0
    assert given == [name]


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cpu:0", "CUDA"])
def test_other_devices_are_refused(name: str) -> None:
    result = CliRunner().invoke(app, ["knn", "x", "--device", name])
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == f"--device {name}; it must be cpu or cuda"


# -- Help ------------------------------------------------------------------------------------------


def command_lines(group: typer.Typer = app, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [before]
    for one in group.registered_commands:
        assert one.callback is not None
        found.append((*before, one.name or one.callback.__name__))
    for below in group.registered_groups:
        assert below.typer_instance is not None
        found += command_lines(below.typer_instance, (*before, str(below.name)))
    return found


def callback_of(line: tuple[str, ...]) -> Callable[..., Any]:
    group, (*groups, name) = app, line
    for below in groups:
        group = next(one.typer_instance for one in group.registered_groups if one.name == below)
    commands = group.registered_commands
    return next(one.callback for one in commands if name in (one.name, one.callback.__name__))


def bare(text: str) -> str:
    """Without what lays a text out: white space, frames, and the marks of code."""
    return re.sub(r"[\s│`]+", "", text)


@pytest.mark.parametrize("line", command_lines(), ids=" ".join)
def test_help_fits_80_columns(line: tuple[str, ...]) -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*line, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


GROUPS = ((), ("runs",), ("recipe",), ("data",), ("bench",))


@pytest.mark.parametrize(
    "line", [one for one in command_lines() if one not in GROUPS], ids=" ".join
)
def test_help_leaves_out_no_word(line: tuple[str, ...]) -> None:
    """Markdown drops what looks like a tag or a mark: `train/<class>/`, `imagenet/*`."""
    callback = callback_of(line)
    shown = bare(CliRunner(env={"COLUMNS": "2000"}).invoke(app, [*line, "--help"]).output)
    texts = [str(inspect.getdoc(callback)).replace("```", "")]
    for parameter in inspect.signature(callback, eval_str=True).parameters.values():
        texts.append(str(get_args(parameter.annotation)[1].help or ""))
    for text in texts:
        assert bare(text) in shown


def test_help_is_in_panels_by_group() -> None:
    shown = CliRunner().invoke(app, ["linear-eval", "--help"]).output
    panels = re.findall(r"╭─ (.*?) ─", shown)
    expected = ["Arguments", "Options", "The probe", "The images", "The run", "The model"]
    assert sorted(panels) == sorted(expected)
