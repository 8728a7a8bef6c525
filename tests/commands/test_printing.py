"""What evaluators show on the way: where there is no terminal, lines with the time left."""

from __future__ import annotations

import pytest

from sercli.commands import printing


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(printing, "time", made)
    return made


def test_plain_lines_say_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with printing.progress() as show:
        for done in range(1, 101):
            clock.now += 3  # 300 s in all
            show("val", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "val: 10 of 100, about 4 min left"  # 90 × 3 s
    assert lines[7] == "val: 80 of 100, about 60 s left"
    assert lines[9] == "val: 100 of 100"


def test_a_slow_set_is_told_every_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with printing.progress() as show:
        show("val", 1, 1)
        for done in (1, 2, 3):
            clock.now += 600
            show("imagenet-c", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        "imagenet-c: 1 of 100, about 16.5 h left",
        "imagenet-c: 2 of 100, about 16.3 h left",
        "imagenet-c: 3 of 100, about 16.2 h left",
    ]


def test_what_is_measured_is_told_in_lines_beside_the_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with printing.measuring() as tell:
        tell("counting a step of a\x1b[2J")
        tell("round 1 of 2, about 9 s left")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "counting a step of a\\x1b[2J\nround 1 of 2, about 9 s left\n"
