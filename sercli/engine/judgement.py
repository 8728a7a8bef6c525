"""Who of several processes has stopped going on: judged from what each says, and how often.

Nothing here knows a store, a thread or torch. All times are this process's own: how long it has
watched another say the same. Clocks of other machines play no part, and a time in which this
process did not run itself (stopped, or starved) is not counted, so that after a SIGCONT it
does not take its own absence for the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sercli.stages import OWN

GRACE = 15.0  # seconds for the main thread to learn by itself that another is gone


@dataclass(frozen=True)
class Report:
    """What a process says of itself, as `stages.Whereabouts` has it.

    Attributes:
        rank: Which it is.
        host: Its machine, as people call it.
        machine: Its machine and the space of its process ids, as the kernel calls them.
        pid: Its process id.
        born: When that process began, in the kernel's ticks.
        stage: Where the main thread is.
        doing: What of that.
        step: Steps done.
        turn: Collectives entered.
        moves: Whatever else shows that it goes on.
        beat: How often the watching thread has said something.
        run: Its run directory; empty: none.
        end: None while it runs; "" after it has left; else what it failed with.
    """

    rank: int
    host: str = "?"
    machine: str = ""
    pid: int = 0
    born: int = 0
    stage: str = "start"
    doing: str = ""
    step: int = 0
    turn: int = -1
    moves: int = 0
    beat: int = 0
    run: str = ""
    end: str | None = None

    @property
    def name(self) -> str:
        """The process as messages call it."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    @property
    def place(self) -> str:
        """Where it is, as messages say it."""
        what = self.stage if not self.doing else f"{self.stage}: {self.doing}"
        return f"after step {self.step} ({what})"


@dataclass(frozen=True)
class Seen:
    """What was heard last, with the state of the store that it is from.

    Attributes:
        reports: By rank; who has said nothing yet is not there.
        rounds: How often all were heard: it grows with each time.
        lost: Whether the store has refused or broken the connection since.
    """

    reports: Mapping[int, Report]
    rounds: int = 0
    lost: bool = False


@dataclass(frozen=True)
class Verdict:
    """That this run has to end, and why.

    Attributes:
        text: For people, in one line.
        culprits: Ranks the others wait for.
        writer: Who says it in run.json: the lowest rank that can.
    """

    text: str
    culprits: tuple[int, ...]
    writer: int


class Judge:
    """Watches the others over time.

    Args:
        rank: Whose judgement it is.
        world_size: How many there are.
        bounds: Seconds by stage.
        interval: Seconds between two looks; longer gaps count as three of them.
        kept_by_first: Whether rank 0 itself keeps the store, so that its loss is rank 0's end.
        state_of: What the kernel says of a process of this machine: "gone", "stopped" or "".
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        bounds: Mapping[str, float],
        *,
        interval: float,
        kept_by_first: bool = True,
        state_of: Callable[[Report], str] = lambda _report: "",
    ) -> None:
        self.rank, self.world_size, self.bounds = rank, world_size, bounds
        self.longest, self.kept_by_first, self.state_of = 3 * interval, kept_by_first, state_of
        self.grace = min(GRACE, bounds["step"])
        self.reports = {other: Report(other) for other in range(world_size)}
        # Seconds of watching: since each moved, since each said anything, since it is known to be
        # gone, since anything was heard at all, and since the store refuses.
        self.still = dict.fromkeys(range(world_size), 0.0)
        self.mute = dict.fromkeys(range(world_size), 0.0)
        self.gone: dict[int, float] = {}
        self.unheard = self.lost = self._pending = 0.0
        self._rounds, self._last = 0, -1.0

    # -- looking ------------------------------------------------------------------------------

    def look(self, now: float, mine: Report, seen: Seen) -> Verdict | None:
        """Take in what there is to see.

        Args:
            now: Seconds, of any clock that never goes back.
            mine: Of this process.
            seen: Of the others.

        Returns:
            That the run has to end; None: as far as can be seen it goes on.
        """
        passed = 0.0 if self._last < 0 else min(now - self._last, self.longest)
        self._last = now
        self._note(mine, passed)
        self._pending += passed
        if seen.rounds != self._rounds:
            heard = min(self._pending, self.longest)
            self._rounds, self._pending, self.unheard, self.lost = seen.rounds, 0.0, 0.0, 0.0
            for rank in range(self.world_size):
                if rank != self.rank:
                    self._note(seen.reports.get(rank, self.reports[rank]), heard)
        else:
            self.unheard += passed
        self.lost = self.lost + passed if seen.lost else 0.0
        for rank, report in self.reports.items():
            if rank != self.rank and (report.end or self._has_died(report)):
                self.gone[rank] = self.gone.get(rank, -passed) + passed
        return self._judge()

    def _note(self, report: Report, passed: float) -> None:
        before, rank = self.reports[report.rank], report.rank
        same = (before.turn, before.moves, before.stage) == (
            report.turn,
            report.moves,
            report.stage,
        )
        self.still[rank] = self.still[rank] + passed if same else 0.0
        self.mute[rank] = self.mute[rank] + passed if before.beat == report.beat else 0.0
        self.reports[rank] = report

    def _has_died(self, report: Report) -> bool:
        """Whether a process of this machine has ended without saying so."""
        mine = self.reports[self.rank]
        near = bool(report.machine) and report.machine == mine.machine
        return near and report.end is None and self.state_of(report) == "gone"

    # -- judging ------------------------------------------------------------------------------

    def _judge(self) -> Verdict | None:
        return self._who_is_gone() or self._who_lags() or self._who_left() or self._lost_store()

    def _idle(self, seconds: float) -> bool:
        """Whether this process has stood still for longer, and not in what it does alone."""
        stage = self.reports[self.rank].stage
        return self.still[self.rank] > (self.bounds[stage] if stage in OWN else seconds)

    def _who_is_gone(self) -> Verdict | None:
        late = [rank for rank, since in self.gone.items() if since >= self.grace]
        return self._verdict(late, self.why_gone(late[0])) if late and self._idle(1.0) else None

    def why_gone(self, rank: int) -> str:
        """What there is to say of a process that has ended or failed."""
        report = self.reports[rank]
        if report.end:
            return f"{report.name} failed: {report.end}"
        return f"{report.name} is gone, {report.place}: killed, or out of memory"

    def _bound(self, rank: int) -> float:
        return self.bounds.get(self.reports[rank].stage, max(self.bounds.values()))

    def _who_lags(self) -> Verdict | None:
        live = [rank for rank, report in self.reports.items() if report.end is None]
        stuck = [rank for rank in live if self.still[rank] > self._bound(rank)]
        lowest = min(self.reports[rank].turn for rank in live)
        culprits = [r for r in stuck if self.mute[r] > self._bound(r)]
        culprits = culprits or [r for r in stuck if self.reports[r].turn == lowest]
        unheard = self.unheard > self.longest and self.rank in culprits
        if not culprits or unheard:  # who waits for a silent store is not the one who lags
            return None
        if culprits == [self.rank]:  # the others know, and say so first
            waits = self._idle(self._bound(self.rank) + self.grace)
        elif self.rank in culprits:
            waits = True
        else:
            waits = self._idle(0.5 * self._bound(culprits[0]))
        return self._verdict(culprits, self._lagging(culprits)) if waits else None

    def _lagging(self, culprits: list[int]) -> str:
        first = self.reports[culprits[0]]
        names = " and ".join(self.reports[rank].name for rank in culprits[:4])
        more = f" and {len(culprits) - 4} more" if len(culprits) > 4 else ""
        near = first.machine and first.machine == self.reports[self.rank].machine
        stopped = ", stopped by a signal" if near and self.state_of(first) == "stopped" else ""
        have = "has" if len(culprits) == 1 else "have"
        return (
            f"{names}{more} {have} stood still for {self.still[first.rank]:.0f} s{stopped}, "
            f"{first.place}, longer than the bound of this stage "
            f"({first.stage}={self._bound(first.rank):g}, set by --bounds)"
        )

    def _who_left(self) -> Verdict | None:
        left = [rank for rank, report in self.reports.items() if report.end == ""]
        if not left or self.rank in left or not self._idle(self._bound(self.rank)):
            return None
        return self._verdict(left, f"{self.reports[left[0]].name} has left while others wait")

    def _lost_store(self) -> Verdict | None:
        first = self.reports[0]
        if self.rank == 0 and self.kept_by_first:
            return None
        mine = self._bound(self.rank)
        if self.lost > (self.grace if self.kept_by_first else mine):
            if self._idle(self.grace if self.kept_by_first else mine):
                return self._verdict([0], self.why_lost())
        elif self.unheard > self._bound(0) and self._idle(self._bound(0)):
            near = first.machine and first.machine == self.reports[self.rank].machine
            stopped = ", stopped by a signal" if near and self.state_of(first) == "stopped" else ""
            return self._verdict(
                [0],
                f"{first.name} has not answered for {self.unheard:.0f} s{stopped}, {first.place}, "
                f"longer than the bound of this stage ({first.stage}={self._bound(0):g}, set by "
                "--bounds): its machine may be gone",
            )
        return None

    def why_lost(self) -> str:
        """What there is to say when nobody keeps the store any more."""
        first = self.reports[0]
        return f"{first.name} is gone, {first.place}: it, or its machine, was ended"

    def _verdict(self, culprits: list[int], text: str) -> Verdict:
        able = [
            rank
            for rank, report in self.reports.items()
            if rank not in culprits and report.end is None and rank not in self.gone
        ]
        return Verdict(text, tuple(culprits), min(able, default=min(culprits)))

    # -- naming -------------------------------------------------------------------------------

    def suspect(self) -> str | None:
        """Who a broken connection leads to, if that can be seen already."""
        if self.gone:
            return self.why_gone(max(self.gone, key=lambda rank: self.gone[rank]))
        if self.lost and self.kept_by_first and self.rank:
            return self.why_lost()
        return None

    def quietest(self) -> str | None:
        """Likewise by a guess: who has said nothing for the longest time."""
        others = [rank for rank in self.mute if rank != self.rank]
        rank = max(others, key=lambda one: self.mute[one])
        report = self.reports[rank]
        if self.mute[rank] <= self.longest or report.end == "":
            return None
        return f"{report.name} is gone, {report.place}: it, or its machine, was ended"
