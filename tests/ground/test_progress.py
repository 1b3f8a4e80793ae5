"""Progress without a terminal: plain lines, and a time left that only counts what was really worked on."""

import re

import pytest

from tersor import progress
from tersor.progress import Reporter, Step


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
    return [60 * int(m) + int(s) for m, s in re.findall(r"about (\d+):(\d+) left", text)]


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
    assert _seconds_left(capsys.readouterr().err) == [10]  # half of the step took 10 s


def test_a_line_says_elapsed_and_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter([("one", 1.0)])
    with reporter.step() as tell:
        clock.now = 65.0
        tell(1 / 3, "epoch 1/3")
    assert capsys.readouterr().err.startswith("[1/1] one            epoch 1/3  1:05, about 2:10 left\n")


def test_a_step_that_reports_no_fraction_says_elapsed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter([("one", 1.0)])
    with reporter.step() as tell:
        clock.now = 7.0
        tell(0.0, "waiting")
    assert capsys.readouterr().err.startswith("[1/1] one            waiting  0:07\n")


@pytest.mark.parametrize("thought", [0.1, 1.0, 10.0])
def test_time_left_of_a_steady_step_is_right_within_a_factor_of_two(
    clock: Clock, capsys: pytest.CaptureFixture[str], thought: float
) -> None:
    reporter = Reporter([("first", 10.0), ("training", 100.0 * thought)])
    with reporter.step():
        clock.now = 10.0  # a second for each unit: the training, of 100 s, was thought ten times off
    with reporter.step() as tell:
        for epoch in range(1, 100):
            clock.now = 10.0 + epoch
            tell(epoch / 100, "epoch")
            left = _seconds_left(capsys.readouterr().err)
            if left and 10 <= epoch <= 90:
                assert (100 - epoch) / 2 <= left[0] <= 2 * (100 - epoch), epoch


def test_a_timed_step_takes_its_seconds_however_slow_the_others_were(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter([("export", 1.0), Step("timing", 20.0, timed=True), ("bundle", 1.0)])
    with reporter.step() as tell:
        clock.now = 30.0
        tell(0.5, "half")  # 30 s are left of it, 20 s of timing, 60 s of the bundle
    assert _seconds_left(capsys.readouterr().err) == [110]
    with reporter.step() as tell:
        clock.now += 10.0
        tell(0.0, "cpu")
    assert _seconds_left(capsys.readouterr().err) == [40]  # the export took 30 s in the end


def test_what_a_cache_gave_slowly_is_no_measure_of_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter([("cached", 8.0), ("new", 2.0), ("last", 2.0)])
    with reporter.step():
        clock.now = 1.0
        reporter.reused()
    with reporter.step() as tell:
        clock.now = 11.0
        tell(0.5, "half")  # 10 s are left of it, and as long a step follows
    assert _seconds_left(capsys.readouterr().err) == [30]


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
