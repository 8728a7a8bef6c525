"""Figures of ours inside a page: SVG without what a page has once, in colours of its scheme.

Matplotlib writes each shape's style beside it, and colours for white paper. Inside a page equal
styles become one class of the page's own sheet, which is all that its policy lets style anything;
and each colour of `figures.style` becomes a variable that has a value for light and for dark paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from sercli.report.figures.style import GREY, SERIES
from sercli.visible import visible

# Of figures, in lower case as matplotlib writes them, and of the page's style.css.
VARIABLES = {
    "#ffffff": "var(--paper)",
    "#000000": "var(--ink)",
    GREY.lower(): "var(--soft)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
_COLOUR = re.compile("#[0-9a-f]{6}")
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_REFERENCE = re.compile(r"url\(#([\w.-]+)\)")
_KEPT = {"path", "text", "tspan", "use", "rect", "g", "defs", "clipPath"}


class Sheet:
    """The classes of a page's figures: one for each style that some shape has."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, style: str) -> str:
        """The class of a style, as matplotlib writes it."""
        rules = [rule.strip() for rule in style.split(";")]
        kept = ";".join(rule.replace(": ", ":") for rule in rules if _is_kept(rule))
        coloured = _COLOUR.sub(lambda found: VARIABLES.get(found[0], found[0]), kept)
        return self._names.setdefault(coloured, f"k{len(self._names)}") if coloured else ""

    def css(self) -> str:
        """All of them."""
        return "\n".join(f".{name}{{{rules}}}" for rules, name in self._names.items())


def _is_kept(rule: str) -> bool:
    """The page's own letters are used; a line's joins are those of `.chart` in style.css."""
    return bool(rule) and not rule.startswith(("font-family", "stroke-linejoin: round"))


def inline_svg(svg: bytes, *, key: str, title: str, description: str, sheet: Sheet) -> str:
    """A figure as an element of a page.

    Args:
        svg: As `save_figure` wrote it, in colours of `figures.style`.
        key: Unique on the page, of letters, digits and hyphens: ids begin with it.
        title, description: What a screen reader says.
        sheet: Collects its styles.
    """
    root = ElementTree.fromstring(svg)
    used = {name for node in root.iter() for name in _references(node)}
    width, height = root.attrib["viewBox"].split()[2:]
    inside = "".join(_written(child, key, used, sheet) for child in root)
    return (
        f'<svg class="chart" viewBox="0 0 {_short(width)} {_short(height)}" role="img" '
        f'aria-labelledby="{key}-title {key}-description">'
        f'<title id="{key}-title">{escape(visible(title))}</title>'
        f'<desc id="{key}-description">{escape(visible(description))}</desc>{inside}</svg>'
    )


def _references(node: ElementTree.Element) -> Iterator[str]:
    for name, value in node.attrib.items():
        if name.endswith("href"):
            yield value.removeprefix("#")
        elif found := _REFERENCE.search(value):
            yield found[1]


def _written(node: ElementTree.Element, key: str, used: set[str], sheet: Sheet) -> str:
    tag = node.tag.rpartition("}")[2]
    if tag not in _KEPT:
        return ""
    inside = "".join(_written(child, key, used, sheet) for child in node)
    if tag in ("text", "tspan"):
        inside = escape(node.text or "") + inside
    attributes = dict(_attributes(node, key, used, sheet))
    if (not inside and tag in ("g", "defs")) or (tag == "g" and not attributes):
        return inside
    shown = "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())
    return f"<{tag}{shown}>{inside}</{tag}>" if inside else f"<{tag}{shown}/>"


def _attributes(
    node: ElementTree.Element, key: str, used: set[str], sheet: Sheet
) -> Iterator[tuple[str, str]]:
    for full, value in node.attrib.items():
        name = full.rpartition("}")[2]
        if name == "style":
            if kind := sheet.name(value):
                yield "class", kind
        elif name == "href":
            yield name, f"#{key}-{value.removeprefix('#')}"
        elif name == "id":
            if value in used:
                yield name, f"{key}-{value}"
        elif name == "transform" and value.startswith("rotate(-0 "):
            continue
        else:
            renamed = _REFERENCE.sub(rf"url(#{key}-\1)", value)
            yield name, _short(" ".join(renamed.split()))


def _short(text: str) -> str:
    """Coordinates to a hundredth of a point."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)
