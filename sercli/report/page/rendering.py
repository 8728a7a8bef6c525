"""Templates made into a page: escaped, with nothing that is loaded, and a policy that says so."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sercli import __version__
from sercli.report.page.grids import level
from sercli.visible import visible

_TEMPLATES = Path(__file__).parent / "templates"


def render(context: Mapping[str, Any], *, styles: str = "") -> str:
    """The page of `page.html.j2`.

    Args:
        context: What its sections show; those that it lacks are left out.
        styles: Rules of figures, besides those of style.css.
    """
    style = f"\n{(_TEMPLATES / 'style.css').read_text(encoding='utf-8')}{styles}\n"
    script = f"\n{(_TEMPLATES / 'sort.js').read_text(encoding='utf-8')}"
    # Ours and nothing else: a style, an address or a script that came with a name does nothing.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template("page.html.j2")
    return page.render(
        {
            **dict.fromkeys(("claims", "runs", "recipes", "provenance", "summary", "folder"), None),
            **dict.fromkeys(("problems", "tables", "charts", "heat_maps", "pictures"), ()),
            **dict.fromkeys(("contents", "missing", "columns"), ()),
            "pictures_left": "",
            "open_maps": 4,
            **context,
            "version": __version__,
            "policy": policy,
            # Ours: their files have nothing that ends a style or a script.
            "style": Markup(style),
            "script": Markup(script),
        }
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["level"] = level
    made.filters["rounded"] = lambda value: f"{value:.4g}"
    return made


def _shown(value: Any) -> Any:
    """What a template writes: text is made visible before it is escaped."""
    if value is None:
        return ""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)
