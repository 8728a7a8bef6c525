"""The stepper by itself, around a line of two parameters: what all trainings share."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sercli import distributed
from sercli.engine import checkpoint
from sercli.engine.agreement import Agreement
from sercli.engine.pace import Pace
from sercli.engine.state import ModuleState
from sercli.engine.stepper import MAX_NON_FINITE, Stepper
from sercli.errors import Interrupted, Preempted, RunFailed, UserError
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support.processes import run_ranks

TOTAL = 12
PACE = Pace(
    total_steps=TOTAL,
    batch_size=4,
    epoch_at=lambda step: step / 3,
    lr_at=lambda step: 0.1 / (1 + step),
    log_steps=1,
    save_steps=100,
)
TIMES = ("images_per_s", "data_wait")


class Line(nn.Module):
    """y = slope · x + offset."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.slope * x + self.offset


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Training:
    """A line that learns the sine of numbers that follow from the step.

    Args:
        path: Of the run directory.
        pace: What differs from PACE.
        options: Of the stepper.
    """

    def __init__(self, path, *, identity="one", options=(), **pace) -> None:
        self.line = Line()
        self.optimiser = torch.optim.AdamW(self.line.parameters(), lr=0.0, fused=True)
        self.run = RunDir(path)
        self.state = ModuleState(self.run, self.line, self.optimiser, identity={"id": identity})
        self.clock, self.request = Clock(), StopRequest()
        self.stepper = Stepper(
            dataclasses.replace(PACE, **pace), self.state, run=self.run,
            optimiser=self.optimiser, clock=self.clock, **dict(options),
        )  # fmt: skip
        self.stepper.attend(self.request)

    def train(self, *, before=lambda _step: None, spoil=lambda _step: 1.0, facts=None, flags=None):
        """From where it is to the end; the parameters before each step, by step."""
        first, seen = self.stepper.resume(pytest.fail), {}
        steps = range(first, self.stepper.pace.total_steps)
        for step in self.stepper.waiting(steps):
            seen[step] = self.numbers()
            before(step)
            self.stepper.set_lr()
            x = torch.arange(4.0) + step
            fit = (self.line(x) - x.sin()).square().mean() * spoil(step)
            length = 0.1 * self.line.slope.square()
            self.optimiser.zero_grad()
            (fit + length).backward()
            norm = torch.stack([p.grad for p in self.line.parameters()]).norm()
            self.stepper.agree(
                {"fit": fit, "length": length}, norm, images=[f"{step}a", f"{step}b"], flags=flags
            )
            self.optimiser.step()
            self.stepper.done(**(facts or {}))
        seen[self.stepper.step] = self.numbers()
        return seen

    def numbers(self):
        return [p.item() for p in self.line.parameters()]

    def rows(self):
        return [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in self.run.read_metrics()
        ]


def stop_at(training, step, kind="preempted"):
    """Raise the flag before a step (from 0) is agreed on."""
    return lambda now: setattr(training.request, kind, now == step)


# -- rows -----------------------------------------------------------------------------------------


def test_a_row_names_its_values(tmp_path):
    training = Training(tmp_path / "run", total_steps=1)
    line = Line()
    x = torch.arange(4.0)
    fit = (line(x) - x.sin()).square().mean()
    length = 0.1 * line.slope.square()
    (fit + length).backward()
    norm = torch.stack([line.slope.grad, line.offset.grad]).norm()
    training.train(facts={"momentum": 0.5})
    (row,) = training.run.read_metrics()
    assert row == {
        "step": 1, "epoch": 1 / 3, "loss": fit.item() + length.item(), "fit": fit.item(),
        "length": length.item(), "lr": 0.1, "grad_norm": norm.item(), "skipped": False,
        "images_per_s": row["images_per_s"], "data_wait": 0.0, "momentum": 0.5,
    }  # fmt: skip


def test_a_loss_of_its_own_is_not_summed_anew():
    agreement = Agreement.between_ranks(
        7, {"loss": torch.tensor(3.0), "part": torch.tensor(1.0)}, None, {"preempted": True},
        images=(), device=None,
    )  # fmt: skip
    agreed = agreement.read()
    assert (agreed.losses, agreed.gradient_norm) == ({"loss": 3.0, "part": 1.0}, None)
    assert (agreed.step, agreed.flags, agreement.bad.item()) == (7, {"preempted": 1.0}, 0.0)


@pytest.mark.parametrize(
    ("losses", "norm", "named"),
    [
        ({"loss": "nan", "inv": "nan", "equiv": "inf"}, "nan", "inv"),
        ({"loss": "inf", "inv": 1, "equiv": 1}, 1, "loss"),
        ({"loss": 1, "inv": 1}, "-inf", "gradient norm"),
    ],
)
def test_what_is_not_finite_is_named(losses, norm, named):
    tensors = {name: torch.tensor(float(value)) for name, value in losses.items()}
    agreement = Agreement.between_ranks(
        1, tensors, torch.tensor(float(norm)), {}, images=(), device=None
    )
    assert agreement.read().culprits[0] == named
    assert agreement.bad.item() == 1


def test_rates_are_those_since_the_last_row(tmp_path):
    training = Training(tmp_path / "run", total_steps=4, log_steps=2)

    def slowly(step):
        training.clock.now += (1.0, 3.0, 2.0, 2.0)[step]

    training.train(before=slowly)
    assert [(row["step"], row["images_per_s"]) for row in training.run.read_metrics()] == [
        (2, 8 / 4),
        (4, 8 / 4),
    ]


def test_waiting_for_batches_is_a_share_of_the_time(tmp_path):
    training = Training(tmp_path / "run", total_steps=1)

    def batches():
        training.clock.now += 1.0
        yield 0

    for _ in training.stepper.waiting(batches()):
        training.clock.now += 3.0
        training.stepper.agree({"fit": torch.tensor(1.0)})
        training.stepper.done()
    (row,) = training.run.read_metrics()
    assert (row["data_wait"], row["images_per_s"]) == (0.25, 1.0)
    assert training.stepper.train_seconds == 4.0


def test_what_loaders_spend_is_in_the_row_by_shares(tmp_path):
    training = Training(tmp_path / "run", total_steps=4, log_steps=2)
    spent = [(1.0, 2.0, 1.0, 0.0), (0.0, 3.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 3.0)]
    training.train(before=lambda step: training.stepper.loaded(spent[step]))
    names = ("data_read", "data_decode", "data_crop", "data_idle")
    assert [tuple(row[name] for name in names) for row in training.run.read_metrics()] == [
        (1 / 8, 5 / 8, 1 / 8, 1 / 8),
        (0.0, 0.0, 1 / 4, 3 / 4),
    ]


def test_measurements_have_rows_of_their_own(tmp_path):
    options = {"measure": lambda: {"top1": 50.0}}
    training = Training(tmp_path / "run", log_steps=5, measure_steps=4, options=options)
    training.train()
    rows = training.rows()
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 12]
    assert [row["step"] for row in rows if row.get("top1") == 50.0] == [4, 8, 12]


# -- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["preempted", "interrupted"])
def test_stopped_and_resumed_is_bit_equal(tmp_path, kind, late):
    whole = Training(tmp_path / "whole", late=late)
    expected = whole.train()
    path = tmp_path / "run"
    stopped = Training(path, late=late)
    error = {"preempted": Preempted, "interrupted": Interrupted}[kind]
    honoured = 6 if late else 5
    with pytest.raises(error, match=rf"stopped after step {honoured} of 12; the same command"):
        stopped.train(before=stop_at(stopped, 4, kind))
    assert stopped.run.checkpoint_steps() == [honoured]
    resumed = Training(path, late=late)
    found = resumed.train()
    assert sorted(found) == list(range(honoured, TOTAL + 1))
    assert all(found[step] == expected[step] for step in found)
    assert resumed.rows() == whole.rows()


def test_seconds_of_all_attempts_add_up(tmp_path):
    path = tmp_path / "run"
    for expected in (5.0, 5.0 + (TOTAL - 5)):
        training = Training(path)

        def one_second(step, training=training):
            training.clock.now += 1.0
            training.request.preempted = step == 4

        try:
            training.train(before=one_second)
        except Preempted:
            training.clock.now += 1000.0  # nobody trains meanwhile
        assert training.stepper.train_seconds == expected
        assert checkpoint.load_latest(training.run, pytest.fail)["train_seconds"] == expected


def test_rows_after_the_checkpoint_are_cut(tmp_path):
    path = tmp_path / "run"
    killed = Training(path, save_steps=4)

    def kill(step):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.train(before=kill)
    assert [row["step"] for row in killed.rows()] == list(range(1, 8))
    again = Training(path)
    assert again.stepper.resume(pytest.fail) == 4
    assert [row["step"] for row in again.rows()] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    Training(tmp_path / "run", total_steps=2).train()
    with pytest.raises(UserError, match=r"another training.*--restart"):
        Training(tmp_path / "run", identity="two").stepper.resume(pytest.fail)


def test_a_checkpoint_is_read_as_it_has_always_been_written(tmp_path):
    """Named here once more, so that no change of the code changes the format unseen."""
    donor = Training(tmp_path / "donor", total_steps=3)
    donor.train()
    run = RunDir(tmp_path / "run")
    trained = {"slope": torch.tensor(7.0), "offset": torch.tensor(8.0)}
    state = {"step": 3, "train_seconds": 2.5, "identity": {"id": "one"}, "trained": trained,
             "optimiser": donor.optimiser.state_dict()}  # fmt: skip
    checkpoint.save(run, 3, state)
    training = Training(tmp_path / "run")
    assert training.stepper.resume(pytest.fail) == 3
    assert (training.numbers(), training.stepper.train_seconds) == ([7.0, 8.0], 2.5)
    assert torch.load(donor.run.checkpoint(3), weights_only=True).keys() == state.keys()


# -- saves ----------------------------------------------------------------------------------------


def saves(training, monkeypatch, **given):
    """The steps whose end is saved."""
    steps, save = [], training.state.save
    monkeypatch.setattr(
        training.state, "save", lambda position: (steps.append(position.step), save(position))
    )
    training.train(**given)
    return steps


def test_saves_by_steps_and_at_the_end(tmp_path, monkeypatch):
    assert saves(Training(tmp_path / "run", save_steps=5), monkeypatch) == [5, 10, 12]


def test_the_end_is_not_saved_where_it_need_not_be(tmp_path, monkeypatch):
    training = Training(tmp_path / "run", save_steps=5, save_at_end=False)
    assert saves(training, monkeypatch) == [5, 10]


@pytest.mark.parametrize(
    ("late", "unit", "expected"),
    [
        # 10 s a step: 25 s have passed since the beginning at the third, since a save likewise.
        (False, 1, [3, 6, 9, 12]),
        (False, 4, [4, 8, 12]),
        (True, 1, [4, 8, 12]),
    ],
)
def test_saves_by_time(tmp_path, monkeypatch, late, unit, expected):
    pace = {"save_steps": None, "save_seconds": 25.0, "save_unit": unit, "late": late}
    training = Training(tmp_path / "run", **pace)

    def pass_time(_step):
        training.clock.now += 10.0

    assert saves(training, monkeypatch, before=pass_time) == expected


def test_nothing_is_due_before_its_time(tmp_path, monkeypatch):
    training = Training(tmp_path / "run", save_steps=None, save_seconds=25.0)

    def pass_time(step):
        training.clock.now += 25.0 if step == 0 else 0.0  # exactly due is not yet over

    assert saves(training, monkeypatch, before=pass_time) == [12]


# -- stops ----------------------------------------------------------------------------------------


def test_a_stop_at_a_saved_end_changes_nothing(tmp_path):
    training = Training(tmp_path / "run")
    training.train(before=stop_at(training, TOTAL - 1))
    assert training.run.checkpoint_steps() == [TOTAL]


def test_a_stop_at_an_end_that_is_not_saved_saves_it(tmp_path):
    training = Training(tmp_path / "run", save_at_end=False)
    with pytest.raises(Preempted, match="after step 12 of 12"):
        training.train(before=stop_at(training, TOTAL - 1))
    assert training.run.checkpoint_steps() == [TOTAL]


def test_what_is_judged_ends_the_run(tmp_path):
    def judge(agreed):
        if agreed.flags["unreadable"]:
            raise RunFailed(f"step {agreed.step} of {agreed.images[0]}")

    training = Training(tmp_path / "run", options={"judge": judge}, late=True, total_steps=1)
    with pytest.raises(RunFailed, match="step 1 of 0a"):  # the last one, too, though read late
        training.train(flags={"unreadable": True})
    Training(tmp_path / "other", options={"judge": judge}).train(flags={"unreadable": False})


# -- what is not finite ---------------------------------------------------------------------------


def spoiled(*steps):
    return lambda step: float("nan") if step in steps else 1.0


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_is_not_finite_is_skipped(tmp_path, late):
    training = Training(tmp_path / "run", late=late)
    seen = training.train(spoil=spoiled(3))
    assert seen[3] == seen[4]
    assert seen[4] != seen[5]
    rows = training.rows()
    assert [row["step"] for row in rows if row["skipped"]] == [4]
    assert (rows[3]["fit"], rows[3]["loss"], rows[3]["grad_norm"]) == (None, None, None)
    assert rows[3]["length"] is not None


@pytest.mark.parametrize("late", [False, True])
def test_three_in_a_row_end_the_run(tmp_path, late):
    training = Training(tmp_path / "run", late=late, options={"remedy": "less"})
    message = r"fit was not finite in 3 steps in a row, .* step 7 \(images 6a, 6b\); .* try less"
    with pytest.raises(RunFailed, match=message):
        training.train(spoil=spoiled(4, 5, 6))
    assert all(value == value for value in training.numbers())
    assert not training.run.checkpoint_steps()


@pytest.mark.parametrize("late", [False, True])
def test_three_in_all_do_not_end_the_run(tmp_path, late):
    training = Training(tmp_path / "run", late=late)
    training.train(spoil=spoiled(1, 2, 4, 5, 7, 9, 10))
    assert sum(row["skipped"] for row in training.rows()) == 7
    assert training.stepper.step == TOTAL


@pytest.mark.parametrize("late", [False, True])
def test_the_last_three_steps_count_too(tmp_path, late):
    training = Training(tmp_path / "run", late=late)
    with pytest.raises(RunFailed, match="step 12"):
        training.train(spoil=spoiled(*range(TOTAL - MAX_NON_FINITE, TOTAL)))


# -- several processes ----------------------------------------------------------------------------


def in_process(rank: int, folder: str) -> None:
    """What each of two does: rank 1 alone is preempted, rank 0 alone has the time."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                            world_size=2, timeout=timedelta(seconds=120))  # fmt: skip
    found = {}
    for late in (False, True):
        training = Training(Path(folder) / f"preempted-{late}", late=late)
        if rank == 0:
            (Path(folder) / f"preempted-{late}").mkdir()
        dist.barrier()
        with pytest.raises(Preempted) as caught:
            training.train(before=stop_at(training, 4) if rank else lambda _step: None)
        found[f"preempted-{late}"] = str(caught.value)

    training = Training(Path(folder) / "due", save_steps=None, save_seconds=25.0)
    steps = []
    save = training.stepper.save
    training.stepper.save = lambda: (steps.append(training.stepper.step), save())

    def pass_time(_step):
        training.clock.now += 10.0 if rank == 0 else 1000.0

    training.train(before=pass_time)
    found["due"] = steps

    training = Training(Path(folder) / "mean")
    bad = spoiled(2) if rank else spoiled()
    seen = training.train(spoil=lambda step: bad(step) * (1 + rank))
    found["skipped"] = seen[2] == seen[3] and seen[3] != seen[4]
    found["fit"] = Agreement.between_ranks(
        1, {"fit": torch.tensor(1.0 + rank)}, None, {"x": rank == 1}, images=(), device=None
    ).read()
    found["nothing"] = Agreement.between_ranks(
        1, {}, None, {"x": True}, images=(), device=torch.device("cpu")
    ).read()
    torch.save(found, f"{folder}/found-{rank}.pt")
    assert distributed.world_size() == 2
    dist.destroy_process_group()


@pytest.mark.run
def test_two_processes_agree(tmp_path):
    run_ranks(in_process, str(tmp_path))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=False)
        assert found["preempted-False"].startswith("stopped after step 5 of 12")
        assert found["preempted-True"].startswith("stopped after step 6 of 12")
        assert found["due"] == [3, 6, 9, 12]  # by the clock of rank 0
        assert found["skipped"]
        assert (found["fit"].losses, found["fit"].flags) == ({"fit": 1.5}, {"x": 1.0})
        assert (found["nothing"].culprits, found["nothing"].flags) == ((), {"x": 2.0})
    assert RunDir(tmp_path / "preempted-False").checkpoint_steps() == [5]
    rows = list(RunDir(tmp_path / "mean").read_metrics())
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1))  # by one rank alone
