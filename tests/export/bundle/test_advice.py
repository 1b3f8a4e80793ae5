"""Advice says what was measured: slower, no faster, or how much faster, and nothing of what was not."""

from dataclasses import replace

from tersor.export.bundle.advice import advise
from tersor.export.bundle.card import model_card
from tersor.export.bundle.manifest import (
    Artifact,
    Input,
    Int8,
    Manifest,
    NotMeasured,
    Parity,
)
from tersor.export.timing.latency import LatencyRow
from tersor.models.preprocessing import Preprocessing


def row(
    p50: float, *, batch: int = 1, spread: float = 0.01, provider: str = "CPUExecutionProvider"
) -> LatencyRow:
    return LatencyRow(
        provider,
        batch,
        threads=1,
        p50_ms=p50,
        p90_ms=1.5 * p50,
        p99_ms=2 * p50,
        speedup=1 / p50,
        p50_low_ms=p50 * (1 - spread),
        p50_high_ms=p50 * (1 + spread),
        speedup_low=(1 - spread) / p50,
        speedup_high=(1 + spread) / p50,
        distinguishable=False,
        throughput_per_s=1e3 * batch / p50,
        rounds=30,
    )


def entry(file: str, kind: str, *rows: LatencyRow) -> Artifact:
    return Artifact(file, kind, 9, "0" * 64, latency=rows)


def test_slower_int8_is_advised_against() -> None:
    found = advise([entry("model.onnx", "fp32", row(0.2)), entry("q.onnx", "int8", row(0.3))], ["cpu"])
    assert found == [
        "int8 is slower on this CPU for this network at batch 1, 1 thread(s) (0.3 against 0.2 ms): keep fp32"
    ]


def test_slower_int8_of_smooth_activations_names_the_cause_and_the_way_out() -> None:
    info = Int8(
        None, 0.9, False, 9, (), (), (), "minmax", 0.9, True, {}, {}, smooth_activations={"HardSwish": 19}
    )
    slow = [entry("model.onnx", "fp32", row(0.2)), entry("q.onnx", "int8", row(0.3))]
    told = advise(slow, ["cpu"], info)[0]
    assert "keep fp32, or replace the activation by ReLU and tune: the network has 19 HardSwish" in told
    fast = [entry("model.onnx", "fp32", row(0.4)), entry("q.onnx", "int8", row(0.2))]
    assert "HardSwish" not in advise(fast, ["cpu"], info)[0]  # only a measurement makes it slow


def test_faster_int8_is_told_with_its_factor() -> None:
    found = advise([entry("model.onnx", "fp32", row(0.4)), entry("q.onnx", "int8", row(0.2))], ["cpu"])
    assert found == [
        "int8 is 2.00x [1.96, 2.04] as fast as fp32 on this CPU at batch 1, 1 thread(s) (0.2 against 0.4 ms)"
    ]


def test_overlapping_intervals_are_no_gain() -> None:
    rows = row(0.2, spread=0.2), row(0.19, spread=0.2)
    found = advise([entry("model.onnx", "fp32", rows[0]), entry("q.onnx", "int8", rows[1])], ["cpu"])
    assert "int8 is no faster than fp32 on this CPU" in found[0]


def test_batches_are_compared_each_with_its_own_and_what_was_not_timed_is_left_out() -> None:
    plain = entry("model.onnx", "fp32", row(0.2), row(9.0, batch=64))
    found = advise([plain, entry("q.onnx", "int8", row(3.0, batch=64), row(1.0, batch=7))], ["cpu"])
    assert len(found) == 1
    assert "3.00x [2.94, 3.06] as fast" in found[0]
    assert advise([plain], ["cpu"]) == []
    assert advise([entry("model.onnx", "fp32"), entry("q.onnx", "int8")], ["cpu"]) == []


def test_what_was_timed_on_a_busy_machine_is_no_ground_for_advice() -> None:
    busy = replace(row(0.2), busy="100 involuntary switches a second")
    assert advise([entry("model.onnx", "fp32", row(0.4)), entry("q.onnx", "int8", busy)], ["cpu"]) == []


def test_the_card_says_what_stayed_in_float_and_what_the_timing_means() -> None:
    info = Int8(
        floor=0.96,
        fp32_validation_accuracy_fraction=0.97,
        reduce_range=True,
        calibration_images=256,
        quantized=("conv",),
        kept_float=("stem", "fc"),
        kept_integers=("conv",),
        method="entropy",
        validation_accuracy_fraction=0.968,
        holds=True,
        helps={"conv": 0.951, "fc": 0.968},
        tried={"minmax": 0.9, "entropy": 0.95},
    )
    manifest = Manifest(
        name="x",
        input=Input("input", ("batch", 1, 8, 8), "float32"),
        compression_ratio=2.0,
        baseline=entry("baseline.onnx", "fp32", row(0.2)),
        artifacts=(),
        parity=Parity("parity.npz"),
        preprocessing=Preprocessing(1.0, (0.0,), (1.0,)),
        int8=info,
        advice=("int8 is slower on this CPU",),
        not_measured=(NotMeasured("cuda", "no GPU"),),
    )
    text = model_card(manifest)
    assert "- Int8 is slower on this CPU." in text
    assert "Calibration by entropy on 256 training images" in text
    assert "minmax 90.00 %, entropy 95.00 % (fp32: 97.00 %). 7-bit weights" in text
    assert "fc (96.80 %)." in text
    assert "Left in float, because the recipe says so: stem." in text
    assert "Layers with the very integers they were trained with: 1." in text
    assert "- Not measured: cuda: no GPU." in text
