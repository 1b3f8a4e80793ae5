"""Progress without a terminal: plain lines, and a time left that only counts what was really worked on."""

import re

import pytest

from tersor import progress
from tersor.progress import Reporter


class Clock:
    """Stands in for `time`: goes on when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _seconds_left(text: str) -> list[int]:
    return [int(seconds) for seconds in re.findall(r"about (\d+) s left", text)]


def test_time_left_is_that_of_all_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter([("one", 1.0), ("two", 3.0)])
    with reporter.step() as tell:
        clock.now = 10.0
        tell(0.5, "half")  # 10 s for an eighth of the work: 70 s are left
    assert _seconds_left(capsys.readouterr().err) == [70]


def test_what_a_cache_had_is_no_measure_of_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter([("cached", 8.0), ("new", 2.0)])
    with reporter.step():
        reporter.skipped += 8.0  # as a study does for common stages another run had made
        clock.now = 1.0
    with reporter.step() as tell:
        clock.now = 11.0
        tell(0.5, "half")
    assert _seconds_left(capsys.readouterr().err) == [11]


def test_a_step_announced_is_told_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter([("train", 1.0)])
    with reporter.step():
        reporter.announce("train, common to several trials")
        assert capsys.readouterr().err == "[1/1] train, common to several trials\n"


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter([("one", 1.0)], quiet=True) as reporter, reporter.step() as tell:
        reporter.announce("one")
        clock.now = 60.0
        tell(0.5, "half")
    assert capsys.readouterr().err == ""


def test_a_log_file_gets_fewer_lines_in_the_course_of_hours(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter([("one", 1.0)])
    with reporter.step() as tell:
        for second in range(3600):
            clock.now = float(second)
            tell(second / 3600, "epoch")
    assert 60 <= len(capsys.readouterr().err.splitlines()) < 120


def test_a_listener_hears_the_share_of_what_no_cache_had(clock: Clock) -> None:
    heard: list[tuple[float, str]] = []
    reporter = Reporter(
        [("cached", 8.0), ("new", 2.0)], quiet=True, listener=lambda *message: heard.append(message)
    )
    with reporter.step():
        clock.now = 0.01
    with reporter.step() as tell:
        tell(0.5, "epoch 1/2")
    assert heard == [(0.5, "new epoch 1/2")]
