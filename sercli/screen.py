"""The one rich console of this package: a text is a text, never markup, on any terminal.

rich takes a str for markup, looks for emoji and numbers in it, and hands control characters to the
terminal. Here a str is shown as it is; styles are given by our own code, with `rich.text.Text`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, JustifyMethod, OverflowMethod, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from sercli.visible import spelled, visible_lines


class Screen(Console):
    """A console that takes every text literally.

    Args:
        err: Standard error instead of standard output.
        file: Where else it goes.
        more: What rich's console takes.
    """

    def __init__(self, *, err: bool = False, file: IO[str] | None = None, **more: Any) -> None:
        # Named, not None: rich knows the encoding only of a file that it was given.
        file = file or (sys.stderr if err else sys.stdout)
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **more)

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        **_: Any,
    ) -> Text:
        """Of cells, headings, titles and what is printed: what a `str` becomes before layout."""
        shown = spelled(visible_lines(text), self.encoding)
        return Text(shown, style=style, justify=justify, overflow=overflow)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Whatever else is shown (`Text` of ours, too) holds no control character either."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable() or text == "\n":
                yield segment
            else:
                yield Segment(visible_lines(text), segment.style)
