"""`--plugin`, of every command that resolves a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Python file with a method or an add-on of your own (may be given several times).",
    ),
]
