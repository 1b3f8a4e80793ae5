"""Advice says what was measured: slower, no faster, or how much faster, and nothing of what was not."""

from tersor.export.bundle.advice import advise
from tersor.export.bundle.card import model_card


def row(p50: float, *, batch: int = 1, spread: float = 0.01, provider: str = "CPUExecutionProvider") -> dict:
    low, high = p50 * (1 - spread), p50 * (1 + spread)
    return {
        "provider": provider,
        "batch": batch,
        "threads": 1,
        "p50_ms": p50,
        "p50_low_ms": low,
        "p50_high_ms": high,
    }


def entry(file: str, kind: str, *rows: dict) -> dict:
    return {"file": file, "kind": kind, "latency": list(rows)}


def test_slower_int8_is_advised_against() -> None:
    found = advise([entry("model.onnx", "fp32", row(0.2)), entry("q.onnx", "int8", row(0.3))], ["cpu"])
    assert found == [
        "int8 is slower on this CPU for this network at batch 1, 1 thread(s) (0.3 against 0.2 ms): keep fp32"
    ]


def test_faster_int8_is_told_with_its_factor() -> None:
    found = advise([entry("model.onnx", "fp32", row(0.4)), entry("q.onnx", "int8", row(0.2))], ["cpu"])
    assert found == ["int8 is 2.00x as fast as fp32 on this CPU at batch 1, 1 thread(s) (0.2 against 0.4 ms)"]


def test_overlapping_intervals_are_no_gain() -> None:
    rows = row(0.2, spread=0.2), row(0.19, spread=0.2)
    found = advise([entry("model.onnx", "fp32", rows[0]), entry("q.onnx", "int8", rows[1])], ["cpu"])
    assert "int8 is no faster than fp32 on this CPU" in found[0]


def test_batches_are_compared_each_with_its_own_and_what_was_not_timed_is_left_out() -> None:
    plain = entry("model.onnx", "fp32", row(0.2), row(9.0, batch=64))
    found = advise([plain, entry("q.onnx", "int8", row(3.0, batch=64), row(1.0, batch=7))], ["cpu"])
    assert len(found) == 1
    assert "3.00x as fast" in found[0]
    assert advise([plain], ["cpu"]) == []
    assert advise([entry("model.onnx", "fp32"), entry("q.onnx", "int8")], ["cpu"]) == []


def test_the_card_says_what_stayed_in_float_and_what_the_timing_means() -> None:
    info = {
        "method": "entropy",
        "calibration_images": 256,
        "tried": {"minmax": 0.9, "entropy": 0.95},
        "fp32_validation_accuracy_fraction": 0.97,
        "reduce_range": True,
        "kept_float": ["stem", "fc"],
        "helps": {"conv": 0.951, "fc": 0.968},
        "kept_integers": ["conv"],
    }
    rows = [{**row(0.2), "p90_ms": 0.3, "p99_ms": 0.4, "speedup": 1.0}]
    manifest = {
        "name": "x",
        "input": {"name": "input", "shape": ["batch", 1, 8, 8]},
        "compression_ratio": 2.0,
        "baseline": {"file": "baseline.onnx", "kind": "fp32", "bytes": 9, "latency": rows},
        "artifacts": [],
        "preprocessing": {"divisor": 1.0, "mean": [0.0], "std": [1.0]},
        "int8": info,
        "advice": ["int8 is slower on this CPU"],
        "not_measured": [{"what": "cuda", "reason": "no GPU"}],
    }
    text = model_card(manifest)
    assert "- Int8 is slower on this CPU." in text
    assert "Calibration by entropy on 256 training images" in text
    assert "minmax 90.00 %, entropy 95.00 % (fp32: 97.00 %). 7-bit weights" in text
    assert "fc (96.80 %)." in text
    assert "Left in float, because the recipe says so: stem." in text
    assert "Layers with the very integers they were trained with: 1." in text
    assert "- Not measured: cuda: no GPU." in text
