"""Timing: a row for everything asked for, honest about what cannot be told apart, fair between files."""

import dataclasses
import gc
import inspect

import numpy as np
import pytest

from tersor.errors import BadInput, Unavailable
from tersor.export.timing import benchmark as benchmarks
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.providers import why_not


def test_a_row_for_every_batch_thread_count_and_model_in_order(plain_onnx):
    progress = []
    rows = benchmark(
        {"baseline.onnx": plain_onnx, "other.onnx": plain_onnx.read_bytes()},
        "cpu",
        baseline="baseline.onnx",
        batches=(1, 4),
        threads=(1, 2),
        seconds_per_model=0.02,
        inputs=None,
        progress=progress.append,
    )
    assert [(r.batch, r.threads, r.file) for r in rows] == [
        (b, t, f) for b in (1, 4) for t in (1, 2) for f in ("baseline.onnx", "other.onnx")
    ]
    assert {r.provider for r in rows} == {"CPUExecutionProvider"}
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    for row in rows:
        assert row.p50_low_ms <= row.p50_ms <= row.p50_high_ms
        assert row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.throughput_per_s == pytest.approx(row.batch / row.p50_ms * 1000)
        assert row.rounds >= benchmarks.FEWEST_ROUNDS


def test_the_baseline_is_one_and_not_distinguishable_from_itself(plain_onnx):
    row = benchmark({"a": plain_onnx}, "cpu", baseline="a", batches=(1,), seconds_per_model=0.02)[0]
    assert (row.speedup, row.speedup_low, row.speedup_high, row.distinguishable) == (1.0, 1.0, 1.0, False)


class Clock:
    """Stands in for `time`: a run takes the milliseconds it is said to, and nothing else takes any."""

    def __init__(self):
        self.ms = 0.0

    def perf_counter(self):
        return self.ms / 1e3

    def perf_counter_ns(self):
        return round(self.ms * 1e6)


class Session:
    """A session or a function whose runs move the clock on; `ms` tells by how much at the time it is."""

    def __init__(self, clock, ms):
        self.clock, self.ms, self.runs = clock, ms, 0

    def __call__(self):
        self.runs += 1
        self.clock.ms += self.ms(self.clock.ms)

    def run(self, _outputs, feed):
        self()
        return [np.zeros((len(feed["input"]), 2))]

    def get_inputs(self):
        return [type("Input", (), {"name": "input", "shape": ["batch", 1], "type": "tensor(float)"})]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(benchmarks, "time", clock)
    return clock


def steady(ms, rounds=200):
    """Samples within 0.5 % of `ms`, which is their median, in random order."""
    return np.random.default_rng(0).permutation(ms * np.linspace(0.995, 1.005, rounds))


def row_of(base, samples):
    """The row of `samples` against the baseline's, `base`, both in milliseconds, a round at a time."""
    return benchmarks._row("own", "CPU", 1, 1, samples, base)


def apart(base, samples):
    """Whether the 95 % intervals of the two medians do not overlap."""
    (base_low, base_high), (low, high) = map(benchmarks._median_interval, (base, samples))
    return low > base_high or high < base_low


@pytest.mark.parametrize(
    ("times", "distinguishable"), [(1.0315, True), (1.0305, False), (0.9705, True), (0.9715, False)]
)
def test_only_more_than_three_percent_is_distinguishable_however_steady_the_samples(times, distinguishable):
    base, samples = steady(1.0, 4000), steady(times, 4000)
    row = row_of(base, samples)
    assert apart(base, samples)
    assert not row.speedup_low <= 1.0 <= row.speedup_high
    assert row.speedup == pytest.approx(1 / times)
    assert (abs(row.speedup - 1) > 0.03) is distinguishable
    assert row.distinguishable is distinguishable


def test_medians_whose_intervals_overlap_are_not_distinguishable():
    """A machine that slows down widens both intervals; the ratio of each round would still be sure."""
    drift = np.linspace(1.0, 2.0, 200)
    row = row_of(drift, 1.05 * drift)
    assert row.speedup_high < 0.97
    assert not apart(drift, 1.05 * drift)
    assert not row.distinguishable


def test_a_speedup_whose_interval_holds_one_is_not_distinguishable():
    """One model changes between two speeds for a while each: which of them is its median was chance."""
    base = steady(1.0, 900)
    samples = base * np.where(np.arange(900) // 100 % 2 == 0, 1.2, 0.8)
    row = row_of(base, samples)
    assert apart(base, samples)
    assert abs(row.speedup - 1) > 0.1
    assert row.speedup_low < 1 < row.speedup_high
    assert not row.distinguishable


def test_a_model_against_itself_is_near_one_and_hardly_ever_distinguishable():
    """Samples scatter by a fifth, so that medians of 60 differ by more than 3 % now and then."""
    rng = np.random.default_rng(2)
    rows = [row_of(*(1 + 0.2 * rng.standard_normal((2, 60)))) for _ in range(60)]
    assert sum(abs(row.speedup - 1) > 0.03 for row in rows) > 10
    assert np.median([row.speedup for row in rows]) == pytest.approx(1, abs=0.01)
    assert all(row.speedup_low <= row.speedup <= row.speedup_high for row in rows)
    assert sum(row.distinguishable for row in rows) <= 2


def test_four_times_the_work_is_distinguishably_slower(clock, monkeypatch):
    sessions = {b"base": Session(clock, lambda _: 1.0), b"slow": Session(clock, lambda _: 4.0)}
    monkeypatch.setattr(benchmarks, "open_session", lambda model, *_, **__: sessions[model])
    models = {"base": b"base", "slow": b"slow"}
    base, slow = benchmark(models, "cpu", baseline="base", batches=(64,), seconds_per_model=0.3)
    assert (base.p50_ms, slow.p50_ms) == pytest.approx((1.0, 4.0))
    assert (slow.speedup, slow.speedup_low, slow.speedup_high) == pytest.approx((0.25, 0.25, 0.25))
    assert slow.distinguishable
    assert (base.speedup, base.distinguishable) == (1.0, False)
    assert base.rounds == slow.rounds == 120  # 0.6 s of both together


def test_a_busy_machine_changes_the_times_but_not_the_speedup(clock):
    """Other work makes everything three times slower in every other 50 ms."""

    def busy(ms):
        return lambda now: ms * (3 if now % 100 > 50 else 1)

    calls = {"base": Session(clock, busy(1.0)), "slow": Session(clock, busy(4.0))}
    row = benchmarks.time_calls(calls, baseline="base", provider="CPU", batch=1, threads=1)[1]
    assert row.p99_ms == pytest.approx(12.0)
    assert row.distinguishable
    assert row.speedup_low <= row.speedup <= row.speedup_high < 0.5


def test_very_fast_models_are_timed_over_several_runs(clock):
    fast = Session(clock, lambda _: 0.001)
    feed = {"input": np.zeros(1)}
    assert benchmarks._runs_per_sample(fast, feed) == 200  # which fill 0.2 ms
    warmed = fast.runs
    assert benchmarks._sample_ms(fast, feed, 200) == pytest.approx(0.001)
    assert fast.runs == warmed + 200
    assert benchmarks._runs_per_sample(Session(clock, lambda _: 5.0), feed) == 1


def test_the_order_rotates_and_garbage_collection_rests(monkeypatch):
    order, collecting = [], []

    def sample(session, feed, runs):
        order.append(session)
        collecting.append(gc.isenabled())
        return 1.0

    monkeypatch.setattr(benchmarks, "_runs_per_sample", lambda *_: 1)
    monkeypatch.setattr(benchmarks, "_sample_ms", sample)
    names = {n: n for n in "abc"}
    benchmarks._interleave(names, names, 0.0, lambda _: None)
    assert "".join(order[:9]) == "abcbcacab"
    assert not any(collecting)
    assert gc.isenabled()


def test_speedup_interval_widens_with_drift_that_only_one_model_has():
    rng = np.random.default_rng(0)
    steady = 1 + 0.01 * rng.standard_normal(900)
    drifting = steady + np.repeat([0.0, 0.3, 0.0, 0.3, 0.0, 0.3], 150)
    low, high = benchmarks._ratio_interval(steady, steady[::-1])
    assert high - low < 0.01
    low, high = benchmarks._ratio_interval(steady, drifting)
    assert high - low > 0.05


def test_median_interval_covers_the_median_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        low, high = benchmarks._median_interval(rng.exponential(size=101))
        hits += low <= np.log(2) <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_given_inputs_are_repeated_to_fill_the_batch(plain_onnx, make_images):
    from tersor.export.timing.providers import open_session

    feed = benchmarks._feed(open_session(plain_onnx, "cpu"), make_images(count=3), 7)
    assert feed["input"].shape == (7, 1, 8, 8)
    assert np.array_equal(feed["input"][3:6], make_images(count=3))


def test_rows_are_frozen_and_carry_units():
    fields = [f.name for f in dataclasses.fields(benchmarks.LatencyRow)]
    assert fields == [
        "file",
        "provider",
        "batch",
        "threads",
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "speedup",
        "p50_low_ms",
        "p50_high_ms",
        "speedup_low",
        "speedup_high",
        "distinguishable",
        "throughput_per_s",
        "rounds",
    ]
    assert benchmarks.LatencyRow.__dataclass_params__.frozen
    assert "progress" in inspect.signature(benchmark).parameters


def test_an_unknown_baseline_and_wrong_inputs_are_told(plain_onnx, make_images):
    with pytest.raises(BadInput, match="baseline is not among the models. Got x. Wanted a"):
        benchmark({"a": plain_onnx}, "cpu", baseline="x")
    with pytest.raises(BadInput, match="inputs do not fit the model"):
        benchmark({"a": plain_onnx}, "cpu", baseline="a", inputs=make_images((2, 8, 8), 1))


@pytest.mark.skipif(why_not("cuda") is None, reason="there is a GPU here")
def test_a_target_that_is_not_there_is_never_timed(plain_onnx):
    with pytest.raises(Unavailable, match="'cuda' is not available"):
        benchmark({"a": plain_onnx}, "cuda", baseline="a")


def test_functions_are_timed_as_models_are(clock):
    calls = {"short": Session(clock, lambda _: 0.5), "long": Session(clock, lambda _: 2.0)}
    progress = []
    rows = benchmarks.time_calls(
        calls,
        baseline="short",
        provider="CPU",
        batch=8,
        threads=1,
        seconds_per_call=0.3,
        progress=progress.append,
    )
    assert [(r.file, r.batch, r.threads) for r in rows] == [("short", 8, 1), ("long", 8, 1)]
    assert [r.p50_ms for r in rows] == pytest.approx([0.5, 2.0])
    assert (rows[0].speedup, rows[1].speedup) == pytest.approx((1.0, 0.25))
    assert rows[1].speedup_high < 1
    assert rows[1].distinguishable
    assert rows[1].throughput_per_s == pytest.approx(8 / 2.0 * 1000)
    assert progress
    assert progress == sorted(progress)


def test_an_unknown_baseline_among_functions_is_told():
    with pytest.raises(BadInput, match="baseline is not among the functions. Got x. Wanted a"):
        benchmarks.time_calls({"a": list}, baseline="x", provider="CPU", batch=1, threads=1)
