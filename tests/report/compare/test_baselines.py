"""Which run another is compared with: the one without add-on that agrees in all that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sercli.report.compare.baselines import find_pairs
from sercli.report.compare.runs import Entry, Run
from sercli.runs.run_dir import RunDir


def entry(name: str, addon: str = "none", **settings: Any) -> Entry:
    """A row of one run; a key of `settings` has two underscores for a dot."""
    recipe: dict[str, Any] = {
        "seed": settings.pop("seed", 0),
        "method": {"name": "moco", "momentum": 0.99},
        "addon": {"name": addon} | ({} if addon == "none" else {"layer": 3, "weight": 1.0}),
        "views": {"setting": "2"},
        "data": {"path": "set", "image_size": 64, "share": 1.0, "classes": None},
        "model": {"name": "vit", "patch_size": 8, "width": 64, "cls_after": None},
        "train": {"epochs": 10, "log_steps": 1},
    }
    for key, value in settings.items():
        section, _, rest = key.partition("__")
        recipe[section][rest] = value
    return Entry((Run(RunDir(Path(name)), recipe),), label=name, name=name)


def baseline(*entries: Entry) -> tuple[str | None, str]:
    """Of the last row: who it is compared with, and what is remarked."""
    pairs, remarks = find_pairs(entries, None)
    own = [entries[pair.baseline].name for pair in pairs if pair.row == len(entries) - 1]
    return (own[0] if own else None), " ".join(remarks)


@pytest.mark.parametrize(
    "other",
    [
        {"method__name": "dino"},
        {"views__setting": "3"},
        {"data__path": "elsewhere"},
        {"data__image_size": 96},
        {"data__classes": ["a"]},
        {"data__share": 0.5},
        {"model__name": "vit_small"},
        {"model__patch_size": 16},
        {"model__weights_sha256": "2" * 64},
        {"seed": 1},
    ],
    ids=str,
)
def test_what_differs_in_more_than_the_add_on_is_no_baseline(other: dict[str, Any]) -> None:
    assert baseline(entry("none"), entry("ser", "ser")) == ("none", "")
    assert baseline(entry("none", **other), entry("ser", "ser")) == (None, "")
    assert baseline(entry("none"), entry("other", **other), entry("ser", "ser")) == ("none", "")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train__epochs", 20, "train.epochs 20 vs 10"),
        ("model__width", 32, "model.width 32 vs 64"),
        ("method__momentum", 0.9, "method.momentum 0.9 vs 0.99"),
        ("views__crop", 0.2, ""),  # the other does not say, as one of an earlier version
        ("train__log_steps", 7, ""),
    ],
)
def test_of_several_the_one_that_was_trained_alike_counts_and_else_it_is_said(
    key: str, value: Any, said: str
) -> None:
    other, ser = entry("other", **{key: value}), entry("ser", "ser")
    found, remarks = baseline(other, ser)
    assert found == "other"
    assert (said in remarks) if said else not remarks
    found, remarks = baseline(other, entry("none"), ser)
    assert found == ("none" if said else None)
    assert said or "several possible baselines (other, none)" in remarks


def test_a_control_is_compared_and_a_baseline_only_where_there_is_no_other() -> None:
    control, ser = entry("control", model__cls_after=3), entry("ser", "ser")
    assert baseline(control, ser) == ("control", "")
    assert baseline(control, entry("none"), ser) == ("none", "")
    assert baseline(entry("none"), control) == ("none", "")
    assert baseline(entry("other control", model__cls_after=9), control) == (None, "")
    assert baseline(ser, entry("none")) == (None, "")
