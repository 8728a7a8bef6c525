"""Optimisers in recipes: what is usual for each, and what choosing another one leaves."""

import pytest

from sercli.families import addon_configs, method_configs
from sercli.recipe import files
from sercli.recipe.training import OPTIMISERS_OWN, USUAL, Train
from tests.support.refusals import refused

TABLES = dict(methods=method_configs(), addons=addon_configs())
# Read off barlowtwins' main.py, and the scripts of moco and dino for a ResNet-50.
BARLOW_TWINS = {
    "lr": 0.2, "lr_biases": 0.0048, "min_lr": 0.2 * 0.001, "weight_decay": 1e-6,
    "final_weight_decay": None, "decay": "not-1d", "betas": None, "momentum": 0.9,
    "trust_coefficient": 0.001,
}  # fmt: skip
MOCO = {
    "lr": 0.03, "lr_biases": None, "min_lr": 0.0, "weight_decay": 1e-4,
    "final_weight_decay": None, "decay": "all", "betas": None, "momentum": 0.9,
    "trust_coefficient": None,
}  # fmt: skip
OWN = {"lars": BARLOW_TWINS, "sgd": MOCO}


def resolved(recipe, *settings):
    return files.resolve(files.read(str(recipe)), str(recipe), settings=settings, **TABLES)


def own_of(train):
    return {key: getattr(train, key) for key in OPTIMISERS_OWN}


@pytest.mark.parametrize("recipe", ["imagenet/dino-none", "imagenet/barlow-twins-ser"])
@pytest.mark.parametrize("optimiser", OWN)
def test_choosing_an_optimiser_leaves_nothing_of_the_rates_of_another(optimiser, recipe):
    """DINO's recipe has a last weight decay of 0.4."""
    before = resolved(recipe).recipe.train
    found = resolved(recipe, f"train.optimiser={optimiser}")
    assert own_of(found.recipe.train) == OWN[optimiser]
    kept = set(Train.model_fields) - OPTIMISERS_OWN - {"optimiser"}
    assert all(getattr(found.recipe.train, key) == getattr(before, key) for key in kept)
    assert found.origins["train.lr"] == f"optimiser {optimiser}"
    assert found.origins["train.clip_norm"] == resolved(recipe).origins["train.clip_norm"]


def test_what_stands_beside_it_wins_whatever_comes_first():
    pair = ("train.lr=0.6", "train.optimiser=lars", "train.lr_biases=null", "train.min_lr=0")
    for settings in (pair, pair[::-1]):
        train = resolved("imagenet/moco-none", *settings).recipe.train
        changed = {"lr": 0.6, "lr_biases": None, "min_lr": 0.0}
        assert own_of(train) == {**BARLOW_TWINS, **changed}


def test_the_optimiser_that_is_there_already_replaces_nothing(tmp_path):
    mine = tmp_path / "mine.yaml"
    text = "extends: imagenet/moco-none\ntrain: {optimiser: sgd, lr: 0.5, momentum: 0.8}\n"
    mine.write_text(text)
    expected = {**MOCO, "lr": 0.5, "momentum": 0.8}
    assert own_of(resolved(mine).recipe.train) == expected
    assert own_of(resolved(mine, "train.optimiser=sgd").recipe.train) == expected
    assert own_of(resolved(mine, "train.optimiser=lars").recipe.train) == BARLOW_TWINS
    moco = resolved("imagenet/moco-none", "train.optimiser=adamw").recipe
    assert moco == resolved("imagenet/moco-none").recipe


def test_adamw_after_another_has_the_defaults(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: imagenet/moco-none\ntrain: {optimiser: lars}\n")
    found = resolved(mine, "train.optimiser=adamw").recipe.train
    assert own_of(found) == own_of(Train())
    assert (found.lr, found.weight_decay, found.betas) == (3e-4, 0.1, (0.9, 0.999))


@pytest.mark.parametrize("optimiser", USUAL)
def test_a_runs_recipe_reads_back_and_takes_another_optimiser(tmp_path, optimiser):
    first = resolved("shapes/moco-ser", f"train.optimiser={optimiser}", "train.layer_decay=0.7")
    written = tmp_path / "recipe.yaml"
    written.write_text(first.recipe.to_yaml())
    assert resolved(written).recipe == first.recipe
    for other in OWN:
        if other != optimiser:
            train = resolved(written, f"train.optimiser={other}").recipe.train
            assert own_of(train) == OWN[other]
            assert train.layer_decay == 0.7


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("train.momentum=0.9",), "train.momentum is of lars and sgd; train.optimiser is 'adamw'"),
        (("train.trust_coefficient=0.1", "train.optimiser=sgd"), "is of lars; train.optimiser is"),
        (("train.betas=[0.9,0.95]", "train.optimiser=lars"), "train.betas is of adamw"),
        (("train.betas=[0.9,1]",), "less than 1"),
        (("train.betas=[0.9]",), "train.betas = [0.9]"),
        (("train.optimiser=sgd", "train.momentum=1"), "train.momentum = 1"),
        (("train.optimiser=lars", "train.trust_coefficient=0"), "train.trust_coefficient = 0"),
        (("train.layer_decay=0",), "train.layer_decay = 0"),
        (("train.layer_decay=1.5",), "train.layer_decay = 1.5"),
        (("train.layer_decay=.nan",), "train.layer_decay = nan"),
        (("train.lr_biases=0",), "train.lr_biases = 0"),
        (("train.optimiser=adam",), "input should be 'adamw', 'lars' or 'sgd'"),
        (("train.optimiser=[lars]",), "input should be 'adamw', 'lars' or 'sgd'"),
        (("train.optimiser=null",), "input should be 'adamw', 'lars' or 'sgd'"),
    ],
)
def test_settings_that_no_optimiser_would_use_are_refused(settings, words):
    refused(lambda: resolved("shapes/moco-ser", *settings), words)
