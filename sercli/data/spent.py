"""What a process spends its time on while it loads images, by part."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PARTS = ("read", "decode", "crop", "idle")  # idle: without a task


@dataclass
class Spent:
    """Seconds by part. A lap ends one part and begins the next, whatever that is.

    Attributes:
        seconds: Of each part so far.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """What has passed since the last lap was `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now

    def begin(self) -> None:
        """What has passed so far is nothing."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._since = time.perf_counter()

    def take(self) -> tuple[float, ...]:
        """Seconds of `PARTS`, from zero again."""
        found = tuple(self.seconds[part] for part in PARTS)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return found


here = Spent()  # of this process


def shares(seconds: Iterable[float]) -> Mapping[str, float]:
    """Of each of `PARTS` in their sum; empty where nothing was spent, or measured."""
    by_part = dict(zip(PARTS, seconds, strict=False))
    total = sum(by_part.values())
    return {part: value / total for part, value in by_part.items()} if total else {}
