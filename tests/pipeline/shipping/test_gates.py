"""Gates: each limit holds exactly at its value and breaks just beyond, with which file and by how much."""

from dataclasses import replace

import pytest

from tersor.export.bundle.manifest import Artifact
from tersor.export.timing.latency import LatencyRow
from tersor.pipeline.recipe.recipe import Gates
from tersor.pipeline.shipping.gates import broken, check_gates, parity_gate


def row(p50: float) -> LatencyRow:
    p50s = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "p50_low_ms", "p50_high_ms"), p50)
    speedups = dict.fromkeys(("speedup", "speedup_low", "speedup_high"), 1.0)
    return LatencyRow(
        "CPUExecutionProvider",
        batch=1,
        threads=1,
        distinguishable=False,
        throughput_per_s=1e3 / p50,
        rounds=30,
        **p50s,
        **speedups,
    )


def entry(file: str, kind: str, accuracy: float, difference: float, size: int, *p50_ms: float) -> Artifact:
    return Artifact(file, kind, size, "0" * 64, accuracy, difference, tuple(map(row, p50_ms)))


BASELINE = entry("baseline.onnx", "fp32", 0.98, 1e-6, 1000)
PACKED = entry("model.tsr", "packed", 0.975, 2e-6, 100)
INT8 = entry("model.int8.onnx", "int8", 0.97, 0.2, 300, 0.5, 9.0)


@pytest.mark.parametrize(
    ("gate", "holds", "breaks", "file"),
    [
        ("max_accuracy_drop", 0.01, 0.0099, "model.int8.onnx"),
        ("max_bytes", 100, 99, "model.tsr"),
        ("max_abs_diff", 2e-6, 1.9e-6, "model.tsr"),
        ("max_latency_ms", 0.5, 0.49, "model.int8.onnx"),
    ],
)
def test_limit_holds_at_its_value_and_breaks_beyond(
    gate: str, holds: float, breaks: float, file: str
) -> None:
    (found,) = check_gates(Gates(**{gate: holds}), BASELINE, [PACKED, INT8])
    assert found.ok
    assert broken([found]) == []
    (found,) = check_gates(Gates(**{gate: breaks}), BASELINE, [PACKED, INT8])
    assert not found.ok
    (told,) = broken([found])
    assert told.startswith(f"{gate}: {file} has ")
    assert "too much" in told


def test_no_limits_no_gates() -> None:
    assert check_gates(Gates(), BASELINE, [PACKED]) == []


def test_latency_that_was_not_measured_breaks_its_gate() -> None:
    rows = check_gates(Gates(max_latency_ms=1.0), BASELINE, [PACKED])
    assert "not measured" in broken(rows)[0]


def test_the_latency_gate_is_held_by_the_fastest_file_whatever_the_slowest_takes() -> None:
    slow = entry("model.onnx", "fp32", 0.98, 1e-6, 900, 4.0)
    for artifacts in ([slow, INT8, PACKED], [INT8, PACKED, slow]):
        (row,) = check_gates(Gates(max_latency_ms=1.0), BASELINE, artifacts)
        assert (row.file, row.got, row.ok) == ("model.int8.onnx", 0.5, True)


@pytest.mark.parametrize("missing", ["accuracy_fraction", "max_abs_diff"])
def test_what_was_not_measured_holds_no_gate(missing: str) -> None:
    unmeasured = replace(PACKED, **{missing: None})
    gates = Gates(max_accuracy_drop=0.5, max_abs_diff=0.5)
    found = check_gates(gates, BASELINE, [unmeasured])
    assert [gate.file for gate in found if not gate.ok] == ["model.tsr"]


def test_the_parity_gate_names_the_file_nearest_to_its_bound() -> None:
    gate = parity_gate([("model.onnx", 5e-5, 1e-4), ("model.int8.onnx", 2.0, 9.0)])
    assert (gate.gate, gate.file, gate.ok) == ("parity", "model.onnx", True)
    gate = parity_gate([("model.onnx", 5e-5, 1e-4), ("model.int8.onnx", 9.5, 9.0)])
    assert (gate.file, gate.ok) == ("model.int8.onnx", False)
    assert broken([gate]) == ["parity: model.int8.onnx has 9.5, the limit is 9.0 (0.5 too much)"]
