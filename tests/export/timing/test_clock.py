"""The clock tells when others ran, from the signs that tell."""

import dataclasses
from collections import namedtuple

import pytest
from timings import BUSY, QUIET

from tersor.export.timing import clock
from tersor.export.timing.clock import Signs, Watch, together


def seen(**changes):
    """A quiet machine but for the changes."""
    return dataclasses.replace(QUIET, **changes)


def test_a_quiet_machine_is_not_busy():
    assert QUIET.busy() is None
    assert seen(involuntary_switches=10, processor_s=0.985, others=0.6, stolen=0.01).busy() is None


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        (seen(involuntary_switches=60), "60 involuntary switches a second"),
        (seen(processor_s=0.9), "90 % of the processor had"),
        (seen(others=1.3), "1.3 of 2 processors used by others"),
        (seen(stolen=0.05), "5 % of a processor taken by the hypervisor"),
    ],
)
def test_each_sign_alone_tells_that_others_ran(signs, words):
    assert signs.busy() == words


def test_all_signs_are_named():
    told = BUSY.busy()
    assert told == (
        "100 involuntary switches a second, 40 % of the processor had, 1.6 of 2 processors used by others"
    )


def test_a_few_switches_in_a_short_time_say_nothing():
    assert seen(elapsed_s=0.05, processor_s=0.05, involuntary_switches=4).busy() is None
    assert seen(elapsed_s=0.05, processor_s=0.05, involuntary_switches=6).busy()


def test_a_thread_that_waits_for_a_device_or_for_its_workers_need_not_have_the_processor():
    assert seen(processor_s=0.2).busy(on_processor=False) is None
    assert seen(processor_s=0.2, threads=2, others=0.0).busy() is None


def test_two_threads_on_two_processors_leave_none_for_others():
    assert seen(threads=2, others=0.5).busy() == "0.5 of 2 processors used by others"


def test_what_a_system_does_not_tell_is_not_held_against_it():
    assert seen(involuntary_switches=None, others=None, stolen=None).busy() is None


def test_signs_of_several_spans_are_weighted_by_their_time():
    both = together([seen(elapsed_s=3.0, processor_s=3.0), seen(processor_s=0.0, others=1.0)])
    assert (both.elapsed_s, both.share, both.others) == pytest.approx((4.0, 0.75, 0.25))
    assert both.switches_per_s == pytest.approx(1.0)
    assert together([QUIET, seen(others=None)]).others is None


def test_the_watch_takes_the_processes_own_time_off_what_the_machine_used(monkeypatch, tmp_path):
    """/proc/stat counts ours too, in hundredths of a second."""
    usage = namedtuple("usage", "ru_nivcsw")
    now = {"wall": 10.0, "switches": 7}
    monkeypatch.setattr(clock, "STAT", tmp_path / "stat")
    monkeypatch.setattr(clock, "time", type("time", (), {}))
    clock.time.perf_counter = lambda: now["wall"]
    clock.time.thread_time = clock.time.process_time = lambda: 0.5 * now["wall"]
    monkeypatch.setattr("resource.getrusage", lambda _: usage(now["switches"]))
    (tmp_path / "stat").write_text("cpu  100 0 50 900 3 1 1 20 0 0\ncpu0 1 1 1\n")
    watch = Watch()
    now |= {"wall": 14.0, "switches": 27}
    (tmp_path / "stat").write_text("cpu  500 100 50 900 3 1 1 28 0 0\ncpu0 1 1 1\n")
    signs = watch.signs()
    assert signs.elapsed_s == 4.0
    assert signs.share == pytest.approx(0.5)
    assert signs.switches_per_s == pytest.approx(5.0)
    assert signs.others == pytest.approx(5.0 / 4 - 0.5)
    assert signs.stolen == pytest.approx(0.02)


@pytest.mark.parametrize("text", [None, "", "cpu 1 2\n", "cpu a b c d e f g h\n"])
def test_a_system_without_its_counters_is_not_told_of(monkeypatch, tmp_path, text):
    monkeypatch.setattr(clock, "STAT", tmp_path / "stat")
    if text is not None:
        (tmp_path / "stat").write_text(text)
    signs = Watch().signs()
    assert (signs.others, signs.stolen) == (None, None)


def test_signs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QUIET.others = 1.0
    assert Signs.__dataclass_params__.frozen
