"""Samples: alone in warm blocks, in turn as they come; fair between functions."""

import gc

import numpy as np
import pytest
from timings import QUIET

from tersor.export.timing import sampling
from tersor.export.timing.sampling import sit


class Clock:
    """Stands in for `time`: a run takes the milliseconds it is said to, and nothing else takes any."""

    def __init__(self):
        self.ms = 0.0

    def perf_counter(self):
        return self.ms / 1e3

    def perf_counter_ns(self):
        return round(self.ms * 1e6)


class Function:
    """Moves the clock on, by more where another function ran before: its caches are cold then."""

    def __init__(self, clock, name, ms, ran, cold=0.0):
        self.clock, self.name, self.ms, self.ran, self.cold = clock, name, ms, ran, cold

    def __call__(self):
        self.clock.ms += self.ms + (self.cold if self.ran and self.ran[-1] != self.name else 0.0)
        self.ran.append(self.name)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(sampling, "time", clock)

    class Watch:
        """Sees nothing."""

        def __init__(self, threads):
            self.threads = threads

        def signs(self):
            """A quiet machine."""
            return QUIET

    monkeypatch.setattr(sampling, "Watch", Watch)
    return clock


def test_alone_a_model_is_warm_and_in_turn_it_finds_cold_caches(clock):
    ran = []
    calls = {n: Function(clock, n, ms, ran, cold=0.5) for n, ms in (("small", 1.0), ("large", 4.0))}
    sitting = sit(calls, 1.0)
    assert sitting.medians(alone=True) == pytest.approx({"small": 1.0, "large": 4.0})
    assert sitting.medians(alone=False) == pytest.approx({"small": 1.5, "large": 4.5})
    assert sitting.alone["small"].max() == pytest.approx(1.0), "the first runs of a block are dropped"


def test_blocks_of_all_functions_take_turns_and_last_as_long(clock):
    ran = []
    sit({"a": Function(clock, "a", 1.0, ran), "b": Function(clock, "b", 4.0, ran)}, 1.0)
    blocks = [ran[0]] + [now for before, now in zip(ran, ran[1:], strict=False) if now != before]
    assert set(zip(blocks, blocks[1:], strict=False)) == {("a", "b"), ("b", "a")}
    assert ran.count("a") > 2 * ran.count("b"), "as much time for each, not as many runs"


def test_who_runs_after_whom_differs_between_sittings_and_the_results_keep_the_callers_order(clock):
    after = set()
    for turn in range(8):
        ran = []
        sitting = sit({n: Function(clock, n, 1.0, ran) for n in "abc"}, 0.3, turn=turn)
        after |= set(zip(ran[-30:], ran[-29:], strict=False))
        assert list(sitting.alone) == list(sitting.in_turn) == ["a", "b", "c"]
    assert after == {(one, other) for one in "abc" for other in "abc" if one != other}


def test_two_thirds_of_the_time_are_for_running_alone(clock):
    sitting = sit({"a": Function(clock, "a", 1.0, []), "b": Function(clock, "b", 1.0, [])}, 3.0)
    assert sum(map(len, sitting.in_turn.values())) == pytest.approx(2000, rel=0.05)
    assert sum(map(len, sitting.alone.values())) == pytest.approx(4000, rel=0.15)


def test_very_fast_models_are_timed_over_several_runs(clock):
    ran = []
    sitting = sit({"a": Function(clock, "a", 0.001, ran)}, 0.5)
    assert sitting.medians(alone=True)["a"] == pytest.approx(0.001)
    assert len(ran) > 100 * (len(sitting.alone["a"]) + len(sitting.in_turn["a"]))


def test_a_very_long_run_is_a_block_of_its_own(clock):
    ran = []
    sitting = sit({"a": Function(clock, "a", 1500.0, ran), "b": Function(clock, "b", 1.0, ran)}, 0.1)
    assert len(sitting.alone["a"]) == 1
    assert ran.count("a") == 3  # to warm up, alone, in turn


def test_progress_grows_to_the_end(clock):
    told = []
    sit({"a": Function(clock, "a", 1.0, [])}, 3.0, progress=told.append)
    assert told == sorted(told)
    assert 0.9 < told[-1] <= 1.0


def test_garbage_collection_rests_meanwhile_and_goes_on_afterwards(clock):
    collecting = []

    def call():
        collecting.append(gc.isenabled())
        clock.ms += 1.0

    sit({"a": call}, 0.1)
    assert not any(collecting)
    assert gc.isenabled()


def test_no_function_runs_after_itself_in_turn(clock):
    ran = []
    sit({n: Function(clock, n, 1.0, ran) for n in "ab"}, 0.3)
    last = "".join(ran[-50:])
    assert "aa" not in last
    assert "bb" not in last


def test_samples_are_milliseconds_in_order(clock):
    sitting = sit({"a": Function(clock, "a", 2.0, [])}, 0.2)
    assert sitting.alone["a"].dtype == np.float64
    assert np.allclose(sitting.alone["a"], 2.0)
