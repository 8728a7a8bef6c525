"""An HTML page taken apart: whether it is well formed, and what is in it."""

import html.parser
import re
from dataclasses import dataclass

VOID = {"meta", "img", "br", "hr", "link", "input"}


@dataclass
class Element:
    """A start tag, with the text of its own and of what it holds."""

    tag: str
    attributes: dict
    inside: tuple = ()  # tags around it
    text: str = ""


class Page(html.parser.HTMLParser):
    """Reads a page strictly: each element is closed where it was opened, ids are of one each."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert self._open == [], [one.tag for one in self._open]
        ids = [one.attributes["id"] for one in self.elements if "id" in one.attributes]
        assert len(ids) == len(set(ids)), sorted(one for one in set(ids) if ids.count(one) > 1)
        self.ids = set(ids)

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        element = Element(tag, dict(attrs), tuple(one.tag for one in self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open, tag
        assert self._open.pop().tag == tag, tag

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def all(self, tag, **attributes):
        return [
            one
            for one in self.elements
            if one.tag == tag and attributes.items() <= one.attributes.items()
        ]

    @property
    def text(self):
        return self.all("html")[0].text


def contrast(one, other):
    """WCAG's ratio of two colours, #rrggbb: 1…21."""
    lights = sorted(map(_luminance, (one, other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def variables(css):
    """The values of `--name: #rrggbb` in a piece of a style sheet."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))
