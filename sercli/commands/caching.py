"""`data.cache`: copies what is trained on before a training begins, and before processes meet.

While the copy is made no other process waits within a bound: all of a machine wait for one, each
before it has met the others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sercli.commands.printing import progress
from sercli.errors import UserError
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.data.shards.making import Space
    from sercli.recipe.schema import Recipe


def fill_cache(recipe: Recipe) -> None:
    """Copy the images of a recipe where it says, unless they are there.

    Raises:
        UserError: They cannot be copied, or the place cannot be written or is too small.
        RunFailed: The disk is full, or a process was killed.
    """
    data = recipe.data
    if data.cache is None:
        return
    from sercli.data.registry import SPLITS, has_split, open_source
    from sercli.data.shards.cache import copy_to_cache

    for split in SPLITS:
        if has_split(data.path, split):
            source = open_source(data.path, split, image_size=data.image_size, seed=recipe.seed)
            with progress() as update:
                copy_to_cache(source, Path(data.cache), update, _say)


def fill_cache_of(read: Callable[[], Recipe]) -> None:
    """`fill_cache`, unless the recipe cannot be read: what is wrong, the first process says.

    Raises:
        UserError, RunFailed: As `fill_cache`.
    """
    try:
        recipe = read()
    except UserError:
        return
    fill_cache(recipe)


def _say(folder: Path, space: Space) -> None:
    from sercli.data.shards.making import in_words

    if space.images:
        say(
            f"data.cache: {counted(space.images, 'image')} are copied once to {folder}, about "
            f"{in_words(space.bytes)}; {in_words(space.free)} are free"
        )
