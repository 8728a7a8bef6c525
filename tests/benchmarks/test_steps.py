"""`ser bench step`: what is counted, what is timed, and what steps are held against."""

import json

import pytest
import torch

from sercli.benchmarks import steps
from sercli.benchmarks.counting import OperatorCount
from sercli.benchmarks.measure import peak_above, reset_peak
from sercli.benchmarks.record import Machine
from sercli.benchmarks.reference import ReferenceTimer
from sercli.benchmarks.step import StepTimer
from sercli.cli import app
from sercli.engine.runtime import runtime_for
from sercli.errors import UserError
from tests.support.recipes import recipe_of

CPU = Machine(runtime_for(torch.device("cpu")), 1)
NONE, SER = recipe_of("moco", "none", None, depth=4), recipe_of("moco", "ser", 2, depth=4)


def test_operators_that_compute_are_counted_with_their_bytes_and_views_are_not():
    values = torch.ones(4, 6, requires_grad=True)
    with OperatorCount() as seen:
        (values.T.reshape(6, 4)[1:] * 2).sum()
    assert seen.calls == {"mul": 1, "sum": 1}
    assert seen.num_bytes == 4 * (2 * 20 + 20 + 1)
    with OperatorCount() as seen:
        torch.empty(3).fill_(1.0)
        values.detach().mul_(2)
    assert seen.calls == {"fill_": 1, "mul_": 1}


def test_the_backward_pass_is_counted_too():
    values = torch.ones(5, requires_grad=True)
    with OperatorCount() as seen:
        values.exp().sum().backward()
    assert seen.calls["exp"] == seen.calls["sum"] == seen.calls["mul"] == 1


def test_peak_memory_is_that_of_what_is_freed_again():
    before = reset_peak("cpu")
    if before is None:
        pytest.skip("this system does not tell")
    torch.ones(16 * 2**20)
    assert 64e6 < peak_above(before, "cpu") < 100e6


@pytest.mark.parametrize("method", ["moco", "dino", "barlow-twins"])
def test_the_reference_step_is_the_same_step(method):
    recipe = recipe_of(method, "none", None, depth=2)
    ours, theirs = StepTimer(recipe, CPU.runtime), ReferenceTimer(recipe, CPU.runtime)
    for timer in (ours, theirs):
        timer.take()  # it moves the teacher, which is compared below
    found = dict(theirs.objective.named_parameters())
    for name, value in ours.objective.named_parameters():
        if value.grad is None:  # weights would have Adam's sign of what is rounding alone
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-3, msg=name)
        else:
            torch.testing.assert_close(found[name].grad, value.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_reference_takes_a_forward_for_each_view_and_loops():
    counts = {}
    for kind in (StepTimer, ReferenceTimer):
        with OperatorCount() as seen:
            kind(NONE, CPU.runtime).take()
        counts[kind] = seen.calls
    ours, theirs = counts[StepTimer], counts[ReferenceTimer]
    assert theirs["convolution"] == 2 * ours["convolution"]
    for fused in ("_foreach_lerp_", "_fused_adamw_"):
        assert fused in ours
        assert fused not in theirs


def test_steps_are_counted_alone_or_timed_in_turn():
    variants = [steps.Variant("none", NONE, "eager"), steps.Variant("ser", SER, "eager")]
    counted = steps.run(variants, machine=CPU, rounds=0, steps=1, tell=lambda _: None)
    rows = steps.tabled(counted, machine=CPU).to_json()["rows"]
    assert rows[0]["flops_ratio"] == rows[0]["operators_ratio"] == 1
    assert rows[1]["operators"] > rows[0]["operators"] > 100
    assert rows[1]["seconds"] is rows[1]["ratio"] is rows[1]["paper_seconds"] is None
    timed = steps.run(variants, machine=CPU, rounds=6, steps=2, tell=lambda _: None)
    table = steps.tabled(timed, machine=CPU)
    row = table.to_json()["rows"][1]
    # Tables of the group are made once for a grid, and kept.
    assert 0.9 * rows[1]["operators"] < row["operators"] <= rows[1]["operators"]
    assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
    assert row["images_per_s"] == pytest.approx(8 / row["seconds"])
    assert 0 < row["matmul_share"] < 1
    assert any("95 % interval" in note for note in table.notes)


def row_of(recipe, *, flops, again, seconds):
    return steps.StepRow(
        steps.Variant("x", recipe, "eager"),
        flops=flops,
        again=again,
        calls=1,
        kernels=None,
        num_bytes=1,
        peak_bytes=None,
        seconds=[seconds],
    )


def test_hours_of_the_paper_are_measured_or_follow_from_flops(monkeypatch):
    row = row_of(NONE, flops=8e9, again=0.0, seconds=2.0)
    assert steps._paper_seconds(row, 1e9) == pytest.approx(100 * 1_281_167 / 4)
    saving = row_of(NONE, flops=9e9, again=1e9, seconds=2.0)  # nothing is won by computing twice
    assert steps._paper_seconds(saving, 1e9) == steps._paper_seconds(row, 1e9)
    data = NONE.data.model_copy(update={"path": "/data/imagenet"})
    monkeypatch.setattr("sercli.benchmarks.steps.find_kind", lambda _: None)
    row.variant = steps.Variant("x", NONE.model_copy(update={"data": data}), "eager")
    assert steps._paper_seconds(row, 1e9) == pytest.approx(100 * 1_281_167 / 4)  # 4 images/s


def test_modes_and_settings_go_where_they_can():
    assert steps.parse_modes(None, cuda=True) == steps.MODES
    assert steps.parse_modes("reference,eager", cuda=False) == ("eager", "reference")
    with pytest.raises(UserError, match="'fast' is none; known: eager, compiled, reference"):
        steps.parse_modes("fast", cuda=False)
    variants = steps.variants_of(
        ["shapes/moco-none", "shapes/moco-ser"],
        modes=("eager", "reference"),
        batch_size=16,
        settings=("addon.fraction=0.25",),
    )
    assert [v.name for v in variants] == [
        "shapes/moco-none", "shapes/moco-none, reference", "shapes/moco-ser",
    ]  # fmt: skip
    assert variants[2].recipe.addon.fraction == 0.25
    with pytest.raises(UserError, match="without an add-on"):
        steps.variants_of(["shapes/moco-ser"], modes=("reference",), batch_size=256)


def test_the_command_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    words = "bench step --count-only --batch-size 8 --set addon.fraction=0.25 --json"
    app([*words.split(), str(tmp_path / "s.json")], prog_name="ser", standalone_mode=False)
    (table,) = json.loads((tmp_path / "s.json").read_text())["tables"]
    assert [row["step"] for row in table["rows"]] == ["shapes/moco-none", "shapes/moco-ser"]
    assert f"{table['rows'][1]['operators']:,}" in capsys.readouterr().out
