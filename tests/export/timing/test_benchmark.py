"""Timing: a row for everything asked for, honest about what cannot be told apart, fair between files."""

import dataclasses
import gc
import inspect

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tersor.errors import BadInput, Unavailable
from tersor.export.timing import benchmark as benchmarks
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.providers import why_not


def work(layers):
    """A model of `layers` products of 256 x 256 matrices."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 256]) for n in ("input", "y")]
    weight = numpy_helper.from_array(np.eye(256, dtype=np.float32), "w")
    names = ["input", *(f"v{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in zip(names, names[1:])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    ).SerializeToString()


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
        assert row.speedup_low <= row.speedup <= row.speedup_high or row.rounds < 60
        assert row.throughput_per_s == pytest.approx(row.batch / row.p50_ms * 1000)
        assert row.rounds >= benchmarks.FEWEST_ROUNDS


def test_the_baseline_is_one_and_not_distinguishable_from_itself(plain_onnx):
    row = benchmark({"a": plain_onnx}, "cpu", baseline="a", batches=(1,), seconds_per_model=0.02)[0]
    assert (row.speedup, row.speedup_low, row.speedup_high, row.distinguishable) == (1.0, 1.0, 1.0, False)


def test_a_model_against_itself_is_near_one_and_mostly_not_distinguishable():
    data = work(6)
    rows = [
        benchmark({"a": data, "b": data}, "cpu", baseline="a", batches=(16,), seconds_per_model=0.3)[1]
        for _ in range(5)
    ]
    ratios = sorted(row.speedup for row in rows)
    assert 0.9 < ratios[2] < 1.1, ratios
    assert sum(row.distinguishable for row in rows) <= 2, rows


def test_four_times_the_work_is_distinguishably_slower():
    models = {"base": work(8), "slow": work(32)}
    row = benchmark(models, "cpu", baseline="base", batches=(64,), seconds_per_model=0.3)[1]
    assert row.distinguishable
    assert 0.15 < row.speedup < 0.5
    assert row.speedup_high < 1


def test_very_fast_models_are_timed_over_several_runs():
    class Fast:
        runs = 0

        def run(self, *_):
            self.runs += 1
            return [np.zeros(1)]

        def get_inputs(self):
            return [type("Input", (), {"name": "input", "shape": ["batch", 1]})]

    fast = Fast()
    samples = benchmarks._interleave({"f": fast}, {"f": {"input": np.zeros(1)}}, 0.01, lambda _: None)["f"]
    assert fast.runs > 20 * len(samples)


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


def test_functions_are_timed_as_models_are():
    short, long = np.ones((64, 64)), np.ones((256, 256))
    calls = {"short": lambda: short @ short, "long": lambda: long @ long}
    progress = []
    rows = benchmarks.time_calls(
        calls,
        baseline="short",
        provider="CPU",
        batch=8,
        threads=1,
        seconds_per_call=0.1,
        progress=progress.append,
    )
    assert [(r.file, r.batch, r.threads) for r in rows] == [("short", 8, 1), ("long", 8, 1)]
    assert rows[0].speedup == 1.0
    assert rows[1].speedup_high < 1
    assert rows[1].distinguishable
    assert rows[1].throughput_per_s == pytest.approx(8 / rows[1].p50_ms * 1000)


def test_an_unknown_baseline_among_functions_is_told():
    with pytest.raises(BadInput, match="baseline is not among the functions. Got x. Wanted a"):
        benchmarks.time_calls({"a": list}, baseline="x", provider="CPU", batch=1, threads=1)


def test_the_work_models_are_valid():
    onnx.checker.check_model(onnx.load_model_from_string(work(3)), full_check=True)
