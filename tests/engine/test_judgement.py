"""Who is found to lag, with a made-up store and a made-up clock."""

import dataclasses

import pytest

from sercli.engine.bounds import DEFAULTS, collective_seconds, read_bounds
from sercli.engine.judgement import GRACE, Judge, Report, Seen
from sercli.errors import UserError
from sercli.stages import STAGES

BOUNDS = {"start": 50, "compile": 60, "step": 20, "save": 100, "monitor": 80, "evaluate": 70}


class Processes:
    """Three processes as rank `rank` sees them, a look a second; each beats unless stopped."""

    def __init__(self, rank=0, *, world=3, kept_by_first=True, states=None) -> None:
        self.rank, self.now, self.rounds, self.lost = rank, 0.0, 0, False
        self.now_is = {
            r: Report(r, f"host{r}", "one machine" if states else f"machine {r}", 100 + r, turn=5,
                      stage="step", step=7)
            for r in range(world)
        }  # fmt: skip
        self.stopped = set()
        self.states = states or {}
        self.judge = Judge(
            rank, world, BOUNDS, interval=1.0, kept_by_first=kept_by_first,
            state_of=lambda report: self.states.get(report.rank, ""),
        )  # fmt: skip

    def set(self, rank, **fields):
        self.now_is[rank] = dataclasses.replace(self.now_is[rank], **fields)

    def after(self, seconds, *, moving=(), heard=True, gap=1.0):
        """The first verdict of so many seconds, and how many they were; or None."""
        for second in range(seconds):
            self.now += gap
            for rank, report in self.now_is.items():
                if rank not in self.stopped:
                    self.set(rank, beat=report.beat + 1)
            for rank in moving:
                report = self.now_is[rank]
                self.set(rank, moves=report.moves + 1)
            self.rounds += heard
            seen = Seen(dict(self.now_is), self.rounds, lost=self.lost)
            verdict = self.judge.look(self.now, self.now_is[self.rank], seen)
            if verdict is not None:
                return verdict, second
        return None


@pytest.mark.parametrize("stage", STAGES)
def test_who_stands_still_for_longer_than_its_stage_is_named(stage):
    ranks = Processes()
    for rank in (0, 1):
        ranks.set(rank, turn=6, stage="step")
    ranks.set(2, stage=stage, doing="reading", step=8)
    verdict, seconds = ranks.after(400)
    assert seconds == pytest.approx(BOUNDS[stage] + 1, abs=1)
    assert (verdict.culprits, verdict.writer) == ((2,), 0)
    assert "rank 2 (host2, pid 102) has stood still" in verdict.text
    assert f"after step 8 ({stage}: reading)" in verdict.text
    assert f"{stage}={BOUNDS[stage]}" in verdict.text


def test_while_any_sign_of_it_comes_nobody_is_accused():
    ranks = Processes()
    ranks.set(0, turn=6)
    ranks.set(1, turn=6)
    assert ranks.after(500, moving=[2]) is None


def test_rank_0_saves_for_longer_than_a_step_while_the_others_wait():
    for rank in range(3):
        ranks = Processes(rank)
        ranks.set(0, stage="save")
        for waiting in (1, 2):
            ranks.set(waiting, turn=6, stage="save")
        assert ranks.after(99) is None
        verdict, _ = ranks.after(30)
        assert (verdict.culprits, verdict.writer) == ((0,), 1)


def test_who_lags_waits_for_the_others_to_say_so():
    ranks = Processes(2)
    ranks.set(0, turn=6)
    ranks.set(1, turn=6)
    verdict, seconds = ranks.after(100)
    assert (verdict.culprits, verdict.writer) == ((2,), 0)
    assert seconds == pytest.approx(BOUNDS["step"] + min(GRACE, BOUNDS["step"]), abs=2)


def test_a_stopped_process_is_named_even_if_all_are_at_the_same_place():
    ranks = Processes(states={1: "stopped"})
    ranks.stopped = {1}
    verdict, _ = ranks.after(100)
    assert (verdict.culprits, verdict.writer) == ((1,), 0)
    assert "stopped by a signal" in verdict.text


def test_all_at_the_same_place_are_all_named():
    verdict, _ = Processes(1).after(100)
    assert (verdict.culprits, verdict.writer) == ((0, 1, 2), 0)


def test_a_process_that_was_stopped_itself_accuses_nobody():
    """It finds its clock far ahead; what it did not watch does not count."""
    ranks = Processes(0)
    ranks.set(0, turn=6)
    assert ranks.after(3) is None
    assert ranks.after(1, gap=10_000.0) is None
    assert ranks.after(100, moving=[0, 1, 2]) is None


def test_clocks_that_run_slowly_count_less_and_never_more():
    ranks = Processes(0)
    for rank in (0, 1):
        ranks.set(rank, turn=6)
    # Looks that come every 100 s count as three of a second each.
    assert ranks.after(6, gap=100.0) is None
    assert ranks.after(6, gap=100.0) is not None


def test_one_whose_reports_are_lost_is_not_accused_while_the_others_go_on():
    ranks = Processes(0)
    ranks.stopped = {2}
    for turn in range(7, 200):
        ranks.set(0, turn=turn)
        ranks.set(1, turn=turn)
        assert ranks.after(1) is None


def test_a_process_that_failed_is_quoted_after_a_while():
    ranks = Processes(1)
    ranks.set(2, end="the disk is full")
    verdict, seconds = ranks.after(100)
    assert seconds == pytest.approx(GRACE, abs=1)
    assert "rank 2 (host2, pid 102) failed: the disk is full" in verdict.text
    assert ranks.judge.suspect() == "rank 2 (host2, pid 102) failed: the disk is full"


def test_a_process_that_died_on_this_machine_is_seen_at_once():
    ranks = Processes(0, states={2: "gone"})
    assert ranks.after(1) is None
    assert "rank 2 (host2, pid 102) is gone" in ranks.judge.suspect()
    verdict, _ = ranks.after(100)
    assert (verdict.culprits, verdict.writer) == ((2,), 0)


def test_a_save_is_ended_before_this_process_leaves():
    ranks = Processes(0, states={2: "gone"})
    ranks.set(0, stage="save")
    _, seconds = ranks.after(300)
    assert seconds == pytest.approx(BOUNDS["save"], abs=2)


def test_those_who_left_in_order_are_no_loss_while_this_one_goes_on():
    ranks = Processes(1)
    for rank in (0, 2):
        ranks.set(rank, end="")
    assert ranks.after(200, moving=[1]) is None
    verdict, _ = ranks.after(100)
    assert "has left while others wait" in verdict.text


@pytest.mark.parametrize("kept_by_first", [True, False])
def test_a_store_that_is_lost(kept_by_first):
    ranks = Processes(2, kept_by_first=kept_by_first)
    ranks.after(3)
    ranks.lost = True
    assert ranks.after(300, moving=[2], heard=False) is None  # the training goes on
    verdict, seconds = ranks.after(100, heard=False)
    assert seconds == pytest.approx(GRACE if kept_by_first else BOUNDS["step"], abs=2)
    assert (verdict.culprits, verdict.writer) == ((0,), 1)
    assert "rank 0 (host0, pid 100) is gone" in verdict.text


def test_a_store_that_does_not_answer():
    """Rank 0 is stopped, or its machine is off: its own stage says how long that may be."""
    ranks = Processes(1)
    ranks.set(0, stage="save")
    ranks.after(3)
    verdict, seconds = ranks.after(300, heard=False)
    assert seconds == pytest.approx(BOUNDS["save"], abs=3)
    assert verdict.culprits == (0,)
    assert "rank 0 (host0, pid 100) has not answered" in verdict.text


def test_who_never_said_anything_is_at_the_start():
    ranks = Processes(0)
    del ranks.now_is[2]
    verdict, seconds = ranks.after(100)
    assert verdict.culprits == (2,)
    assert seconds == pytest.approx(BOUNDS["start"], abs=2)


# -- bounds ---------------------------------------------------------------------------------------


def test_bounds_are_those_given_and_else_the_defaults():
    assert read_bounds("") == DEFAULTS
    assert read_bounds("step=30, save=1e3") == {**DEFAULTS, "step": 30, "save": 1000}
    assert set(DEFAULTS) == set(STAGES)


def test_torch_waits_for_longer_than_any_bound():
    assert collective_seconds(DEFAULTS) == 1800 > max(DEFAULTS.values())
    assert collective_seconds({**DEFAULTS, "save": 7200}) > 7200


@pytest.mark.parametrize(
    "text", ["step", "step=", "step=x", "stop=3", "step=0", "step=nan", "=3", "step=3,step=4"]
)
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(UserError, match=r"bound|twice"):
        read_bounds(text)
