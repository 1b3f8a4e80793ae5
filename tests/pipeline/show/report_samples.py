"""A manifest, stages and confusion counts as a digits run gives them, for the report's tests."""

import hashlib
from typing import Any

TARGETS = (("cpu", 1, 1), ("cpu", 64, 1), ("cpu", 64, 2))


def latency(p50_ms: float, speedup: float | None, *, distinguishable: bool = True) -> list[dict[str, Any]]:
    """Rows for `TARGETS`; a baseline has a speedup of 1."""
    rows = []
    for provider, batch, threads in TARGETS:
        p50 = p50_ms * batch**0.6
        row: dict[str, Any] = {
            "provider": provider,
            "batch": batch,
            "threads": threads,
            "p50_ms": p50,
            "p90_ms": p50 * 1.1,
            "p99_ms": p50 * 1.5,
            "p50_low_ms": p50 * 0.97,
            "p50_high_ms": p50 * 1.04,
            "throughput_per_s": batch / p50 * 1000,
        }
        row |= {"speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0, "distinguishable": False}
        if speedup is not None:
            s = speedup * batch**0.05
            row |= {"speedup": s, "speedup_low": s * 0.95, "speedup_high": s * 1.06}
            row["distinguishable"] = distinguishable
        rows.append(row)
    return rows


def on_a_gpu(speedup: float, device: float, **changes: Any) -> dict[str, Any]:
    """A row of a GPU: end to end, and on the device, whose ratio decides."""
    (row, *_) = latency(1.0, speedup)
    shown = not device * 0.95 <= 1.0 <= device * 1.06
    row |= {"provider": "CUDAExecutionProvider", "distinguishable": shown, "device_p50_ms": 0.5}
    row |= {
        "device_speedup": device,
        "device_speedup_low": device * 0.95,
        "device_speedup_high": device * 1.06,
    }
    return row | changes


def artifact(file: str, kind: str, size: int, accuracy: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "file": file,
        "kind": kind,
        "bytes": size,
        "accuracy_fraction": accuracy,
        "sha256": hashlib.sha256(file.encode()).hexdigest(),
        "max_abs_diff": 3.1e-7,
        "latency": rows,
    }


def manifest() -> dict[str, Any]:
    unclear = latency(0.0299, 1.03, distinguishable=False)
    return {
        "name": "digits",
        "tersor_version": "0.1.0",
        "data": {"name": "digits"},
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "onnxruntime": "1.31.1",
            "cpu": {"cores": 2, "flags": ["avx2", "avx512_vnni"]},
            "gpu": None,
        },
        "baseline": artifact("baseline.onnx", "fp32", 412_650, 0.9844, latency(0.031, None)),
        "artifacts": [
            artifact("model.onnx", "fp32", 78_400, 0.9822, latency(0.009, 3.4)),
            artifact("model.int8.onnx", "int8", 26_900, 0.98, latency(0.0071, 4.4)),
            artifact("model.lowbit.onnx", "lowbit", 14_800, 0.9822, unclear),
            artifact("model.tsr", "packed", 7_310, 0.9822, []),
        ],
        "not_measured": [{"what": "CUDA, batch 1 and 64", "reason": "no CUDA device on this machine"}],
        "recommended": {
            "cpu, batch 1": {"file": "model.int8.onnx", "speedup": 4.4, "why": "fastest within the gates"},
            "disk": {"file": "model.tsr", "speedup": None, "why": "smallest"},
        },
        "compression_ratio": 56.45,
        "gates": [
            {"gate": "max_accuracy_drop", "limit": 0.01, "got": 0.0022, "ok": True},
            {"gate": "max_bytes", "limit": 7000, "got": 7310, "ok": False, "file": "model.tsr"},
        ],
        "parity": {"max_abs_diff": 4.2e-7, "batches": [1, 7, 32]},
        "cost": {
            "baseline": {"parameters": 102_154, "macs": 712_000},
            "model": {"parameters": 18_900, "macs": 98_000},
        },
    }


def stage(name: str, kind: str, accuracy: float, onnx: int, packed: int, nonzero: int) -> dict[str, Any]:
    return {
        "name": name,
        "stage": kind,
        "seconds": 4.2,
        "validation_accuracy_fraction": accuracy,
        "validation_loss": 0.071,
        "parameters": onnx // 4,
        "nonzero_weights": nonzero,
        "macs": onnx * 2,
        "onnx_bytes": onnx,
        "gzip_bytes": int(packed * 1.5),
        "zstd_bytes": int(packed * 1.45),
        "xz_bytes": int(packed * 1.2),
        "packed_bytes": packed,
        "entropy_bytes": int(packed * 0.93),
        "details": {"epochs": 12, "widths": [16, 32], "asked_fraction": 0.5, "got": {"conv1": 0.5}},
    }


def stages() -> list[dict[str, Any]]:
    return [
        stage("train", "train", 0.9852, 412_650, 381_000, 101_900),
        stage("prune", "structure", 0.9185, 78_400, 72_300, 18_700),
        stage("recover", "finetune", 0.9861, 78_400, 72_200, 18_700),
        stage("sparsify", "sparsity", 0.9407, 78_400, 13_900, 2_900),
        stage("recover-sparse", "finetune", 0.9852, 78_400, 13_850, 2_900),
        stage("share", "sharing", 0.9778, 78_400, 7_320, 2_900),
        stage("tune-centroids", "finetune", 0.9830, 78_400, 7_310, 2_900),
    ]


def confusion(classes: int = 10) -> dict[str, Any]:
    """Nearly right answers, one class without images."""
    before = [[0] * classes for _ in range(classes)]
    for true in range(classes - 1):
        before[true][true] = 44
        before[true][(true * 3 + 1) % classes] += 1
    after = [list(row) for row in before]
    after[1][1] -= 3
    after[1][classes - 1] += 3
    return {"classes": [str(i) for i in range(classes)], "baseline": before, "model": after}
