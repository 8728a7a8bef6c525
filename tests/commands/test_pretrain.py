"""`ser pretrain` does once what it has to do: it resolves, opens and builds no more than needed."""

import json
from collections import Counter

import pytest

from sercli.data import registry
from sercli.engine import flops, plan, pretraining, trainer
from sercli.families import resolve
from sercli.objective import Objective
from sercli.recipe import files
from sercli.runs.run_dir import RunDir
from tests.support.command_line import run_in_process
from tests.support.training import SER, TINY

SHORT = ("train.max_steps=2", "train.monitor_epochs=0.1")


@pytest.fixture
def calls(monkeypatch):
    """How often recipes are resolved, splits opened, and objectives built."""
    counted = Counter()
    resolve, kind_of, build = files.resolve, registry.kind_of, Objective.__init__

    def resolving(*given, **options):
        counted["resolve"] += 1
        return resolve(*given, **options)

    class Opening:
        def __init__(self, path):
            self.kind = kind_of(path)

        def __getattr__(self, name):
            return getattr(self.kind, name)

        def open(self, path, split, **options):
            counted[f"open {split}"] += 1
            return self.kind.open(path, split, **options)

    def building(objective, recipe):
        counted["build"] += 1
        build(objective, recipe)
        counted["build for real"] += not objective.encoder.pos_embed.is_meta

    monkeypatch.setattr(files, "resolve", resolving)
    monkeypatch.setattr(registry, "kind_of", Opening)
    monkeypatch.setattr(Objective, "__init__", building)
    monkeypatch.setattr(flops, "_counts", {})  # of earlier tests
    return counted


def command(path, settings, *options):
    return ["pretrain", f"--out={path}", *options, *(x for s in settings for x in ("--set", s))]


@pytest.mark.parametrize(
    ("settings", "options", "built"),
    [
        ((*SER, *SHORT), (), 3),
        ((*TINY, *SHORT), ("--addon=none",), 2),
        # Without the term it is the very run without the add-on: nothing more to build.
        ((*TINY, *SHORT), ("--addon=augself",), 2),
    ],
)
def test_a_run_resolves_and_opens_once_and_builds_what_it_must(
    tmp_path, monkeypatch, capsys, calls, settings, options, built
):
    path = tmp_path / "run"
    status, said = run_in_process(command(path, settings, *options), monkeypatch, capsys)
    assert status == 0, said
    assert RunDir.open(path).read_run()["status"] == "done"
    expected = {"resolve": 1, "open train": 1, "open val": 1, "build": built, "build for real": 1}
    assert calls == expected


def test_a_resumed_run_resolves_and_opens_once_and_builds_once(
    tmp_path, monkeypatch, capsys, calls
):
    path = tmp_path / "run"
    run_in_process(command(path, (*SER, *SHORT)), monkeypatch, capsys)
    RunDir.open(path).update_run(status="preempted")
    calls.clear()
    status, said = run_in_process(["pretrain", f"--resume={path}"], monkeypatch, capsys)
    assert status == 0, said
    assert calls["resolve"] == calls["open train"] == calls["build"] == 1


def test_the_table_comes_before_flops_are_counted_and_both_before_training(
    tmp_path, monkeypatch, capsys
):
    path, events = tmp_path / "run", []

    def note(module, name, what):
        function = getattr(module, name)

        def noting(*given, **options):
            found = function(*given, **options)
            events.append((what, "flops" in RunDir(path).read_run()))
            return found

        monkeypatch.setattr(module, name, noting)

    note(pretraining, "print_plan", "table")
    note(pretraining, "count_flops", "count")
    note(pretraining, "print_flops", "flops")
    note(trainer.Trainer, "_train_step", "step")
    monkeypatch.setattr("sys.argv", ["ser"])
    status, said = run_in_process(command(path, (*SER, *SHORT)), monkeypatch, capsys)
    assert status == 0, said
    assert events == [
        ("table", False), ("count", False), ("flops", True), ("step", True), ("step", True),
    ]  # fmt: skip
    told = RunDir.open(path).read_run()
    assert set(told["flops"]) == {
        "step", "step_again", "step_none", "step_weight0", "ratio_none", "ratio_weight0",
    }  # fmt: skip
    assert told["parameters"]["trainable"] > told["parameters"]["encoder"] > 10_000
    assert told["memory"]["resident_gib"] > told["memory"]["counted_gib"] / 2
    json.dumps(told)


def test_a_run_is_trained_by_what_its_recipe_yaml_says(tmp_path):
    """What `prepare` hands on is what another process would read."""
    for name in ("shapes/moco-ser", "shapes/dino-ser-crops", "shapes/barlow-twins-essl"):
        resolved = resolve(name, ("train.lr=1.2345678e-3",), {})
        source = pretraining.training_source(resolved.recipe)
        made = plan.make_plan(resolved.recipe, source)
        run = pretraining.create_run(resolved, made, tmp_path / name.replace("/", "-"), source)
        assert pretraining.read_recipe(run) == resolved.recipe


def test_flops_that_were_not_counted_when_it_was_stopped_are_counted_by_the_next(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "run"

    def stopped(*_given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "count_flops", stopped)
        status, _ = run_in_process(command(path, (*SER, *SHORT)), monkeypatch, capsys)
    assert status == 130
    assert RunDir.open(path).read_run()["status"] == "interrupted"
    status, said = run_in_process(["pretrain", f"--resume={path}"], monkeypatch, capsys)
    assert status == 0, said
    run = RunDir.open(path)
    assert run.read_run()["flops"] == flops.count_flops(pretraining.read_recipe(run)).to_json()
