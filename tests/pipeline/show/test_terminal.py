from tersor.export.timing.benchmark import Conditions, Timings
from tersor.export.timing.latency import LatencyRow
from tersor.pipeline.show.terminal import conditions_told, latency_table

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def row(
    provider: str, speedup: float, device: float | None = None, no_graph: str | None = None
) -> LatencyRow:
    """A row whose deciding ratio shows nothing where it is 1."""
    told = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "p50_low_ms", "p50_high_ms", "throughput_per_s"), 1.0)
    told |= {"speedup": speedup, "speedup_low": speedup - 0.1, "speedup_high": speedup + 0.1}
    if device is not None:
        told |= {"device_p50_ms": 0.5, "device_speedup": device}
        told |= {"device_speedup_low": device - 0.1, "device_speedup_high": device + 0.1}
    shown = abs((device or speedup) - 1) > 0.1
    more = {"distinguishable": shown, "rounds": 9, "no_graph": no_graph, "file": "a.onnx"}
    return LatencyRow(provider=provider, batch=1, threads=1, **told, **more)


def cells(*rows: LatencyRow) -> dict[str, str]:
    """Column -> what the last row has there."""
    return {str(column.header): list(column.cells)[-1] for column in latency_table(rows).columns}


def test_doubts_stand_beside_the_ratio_that_decides() -> None:
    told = cells(row(CUDA, 2.0, device=1.02))
    assert told["x"] == "2.00 [1.90, 2.10]"
    assert told["device x"] == "1.02 [0.92, 1.12] not distinguishable"


def test_a_processors_rows_have_no_columns_of_a_device() -> None:
    told = cells(row(CPU, 1.02))
    assert told["x"] == "1.02 [0.92, 1.12] not distinguishable"
    assert not [name for name in told if "device" in name]


def conditions(provider: str, tf32: bool | None) -> Conditions:
    """A quiet machine's."""
    return Conditions(provider, 1, 1, 2, "unknown", 1.0, 0.01, 4, 0, "noise", tf32=tf32)


def test_tf32_and_a_missing_graph_are_told_once_each() -> None:
    rows = (row(CUDA, 1.2, 1.8), row(CUDA, 1.2, 1.8, no_graph="node x is on the CPU"))
    seen = (conditions(CUDA, True), conditions(CUDA, True), conditions(CPU, None))
    lines = conditions_told(Timings(rows, conditions=seen))
    assert [line for line in lines if "TF32" in line] == [
        "CUDA: TF32 on: fp32 files multiply with 10-bit mantissas"
    ]
    assert [line for line in lines if "graph" in line] == [
        "batch 1, a.onnx: no CUDA graph: node x is on the CPU"
    ]
