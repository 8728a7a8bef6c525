"""Rows are labelled by the titles in run.json, else by the registry, else by plain names."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sercli.errors import UserError
from sercli.report import compare_runs
from sercli.report.compare.baselines import baseline_candidates, training_differences
from sercli.report.compare.entries import single_entries
from sercli.report.compare.runs import read_runs
from sercli.runs.run_dir import RunDir


def run_of(path: Path, method: str, addon: str, sections: Any = None, **record: Any) -> Path:
    recipe = {**(sections or {}), "method": {"name": method}, "addon": {"name": addon, "layer": 3}}
    facts = {"status": "done", "timings": {"train_seconds": 1.0}, **record}
    RunDir.create(path, recipe=yaml.safe_dump(recipe), run=facts)
    return path


@pytest.mark.parametrize(
    ("names", "titles", "label"),
    [
        (("moco", "ser"), {"method": "MoCo-v3", "addon": "SER"}, "MoCo-v3 + SER (layer 3)"),
        (("toy", "mine"), {"method": "Toy", "addon": "My own"}, "Toy + My own (layer 3)"),
        (("dino", "essl"), None, "DINO + E-SSL (layer 3)"),
        (("toy", "mine"), None, "toy + mine (layer 3)"),
        (("barlow-twins", "none"), {"method": "Barlow Twins", "addon": "none"}, "Barlow Twins"),
    ],
)
def test_labels(
    tmp_path: Path, names: tuple[str, str], titles: dict[str, str] | None, label: str
) -> None:
    record = {} if titles is None else {"titles": titles}
    runs = read_runs([run_of(tmp_path / "run", *names, **record)])
    assert [entry.label for entry in single_entries(runs)] == [label]


def test_rows_are_in_the_order_of_the_registry_and_the_unknown_come_last(tmp_path: Path) -> None:
    pairs = [
        ("toy", "none"),
        ("moco", "zoo"),
        ("any", "none"),
        ("dino", "none"),
        ("moco", "ser"),
        ("moco", "none"),
    ]
    paths = [run_of(tmp_path / f"{m}-{a}", m, a) for m, a in pairs]
    entries = single_entries(read_runs(paths))
    assert [Path(entry.run.path).name for entry in entries] == [
        *("moco-none", "moco-ser", "moco-zoo", "dino-none", "any-none", "toy-none")
    ]


def test_a_run_on_a_part_of_its_images_says_so_and_is_no_baseline_of_one_on_all(
    tmp_path: Path,
) -> None:
    data = {"path": "set", "classes": ["disc", "ring"], "share": 0.01}
    part, before = {"data": data}, {"data": {"path": "set"}}  # `before` knew no parts
    paths = [
        run_of(tmp_path / "part", "moco", "none", part),
        run_of(tmp_path / "ser-part", "moco", "ser", part),
        run_of(tmp_path / "ser", "moco", "ser", {"data": {**data, "classes": None, "share": 1.0}}),
        run_of(tmp_path / "whole", "moco", "none", before),
    ]
    entries = {Path(e.run.path).name: e for e in single_entries(read_runs(paths))}
    assert {name: entry.label for name, entry in entries.items()} == {
        "part": "MoCo-v3 (2 classes, 1 % of images)",
        "ser-part": "MoCo-v3 + SER (layer 3, 2 classes, 1 % of images)",
        "ser": "MoCo-v3 + SER (layer 3)",
        "whole": "MoCo-v3",
    }
    everyone = list(entries.values())
    for name, baseline in (("ser", "whole"), ("ser-part", "part")):
        assert baseline_candidates(entries[name], everyone) == [entries[baseline]]
    assert training_differences(entries["part"].run, entries["ser"].run) == [
        "data.classes disc, ring vs all",
        "data.share 0.01 vs 1.0",
    ]
    assert not training_differences(entries["whole"].run, entries["ser"].run)


def test_what_changes_no_number_is_no_difference_of_training(tmp_path: Path) -> None:
    sections = [
        {"train": {"epochs": epochs, "monitor_epochs": seen, "keep_epochs": seen, "log_steps": 3}}
        for epochs, seen in ((1, 0), (1, 2), (3, 0))
    ]
    one, same, other = read_runs(
        [run_of(tmp_path / str(i), "moco", "none", one) for i, one in enumerate(sections)]
    )
    assert training_differences(one, same) == []
    assert training_differences(one, other) == ["train.epochs 1 vs 3"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            [{"step": 4, "when": "2026-01-01", "what": ["train.lr 0.1 → 0.5", "12 more images"]}],
            "from step 4 on, train.lr 0.1 → 0.5; 12 more images",
        ),
        ([{"step": 1, "what": ["a"]}, {"what": 5}], "step 1 on, a. from step None on, 5"),
        (None, ""),
        ([], ""),
    ],
)
def test_a_run_that_became_another_is_said(tmp_path: Path, changed: Any, said: str) -> None:
    mixed = run_of(tmp_path / "mixed", "moco", "ser", changed=changed)
    table = compare_runs([run_of(tmp_path / "plain", "moco", "none"), mixed])
    notes = [note.text for note in table.notes if "--allow-changed" in note.text]
    assert len(notes) == bool(said)
    assert all(str(mixed) in note and said in note for note in notes)


def test_a_link_in_a_circle_is_no_run(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    run = run_of(tmp_path / "plain", "moco", "none")
    for paths, options in (([circle], {}), ([run, circle], {}), ([run], {"baseline": circle})):
        with pytest.raises(UserError, match="circle"):
            compare_runs(paths, **options)


def test_runs_that_began_from_different_weights_say_from_which(tmp_path: Path) -> None:
    paths = [
        run_of(tmp_path / name, "moco", "ser", {"model": {"weights_sha256": sha256}})
        for name, sha256 in (("a", "1" * 64), ("b", "2" * 64), ("c", None))
    ]
    assert [entry.label for entry in single_entries(read_runs(paths))] == [
        "MoCo-v3 + SER (layer 3, from weights 111111111111)",
        "MoCo-v3 + SER (layer 3, from weights 222222222222)",
        "MoCo-v3 + SER (layer 3)",
    ]
