"""What recipes refuse in words that a setting's own class supplies."""

from __future__ import annotations

import pytest

from sercli.families import method_configs
from sercli.recipe import AddonConfig, MoreViews, Recipe


class _Doubling(AddonConfig):
    name: str = "doubling"
    doubled: bool = True

    @property
    def more_views(self) -> MoreViews | None:
        return MoreViews("addon.doubled true", "addon.doubled=false") if self.doubled else None


def _recipe(method: str, *, doubled: bool) -> Recipe:
    return Recipe(method=method_configs()[method](name=method), addon=_Doubling(doubled=doubled))


def test_an_add_on_that_adds_views_says_by_which_setting() -> None:
    line = (
        r"addon\.doubled true with method barlow-twins: its loss takes two views; "
        r"use addon\.doubled=false"
    )
    with pytest.raises(ValueError, match=line):
        _recipe("barlow-twins", doubled=True)
    assert _recipe("barlow-twins", doubled=False).addon.more_views is None
    assert _recipe("moco", doubled=True).addon.more_views is not None
