"""The file to take, for each target and batch size: the fastest beyond the noise; of equals the plainest."""

from typing import Any

import pytest

from tersor.export.bundle.manifest import Artifact
from tersor.export.bundle.recommendation import recommend
from tersor.export.timing.latency import LatencyRow

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def row(speedup: float, spread: float = 0.01, **changes: Any) -> LatencyRow:
    p50 = 1 / speedup
    figures = {
        "provider": CPU,
        "batch": 1,
        "threads": 1,
        "p50_ms": p50,
        "p90_ms": p50,
        "p99_ms": p50,
        "speedup": speedup,
        "p50_low_ms": p50,
        "p50_high_ms": p50,
        "speedup_low": speedup - spread,
        "speedup_high": speedup + spread,
        "distinguishable": not speedup - spread <= 1 <= speedup + spread,
        "throughput_per_s": 1.0,
        "rounds": 30,
    }
    return LatencyRow(**{**figures, **changes})


def entry(file: str, kind: str, *latency: LatencyRow, size: int = 100, diff: float = 1e-6) -> Artifact:
    return Artifact(file, kind, size, "0" * 64, max_abs_diff=diff, latency=latency)


def chosen(*artifacts: Artifact, target: str = "cpu", batch: int = 1, **settings: Any) -> tuple[str, Any]:
    [only] = recommend(artifacts, [target], [batch], **settings)
    assert (only.target, only.batch) == (target, batch)
    return only.file, only.speedup


def test_each_target_and_batch_size_has_its_own() -> None:
    artifacts = [
        entry("model.onnx", "fp32", row(2.0), row(1.5, provider=CUDA), row(9.0, batch=64)),
        entry("model.int8.onnx", "int8", row(3.0), row(0.5, provider=CUDA), row(4.0, batch=64)),
    ]
    found = recommend(artifacts, ["cpu", "cuda"], [1, 64])
    assert [(c.target, c.batch, c.file) for c in found] == [
        ("cpu", 1, "model.int8.onnx"),
        ("cpu", 64, "model.onnx"),
        ("cuda", 1, "model.onnx"),
        ("cuda", 64, "model.onnx"),
    ]
    assert "3.00x [2.99, 3.01] the baseline" in found[0].why
    assert (found[0].speedup_low, found[0].speedup_high) == pytest.approx((2.99, 3.01))
    assert found[3].why == "nothing was measured on cuda at batch 64"


def test_a_file_that_broke_a_gate_or_is_within_the_noise_is_not_recommended() -> None:
    artifacts = [entry("model.onnx", "fp32", row(1.01)), entry("model.int8.onnx", "int8", row(3.0))]
    assert chosen(*artifacts, failed=["model.int8.onnx"]) == ("model.onnx", 1.01)


@pytest.mark.parametrize("speedup", [0.5, 0.9])
def test_a_file_that_is_surely_slower_than_the_baseline_is_never_recommended(speedup: float) -> None:
    artifacts = [entry("model.onnx", "fp32", row(1.005)), entry("model.int8.onnx", "int8", row(speedup))]
    assert chosen(*artifacts) == ("model.onnx", 1.005)


def test_where_all_files_are_slower_the_default_is_recommended_with_its_own_speedup() -> None:
    artifacts = [entry("model.onnx", "fp32", row(0.6)), entry("model.int8.onnx", "int8", row(0.8))]
    assert chosen(*artifacts) == ("model.onnx", 0.6)


def test_of_files_as_fast_within_the_noise_the_plainest_is_recommended() -> None:
    artifacts = [
        entry("model.int8.onnx", "int8", row(2.03, 0.06)),
        entry("model.lowbit.onnx", "lowbit", row(2.02, 0.06), size=20),
        entry("model.onnx", "fp32", row(1.95, 0.06)),
    ]
    assert chosen(*artifacts) == ("model.onnx", 1.95)
    assert chosen(*artifacts[:2]) == ("model.lowbit.onnx", 2.02)
    apart = [entry("model.int8.onnx", "int8", row(2.2, 0.06)), *artifacts[1:]]
    assert chosen(*apart) == ("model.int8.onnx", 2.2)


def test_of_equally_plain_files_the_closest_to_the_network_then_the_smallest() -> None:
    a = entry("a.onnx", "fp32", row(2.0), diff=0.2)
    b = entry("b.onnx", "fp32", row(2.0), size=90)
    assert chosen(a, entry("c.onnx", "fp32", row(2.0)), b)[0] == "b.onnx"


def test_on_a_gpu_the_time_on_the_device_decides() -> None:
    def device(speedup: float) -> dict[str, Any]:
        return {
            "provider": CUDA,
            "device_p50_ms": 1 / speedup,
            "device_speedup": speedup,
            "device_speedup_low": speedup - 0.01,
            "device_speedup_high": speedup + 0.01,
        }

    artifacts = [
        entry("model.onnx", "fp32", row(1.22, **device(1.83))),
        entry("model.fp16.onnx", "fp16", row(1.19, **device(2.22))),
    ]
    assert chosen(*artifacts, target="cuda") == ("model.fp16.onnx", 2.22)
    [only] = recommend(artifacts, ["cuda"], [1])
    assert "ms on the device" in only.why


def test_what_was_timed_on_a_busy_machine_recommends_nothing() -> None:
    raw = entry("model.int8.onnx", "int8", row(9.0, busy="100 involuntary switches a second"))
    assert chosen(raw) == ("model.onnx", None)


def test_the_fewest_threads_measured_decide() -> None:
    artifacts = [
        entry("model.onnx", "fp32", row(2.0), row(2.0, threads=2)),
        entry("model.int8.onnx", "int8", row(1.5), row(9.0, threads=2)),
    ]
    assert chosen(*artifacts) == ("model.onnx", 2.0)
