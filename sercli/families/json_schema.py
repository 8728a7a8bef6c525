"""What a recipe can say, as JSON Schema: editors complete keys with it and tell wrong values.

It is of draft 7, which editors know best. A recipe may leave everything to what it extends, so that
nothing is required; which keys a method or an add-on has follows from its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sercli.families.plugins import families
from sercli.families.registry import title_of
from sercli.families.resolving import given_files
from sercli.recipe.schema import FamilyConfig, Recipe

_DRAFT = "http://json-schema.org/draft-07/schema#"


def recipe_schema(plugins: Sequence[Path] = ()) -> dict[str, Any]:
    """The schema of recipe files.

    Args:
        plugins: Files with more methods and add-ons.

    Raises:
        UserError: A plug-in cannot be had.
    """
    known = families(*given_files(plugins))
    schema = Recipe.model_json_schema()
    definitions = schema.pop("$defs")
    for base in ("MethodConfig", "AddonConfig"):
        definitions.pop(base)
    sections = schema["properties"]
    for section, table in (("method", known.methods), ("addon", known.addons)):
        sections[section] = _one_of(section, table, definitions)
    setting = definitions["Views"]["properties"]["setting"]
    del setting["type"]
    setting["enum"] = [*setting["enum"], 2, 3]  # as YAML reads them without quotes
    plugin = {"type": "string", "description": "a Python file; its path is relative to the recipe"}
    sections["plugins"]["items"] = {"anyOf": [plugin, {"$ref": "#/$defs/Plugin"}]}
    extends = {"type": "string", "description": "the recipe below: a name, or a file beside this"}
    dotted = "|".join(key for key in sections if key not in ("seed", "plugins"))
    written: dict[str, Any] = _for_draft_7(
        {
            "$schema": _DRAFT,
            "title": "a recipe of ser",
            "type": "object",
            "additionalProperties": False,
            "properties": {"extends": extends, **sections},
            # A key may be dotted; its value is then left to ser.
            "patternProperties": {rf"^({dotted})\.": {}},
            "$defs": definitions,
        }
    )
    return written


def _one_of(
    section: str, table: Mapping[str, type[FamilyConfig]], definitions: dict[str, Any]
) -> dict[str, Any]:
    """The settings of each method or add-on by its name; without a name, a key of any of them."""
    branches = []
    anywhere: dict[str, list[Any]] = {}
    for name in table:
        config = table[name]
        own = config.model_json_schema()
        definitions |= own.pop("$defs", {})
        own |= {"title": title_of(config), "required": ["name"]}
        own["properties"]["name"] = {"const": name, "description": title_of(config)}
        branches.append(own)
        for key, value in own["properties"].items():
            if value not in anywhere.setdefault(key, []):
                anywhere[key].append(value)
    del anywhere["name"]
    nameless = {
        "title": f"of the {section} that the recipe extends",
        "type": "object",
        "additionalProperties": False,
        "properties": {key: {"anyOf": values} for key, values in anywhere.items()},
    }
    return {"oneOf": [*branches, nameless]}


def _for_draft_7(node: Any) -> Any:
    """The same for draft 7, where `items` can be a list and `prefixItems` is not known."""
    if isinstance(node, list):
        return [_for_draft_7(one) for one in node]
    if not isinstance(node, dict):
        return node
    written = {key: _for_draft_7(value) for key, value in node.items()}
    if "prefixItems" in written:
        written["items"] = written.pop("prefixItems")
        written["additionalItems"] = False
    return written
