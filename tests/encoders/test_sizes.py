"""A size of ViT is one line of one table."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sercli import families
from sercli.encoders import sizes
from sercli.encoders.sizes import Size, size_of
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.objective import Objective
from sercli.recipe.schema import Model


def test_a_new_size_is_one_line(monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "vit_toy", Size(width=24, depth=5, num_heads=3))

    encoder = Encoder.from_model(Model(name="vit_toy", patch_size=8), image_size=32)
    assert (encoder.dim, encoder.depth) == (24, 5)

    settings = ("model.name=vit_toy", "addon.layer=2", "train.batch_size=8")
    recipe = families.resolve("shapes/moco-ser", settings, {}).recipe
    objective = Objective(recipe)
    assert (objective.encoder.dim, objective.encoder.cls_after) == (24, 2)

    with pytest.raises(UserError, match=r"vit_huge'; known: vit_micro, .*, vit_toy, timm:NAME$"):
        size_of(Model(name="vit_huge"))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, Size(384, 12, 6)),
        ({"width": 96}, Size(96, 12, 6)),
        ({"depth": 4, "num_heads": 8}, Size(384, 4, 8)),
    ],
)
def test_what_a_recipe_says_itself_wins_over_the_name(own, expected):
    assert size_of(Model(name="vit_small", **own)) == expected


def test_the_sizes_are_named_in_one_place():
    package = Path(sizes.__file__).parents[1]
    names = re.compile(r"\bvit_(micro|large)\b")
    naming = [file for file in package.rglob("*.py") if names.search(file.read_text())]
    assert naming == [Path(sizes.__file__)]


def test_sizes_do_not_import_torch():
    code = "import sys, sercli.encoders.sizes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
