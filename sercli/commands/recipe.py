"""`ser recipe`: which recipes there are, what they set, where two differ, and whether they work."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sercli.commands.options import Plugins, Settings, place_of
from sercli.commands.printing import (
    aligned,
    print_first_that_fits,
    ruled_table,
    shown,
    write,
    write_json,
    write_marked,
)
from sercli.errors import SerError, UserError
from sercli.visible import counted, one_line, say

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from sercli.data.source import ImageSource
    from sercli.recipe.files import Resolved
    from sercli.recipe.listing import Difference, Head, Value
    from sercli.recipe.schema import Recipe

app = typer.Typer(help="List, show, compare and check recipes.", no_args_is_help=True)

# Stands for the images in the recipes of ImageNet, which --data names; and how many those are.
_PLACEHOLDER, _IMAGENET_IMAGES = "imagenet", 1_281_167


Format = Literal["terminal", "json"]
ListFormat = Literal["terminal", "markdown", "json"]
ShowFormat = Literal["terminal", "yaml", "json"]

_HOW = "How it is written."
_FormatOption = Annotated[Format, typer.Option("--format", help=_HOW)]
_NAME = "Name under `recipes/`, a YAML file, or a run directory."


@app.command("list")
def list_(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="FILTER", help="A part of a name, or a shell pattern such as `imagenet/*`."
        ),
    ] = None,
    output_format: Annotated[ListFormat, typer.Option("--format", help=_HOW)] = "terminal",
) -> None:
    """List the recipes that come with ser: what each is, what was published, and its command.

    A narrow terminal leaves out the commands; `ser recipe show` prints them.
    """
    from sercli.recipe import listing as recipe_listing

    names = recipe_listing.matching_names(pattern or "")
    heads = [recipe_listing.read_head(name) for name in names]
    if output_format == "json":
        write_json([_head_json(head) for head in heads])
    elif output_format == "markdown":
        write(recipe_listing.markdown_table(heads))
    elif sys.stdout.isatty():
        print_first_that_fits(_list_tables(heads))
    else:
        rows = [(head.recipe, head.about, head.published, head.command) for head in heads]
        say(*aligned([("recipe", "what it is", "published", "command"), *rows]))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help=_NAME)],
    set_: Settings = None,
    origins: Annotated[
        bool | None,
        typer.Option(
            "--origins/--no-origins",
            help="Say where each value came from; not in YAML.",
            show_default="--origins",
        ),
    ] = None,
    output_format: Annotated[
        ShowFormat,
        typer.Option("--format", help=_HOW + " YAML can be used as a recipe."),
    ] = "terminal",
    plugin: Plugins = None,
) -> None:
    """Show every setting of a recipe with its value and where that came from.

    That is a default, a preset, the recipe, one that it extends, or --set.
    `ser recipe show NAME --format yaml > mine.yaml` makes a recipe of your own.
    """
    from sercli.recipe import listing as recipe_listing

    if output_format == "yaml" and origins:
        raise UserError(
            "--origins with --format yaml",
            "a recipe has no room for where its values came from",
            "leave --origins out, or use --format json",
        )
    resolved = _resolve(name, set_, plugins=plugin, tolerant=True)
    if output_format == "yaml":
        write(resolved.recipe.to_yaml().rstrip("\n"))
        return
    head = recipe_listing.read_head(resolved.name)
    if output_format == "json":
        tree = {**_head_json(head), "values": resolved.recipe.model_dump(mode="json")}
        write_json(tree if origins is False else {**tree, "origins": resolved.origins})
        return
    _print_settings(resolved, head, origins=origins is not False)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=_NAME)],
    second: Annotated[str, typer.Argument(metavar="B", help="The other, likewise.")],
    output_format: _FormatOption = "terminal",
    plugin: Plugins = None,
) -> None:
    """Show the settings in which two recipes differ, and where each value came from.

    A setting that only one of them has is "–" in the other.
    The exit status is 0 whether they differ or not.
    """
    from sercli.recipe import listing as recipe_listing

    resolved = [_resolve(name, None, plugins=plugin, tolerant=True) for name in (first, second)]
    found = recipe_listing.differences(resolved[0], resolved[1])
    if output_format == "json":
        write_json(
            {
                "a": resolved[0].name,
                "b": resolved[1].name,
                "differences": {
                    one.key: {"a": _value_json(one.first), "b": _value_json(one.second)}
                    for one in found
                },
            }
        )
    elif not found:
        say("no difference")
    elif sys.stdout.isatty():
        print_first_that_fits(_difference_tables(resolved[0].name, resolved[1].name, found))
    else:
        headings = ("setting", resolved[0].name, "from", resolved[1].name, "from")
        say(*aligned([headings, *(_difference_row(one) for one in found)]))


@app.command()
def schema(plugin: Plugins = None) -> None:
    """Write the JSON Schema of recipes, by which editors complete keys and tell wrong values.

    `ser recipe schema > recipe.schema.json`, and as the first line of a recipe
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from sercli.families.json_schema import recipe_schema

    write_json(recipe_schema(plugin or ()))


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help=_NAME, show_default="all that come with ser"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|shapes", help="Images to check for.", show_default="the recipe's"
        ),
    ] = None,
    set_: Settings = None,
    plugin: Plugins = None,
) -> None:
    """Check that recipes can be trained, without training: model, batch, schedule and cost.

    The exit status is 0 if all recipes can be used, otherwise 2.
    Recipes of ImageNet are checked for its 1,281,167 images without --data.
    Nothing is written, but for the list of the files in DIR (in the cache).
    """
    from sercli.recipe import listing as recipe_listing

    chosen = names or recipe_listing.runnable_names()
    failed, assumed = 0, False
    for name in chosen:
        try:
            resolved = _resolve(name, set_, place_of(data), plugins=plugin)
            nominal = not data and _is_nominal(resolved.recipe)
            summary = _summary(resolved.recipe, nominal=nominal)
        except SerError as error:
            if len(chosen) == 1:
                raise
            failed += 1
            say(f"FAILED {name}: {one_line(str(error))}", err=True)
        else:
            assumed |= nominal
            write_marked("ok", f"{name}: {summary}")
    if assumed:
        say(
            f"There is no folder {_PLACEHOLDER}: {_IMAGENET_IMAGES:,} images were assumed; "
            "--data DIR checks with yours.",
            err=True,
        )
    if failed:
        raise UserError(
            f"{failed} of {counted(len(chosen), 'recipe')} cannot be used",
            "",
            "mend what is listed above",
        )


# -- resolving and checking ------------------------------------------------------------------------


def _resolve(
    name: str,
    settings: Sequence[str] | None,
    data: str | None = None,
    *,
    plugins: Sequence[Path] | None,
    tolerant: bool = False,
) -> Resolved:
    from sercli.families import resolve
    from sercli.recipe import listing as recipe_listing

    flags = {} if data is None else {"data.path": data}
    resolved = resolve(
        recipe_listing.located(name),
        tuple(settings or ()),
        flags,
        plugins=plugins or (),
        tolerant=tolerant,
    )
    for note in resolved.notes:
        say(note, err=True)
    if resolved.recipe.model.weights is None:
        return resolved
    from sercli.engine.beginning import completed

    return completed(resolved, tolerant=tolerant, say=partial(say, err=True))


def _is_nominal(recipe: Recipe) -> bool:
    """Whether the recipe's images are only a placeholder for what --data gives."""
    return recipe.data.path == _PLACEHOLDER and not Path(_PLACEHOLDER).is_dir()


def _summary(recipe: Recipe, *, nominal: bool) -> str:
    """What follows from a recipe, in one line."""
    from sercli.engine.flops import count_flops
    from sercli.engine.plan import make_plan
    from sercli.engine.resuming import training_source

    source = _stand_in(_IMAGENET_IMAGES) if nominal else training_source(recipe)
    plan = make_plan(recipe, source)
    flops = count_flops(recipe, plan.objective)
    return (
        f"{counted(plan.parameters, 'trainable parameter')}, {counted(plan.tokens, 'token')}, "
        f"{plan.joins}, {counted(plan.schedule.total_steps, 'step')}, "
        f"FLOPs / none {flops.ratio_none:.4f}"
    )


def _stand_in(num_images: int) -> ImageSource:
    """A set of so many images: a plan depends on nothing but their number."""
    from sercli.data import ShapesSource

    return ShapesSource("train", image_size=16, num_images=num_images)


# -- printing --------------------------------------------------------------------------------------


def _head_json(head: Head) -> dict[str, str]:
    return {
        "recipe": head.recipe,
        "about": head.about,
        "published": head.published,
        "command": head.command,
    }


def _value_json(value: Value | None) -> dict[str, Any] | None:
    return None if value is None else {"value": value.value, "origin": value.origin}


def _print_settings(resolved: Resolved, head: Head, *, origins: bool) -> None:
    """What a recipe is, and its settings in a table."""
    from sercli.recipe import listing as recipe_listing

    lines = [
        f"{what}: {text}"
        for what, text in (
            (head.recipe, head.about),
            ("published", head.published),
            ("command", head.command),
        )
        if text
    ]
    columns = 3 if origins else 2
    headings = ("setting", "value", "from")[:columns]
    rows = [
        (key, _as_yaml(value), resolved.origins[key])[:columns]
        for key, value in recipe_listing.values_of(resolved).items()
    ]
    if lines:
        say(*lines)
    if sys.stdout.isatty():
        print_first_that_fits([_settings_table(headings, rows)])
    else:
        say(*([""] if lines else []), *aligned([headings, *rows]))


def _as_yaml(value: Any) -> str:
    """A value as one would write it in YAML, without quotes; of plug-ins, where they are from."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return ", ".join(one.get("file") or one["distribution"] for one in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _list_tables(heads: Sequence[Head]) -> list[Table]:
    """With commands; without; and with what was published beneath what it is."""
    from rich.text import Text

    any_published = any(head.published for head in heads)
    caption = Text("`ser recipe show RECIPE` prints its command and settings", style="dim")
    tables = []
    for commands, apart in ((True, True), (False, True), (False, False)):
        table = ruled_table()
        table.add_column("recipe", no_wrap=True)
        table.add_column("what it is", min_width=40 if apart else None)
        if apart and any_published:
            table.add_column("published", min_width=24, max_width=32)
        if commands:
            table.add_column("command", no_wrap=True)
        else:
            table.caption, table.caption_justify = caption, "left"
        for head in heads:
            cells = [Text(shown(head.recipe)), Text(shown(head.about))]
            if apart and any_published:
                cells.append(Text(shown(head.published)))
            elif head.published:
                cells[1].append(f"\nPublished: {shown(head.published)}", style="dim")
            if commands:
                cells.append(Text(shown(head.command)))
            table.add_row(*cells)
        tables.append(table)
    return tables


def _settings_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = ruled_table()
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "setting", overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row), style="dim" if row[2:] == ("default",) else None)
    return table


def _difference_row(one: Difference) -> tuple[str, str, str, str, str]:
    cells = [
        ("–", "") if side is None else (_as_yaml(side.value), side.origin)
        for side in (one.first, one.second)
    ]
    return (one.key, *cells[0], *cells[1])


def _difference_tables(first: str, second: str, found: Sequence[Difference]) -> list[Table]:
    """With origins in columns of their own; and beneath the values."""
    from rich.text import Text

    wide, narrow = ruled_table(), ruled_table()
    for heading in ("setting", first, "from", second, "from"):
        wide.add_column(shown(heading), no_wrap=True)
    for index, heading in enumerate(("setting", first, second)):
        narrow.add_column(shown(heading), no_wrap=not index, overflow="fold")
    for one in found:
        key, value_a, from_a, value_b, from_b = map(shown, _difference_row(one))
        cells: list[Text] = [Text(value_a), Text(value_b)]
        wide.add_row(key, cells[0], Text(from_a, "dim"), cells[1], Text(from_b, "dim"))
        narrow.add_row(
            key,
            *(
                Text.assemble(cell, *([("\nfrom " + origin, "dim")] if origin else []))
                for cell, origin in zip(cells, (from_a, from_b), strict=True)
            ),
        )
    return [wide, narrow]
