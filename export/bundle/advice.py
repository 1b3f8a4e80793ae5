"""Advice from what was measured: which file is worth taking, in a sentence each."""

from collections.abc import Sequence

from tersor.export.bundle.manifest import Artifact
from tersor.export.timing.latency import LatencyRow
from tersor.export.timing.providers import TARGETS


def advise(artifacts: Sequence[Artifact], targets: Sequence[str]) -> list[str]:
    """What the timings and accuracies of a bundle say against or for its int8 file.

    Args:
        artifacts: the manifest's, the fp32 file `model.onnx` among them.
        targets: keys of `TARGETS`.

    Returns:
        Sentences; none where nothing was measured, or on a busy machine only. Timings are compared at the
        same batch size and threads, by their confidence intervals.
    """
    plain = next((a for a in artifacts if a.file == "model.onnx"), None)
    told: list[str] = []
    for artifact in artifacts:
        if plain is None or artifact.kind != "int8":
            continue
        for target in targets:
            for row in artifact.latency:
                own = next((r for r in plain.latency if _same(r, row)), None)
                if own is not None and row.provider == TARGETS[target] and row.busy is None:
                    told.append(_compared(target, row, own))
    return told


def _same(one: LatencyRow, other: LatencyRow) -> bool:
    return (one.provider, one.batch, one.threads) == (other.provider, other.batch, other.threads)


def _compared(target: str, row: LatencyRow, own: LatencyRow) -> str:
    where = f"at batch {row.batch}, {row.threads} thread(s)"
    times = f"{row.p50_ms:.4g} against {own.p50_ms:.4g} ms"
    if row.p50_low_ms > own.p50_high_ms:
        return f"int8 is slower on this {target.upper()} for this network {where} ({times}): keep fp32"
    if row.p50_high_ms < own.p50_low_ms:
        ratio = own.p50_ms / row.p50_ms
        return f"int8 is {ratio:.2f}x as fast as fp32 on this {target.upper()} {where} ({times})"
    return f"int8 is no faster than fp32 on this {target.upper()} {where} ({times}): keep fp32"
