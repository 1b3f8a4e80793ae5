"""A benchmark: a row for all that is asked for, refused on a busy machine, never finer than its own noise."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from timings import BUSY, QUIET, sitting

from tersor.errors import BadInput, Unavailable
from tersor.export.timing import benchmark as benchmarks
from tersor.export.timing.benchmark import AGAIN, MOST_BUSY, Timings, benchmark, time_calls, time_files
from tersor.export.timing.latency import FEWEST_SITTINGS, MOST_SITTINGS
from tersor.export.timing.providers import why_not


@pytest.fixture
def sittings(monkeypatch):
    """What each sitting gives, in turn, by name of the model; the last one for ever after."""
    given = SimpleNamespace(ms=[{}], signs=[QUIET], taken=0, device_ms={})

    def sit(calls, seconds, *, queues, threads, turn, progress):
        assert turn == given.taken
        given.taken += 1
        at = min(turn, len(given.ms) - 1)
        progress(1.0)
        times = {name: given.ms[at].get(name, given.ms[at].get("base", 1.0)) for name in calls}
        device_ms = {name: given.device_ms.get(name, given.device_ms.get("base")) for name in queues}
        return sitting(times, given.signs[min(turn, len(given.signs) - 1)], device_ms)

    monkeypatch.setattr(benchmarks, "sit", sit)
    return given


def timed(names=("base", "small"), **settings):
    """Functions of these names, timed."""
    calls = {name: list for name in names}
    return time_calls(calls, baseline=names[0], provider="CPU", batch=8, threads=1, **settings)


def test_a_row_for_every_batch_thread_count_and_model_in_order(plain_onnx):
    progress = []
    done = benchmark(
        {"baseline.onnx": plain_onnx, "other.onnx": plain_onnx.read_bytes()},
        "cpu",
        baseline="baseline.onnx",
        batches=(1, 4),
        threads=(1, 2),
        seconds_per_model=0.02,
        force=True,
        progress=progress.append,
    )
    assert [(r.batch, r.threads, r.file) for r in done.rows] == [
        (b, t, f) for b in (1, 4) for t in (1, 2) for f in ("baseline.onnx", "other.onnx")
    ]
    assert {r.provider for r in done.rows} == {"CPUExecutionProvider"}
    assert [(c.batch, c.threads) for c in done.conditions] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert done.conditions[2].fed == "input: float32 4x1x8x8, noise"
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    for row in done.rows:
        assert row.p50_low_ms <= row.p50_ms <= row.p50_high_ms
        assert row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.throughput_per_s == pytest.approx(row.batch / row.p50_ms * 1000)
        assert row.noise_fraction > 0
        assert row.sittings >= FEWEST_SITTINGS


def test_a_busy_machine_is_refused_with_its_signs(sittings):
    sittings.ms, sittings.signs = [{"base": 46.0, "small": 1.0}], [BUSY]
    done = timed()
    assert done.rows == ()
    assert done.refused[0].reason.startswith(
        "the machine was busy (100 involuntary switches a second, 40 % of"
    )
    assert sittings.taken == MOST_BUSY
    with pytest.raises(Unavailable, match="not measured: the machine was busy"):
        done.needed()


def test_what_is_kept_of_a_busy_machine_is_marked(sittings):
    sittings.ms, sittings.signs = [{"base": 46.0, "small": 1.0}], [BUSY]
    done = timed(force=True)
    assert [row.speedup for row in done.rows] == pytest.approx([1.0, 46.0])
    assert all(row.busy.startswith("100 involuntary switches") for row in done.rows)
    assert done.needed() == done.rows


def test_a_quiet_machine_is_not_marked_by_force(sittings):
    assert [row.busy for row in timed(force=True).rows] == [None, None]


@pytest.fixture
def on_a_gpu(monkeypatch, plain_onnx, sittings):
    """Times two files on what stands in for a GPU; `why` is said of the one without a graph."""

    def open_bound(model, feed, target, *, threads):
        fed = feed(benchmarks.open_session(plain_onnx, "cpu"))
        why = None if model == plain_onnx else "node x is on the CPU"
        return SimpleNamespace(feed=fed, end_to_end=list, device_ms=float, why_no_graph=why)

    monkeypatch.setattr(benchmarks, "open_bound", open_bound)

    def time_them():
        models = {"base": plain_onnx, "small": plain_onnx.read_bytes()}
        return benchmark(models, "cuda", baseline="base", batches=(2,))

    return time_them


def test_on_a_gpu_the_devices_time_stands_beside_end_to_end_and_decides(sittings, on_a_gpu):
    sittings.ms, sittings.device_ms = [{"base": 4.0, "small": 3.5}], {"base": 2.0, "small": 1.0}
    base, small = on_a_gpu().rows
    assert (small.provider, small.p50_ms, small.device_p50_ms) == ("CUDAExecutionProvider", 3.5, 1.0)
    assert small.device_speedup == pytest.approx(2.0)
    assert small.speedup == pytest.approx(4.0 / 3.5)
    assert small.decisive == (small.device_speedup_low, small.device_speedup, small.device_speedup_high)
    assert (base.no_graph, small.no_graph) == (None, "node x is on the CPU")


def test_tf32_is_stated_of_a_gpu(sittings, on_a_gpu):
    sittings.ms, sittings.device_ms = [{"base": 4.0, "small": 3.5}], {"base": 2.0, "small": 1.0}
    (seen,) = on_a_gpu().conditions
    assert seen.tf32 is True


def test_a_processor_has_no_tf32_to_state(sittings):
    sittings.ms = [{"base": 4.0, "small": 1.0}]
    assert timed().conditions[0].tf32 is None


def test_what_the_device_does_as_fast_is_not_told_apart_by_the_copies(sittings, on_a_gpu):
    sittings.ms, sittings.device_ms = [{"base": 4.0, "small": 2.0}], {"base": 2.0, "small": 2.0}
    small = on_a_gpu().rows[1]
    assert (small.speedup_low > 1, small.distinguishable) == (True, False)


def test_a_cpu_row_has_no_device_time(plain_onnx):
    (row,) = benchmark(
        {"a": plain_onnx}, "cpu", baseline="a", batches=(1,), seconds_per_model=0.01, force=True
    ).rows
    assert (row.device_p50_ms, row.device_speedup, row.no_graph) == (None, None, None)


def test_a_passing_disturbance_is_thrown_away_and_counted(sittings):
    sittings.ms = [{"base": 4.0, "small": 1.0}] * 2 + [{"base": 40.0, "small": 1.0}] * 3 + [{"base": 4.0}]
    sittings.ms[-1]["small"] = 1.0
    sittings.signs = [QUIET, QUIET, BUSY, BUSY, BUSY, QUIET]
    done = timed()
    assert done.rows[1].speedup == pytest.approx(4.0)
    assert (done.conditions[0].sittings, done.conditions[0].busy_sittings) == (FEWEST_SITTINGS, 3)


def test_sittings_stop_when_every_interval_is_narrow(sittings):
    sittings.ms = [{"base": 4.0, "small": 1.0}]
    done = timed()
    assert sittings.taken == FEWEST_SITTINGS
    assert all(row.narrow for row in done.rows)


def test_sittings_that_disagree_go_on_and_say_so_when_they_never_agree(sittings):
    sittings.ms = [{"base": 4.0 + (turn % 2), "small": 1.0, AGAIN: 4.0 + (turn % 2)} for turn in range(20)]
    row = timed().rows[1]
    assert sittings.taken == MOST_SITTINGS
    assert row.narrow is False
    assert row.speedup_low < 4.3 < row.speedup_high


def test_what_is_within_the_noise_is_not_called_faster(sittings):
    """The baseline's second session takes 4 % longer: so may any other file."""
    sittings.ms = [{"base": 1.0, "small": 0.97, AGAIN: 1.04}]
    base, small = timed().rows
    assert small.noise_fraction == pytest.approx(0.04)
    assert (small.speedup_low < 1 < small.speedup_high, small.distinguishable) == (True, False)
    assert (base.speedup, base.distinguishable) == (1.0, False)
    sittings.ms, sittings.taken = [{"base": 1.0, "small": 0.97, AGAIN: 1.0}], 0
    assert timed().rows[1].distinguishable


def test_no_interval_is_narrower_than_the_noise(sittings):
    sittings.ms = [{"base": 4.0, "small": 1.0, AGAIN: 4.0 * 1.03}]
    row = timed().rows[1]
    assert row.speedup_high == pytest.approx(4.0 * 1.03)
    assert row.in_turn_speedup_high == pytest.approx(4.0 * 1.03)


def test_the_second_session_of_the_baseline_is_no_row(sittings):
    assert [row.file for row in timed(("a", "b", "c")).rows] == ["a", "b", "c"]


def test_sessions_are_opened_anew_for_every_sitting_and_the_baseline_twice(plain_onnx, monkeypatch):
    opened, open_session = [], benchmarks.open_session

    def opening(model, *args, **kwargs):
        opened.append(model)
        return open_session(model, *args, **kwargs)

    monkeypatch.setattr(benchmarks, "open_session", opening)
    models = {"base": plain_onnx, "other": plain_onnx.read_bytes()}
    done = benchmark(models, "cpu", baseline="base", batches=(1,), seconds_per_model=0.01, force=True)
    turns = done.conditions[0].sittings
    assert opened.count(plain_onnx) == 2 * turns
    assert len(opened) == 3 * turns


def test_the_same_file_twice_is_an_a_a_test(plain_onnx):
    done = time_files([plain_onnx, plain_onnx], "cpu", batches=(1,), seconds=0.02, force=True)
    assert [Path(row.file).name for row in done.rows] == ["model.onnx", "model.onnx (2)"]


def fixed_model(tmp_path, *shape):
    """A file with one input of a fixed shape."""
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / ("x".join(map(str, shape)) + ".onnx")
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_file_of_a_fixed_batch_is_timed_at_it_unless_told_otherwise(tmp_path):
    path = fixed_model(tmp_path, 3, 4)
    done = time_files([path], "cpu", seconds=0.01, force=True)
    assert [row.batch for row in done.rows] == [3]
    with pytest.raises(BadInput, match="batch size is fixed"):
        time_files([path], "cpu", batches=(1,), seconds=0.01)


def test_files_of_different_shapes_are_not_compared(tmp_path):
    files = [fixed_model(tmp_path, 1, 4), fixed_model(tmp_path, 1, 5)]
    with pytest.raises(BadInput, match="inputs of different shapes") as told:
        time_files(files, "cpu", seconds=0.01)
    assert f"Got 1x5 in {files[1]}. Wanted 1x4, as in {files[0]}." in str(told.value)


def test_an_unknown_baseline_and_wrong_inputs_are_told(plain_onnx, make_images):
    with pytest.raises(BadInput, match="baseline is not among the models. Got x. Wanted a"):
        benchmark({"a": plain_onnx}, "cpu", baseline="x")
    with pytest.raises(BadInput, match="inputs do not fit the model"):
        benchmark({"a": plain_onnx}, "cpu", baseline="a", inputs=make_images((2, 8, 8), 1))
    with pytest.raises(BadInput, match="baseline is not among the functions. Got x. Wanted a"):
        time_calls({"a": list}, baseline="x", provider="CPU", batch=1, threads=1)


@pytest.mark.skipif(why_not("cuda") is None, reason="there is a GPU here")
def test_a_target_that_is_not_there_is_never_timed(plain_onnx):
    with pytest.raises(Unavailable, match="'cuda' is not available"):
        benchmark({"a": plain_onnx}, "cuda", baseline="a")


def test_timings_add_up_and_are_plain_data(sittings):
    done = timed()
    both = done + Timings()
    assert both == done
    assert Timings.of(both.to_json(), "timings") == both


def test_what_several_functions_take_is_told_by_batch(sittings):
    sittings.ms = [{"base": 2.0, "small": 0.5}]
    rows = timed().rows
    assert [(r.file, r.batch, r.throughput_per_s) for r in rows] == [
        ("base", 8, 4000.0),
        ("small", 8, 16000.0),
    ]
    assert np.isclose(rows[1].in_turn_speedup, 4.0)
