"""Advice from what was measured: which file is worth taking, in a sentence each."""

from collections.abc import Sequence

from tersor.export.bundle.manifest import Artifact, Int8
from tersor.export.timing.latency import LatencyRow, ratio_told
from tersor.export.timing.providers import TARGETS


def advise(artifacts: Sequence[Artifact], targets: Sequence[str], int8: Int8 | None = None) -> list[str]:
    """What the timings and accuracies of a bundle say against or for its int8 file.

    Args:
        artifacts: the manifest's, the fp32 file `model.onnx` among them.
        targets: keys of `TARGETS`.
        int8: how that file came about, for the cause.

    Returns:
        Sentences; none where nothing was measured, or on a busy machine only. Timings are compared at the
        same batch size and threads, by the intervals of their speed-ups.
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
                    told.append(_compared(target, row, own, _instead(int8)))
    return told


def _same(one: LatencyRow, other: LatencyRow) -> bool:
    return (one.provider, one.batch, one.threads) == (other.provider, other.batch, other.threads)


def _instead(int8: Int8 | None) -> str:
    """What to do where int8 is no faster: the cause is looked for in the graph."""
    smooth = int8.smooth_activations if int8 is not None else {}
    if not smooth:
        return "keep fp32"
    count = ", ".join(f"{number} {name}" for name, number in smooth.items())
    return (
        f"keep fp32, or replace the activation by ReLU and tune: the network has {count}, "
        "for which there is no integer kernel"
    )


def _ratio(row: LatencyRow, own: LatencyRow) -> tuple[float, float, float]:
    """How many times as fast a file is as another: low, middle, high, of the far ends of both intervals.

    Both stand against one baseline; the far ends allow for either being at its own, so it is no narrower.
    """
    (low, middle, high), (own_low, own_middle, own_high) = row.decisive, own.decisive
    return low / own_high, middle / own_middle, high / own_low


def _compared(target: str, row: LatencyRow, own: LatencyRow, instead: str) -> str:
    where = f"at batch {row.batch}, {row.threads} thread(s)"
    times = f"{row.p50_ms:.4g} against {own.p50_ms:.4g} ms"
    low, middle, high = _ratio(row, own)
    if high < 1:
        return f"int8 is slower on this {target.upper()} for this network {where} ({times}): {instead}"
    if low > 1:
        ratio = ratio_told(low, middle, high)
        return f"int8 is {ratio} as fast as fp32 on this {target.upper()} {where} ({times})"
    return f"int8 is no faster than fp32 on this {target.upper()} {where} ({times}): {instead}"
