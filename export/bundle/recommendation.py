"""Which file to take, for each target and batch size, from what was measured there."""

from collections.abc import Collection, Sequence

from tersor.export.bundle.manifest import Artifact, Recommended
from tersor.export.timing.latency import LatencyRow, ratio_told
from tersor.export.timing.providers import TARGETS

PLAINEST_FIRST = ("fp32", "lowbit", "fp16", "int8")
"""Kinds of files, by how little can go wrong with them."""


def recommend(
    artifacts: Sequence[Artifact],
    targets: Sequence[str],
    batches: Sequence[int],
    *,
    default: str = "model.onnx",
    failed: Collection[str] = (),
) -> tuple[Recommended, ...]:
    """A file for each target and batch size, in this order.

    The fastest (fewest threads measured; on the device where that was timed) among files that are faster than
    the baseline beyond the noise and passed their gates. Of those whose intervals overlap with the fastest's,
    which are as fast as far as the clock can tell, the plainest: by `PLAINEST_FIRST`, then the closest to the
    network, then the smallest. Otherwise `default`.

    Args:
        artifacts: the manifest's, timed.
        targets: keys of `TARGETS`.
        batches: images per run.
        default: the file of the baseline's precision.
        failed: names of files that broke a gate.
    """
    return tuple(_one(artifacts, target, batch, default, failed) for target in targets for batch in batches)


def _one(
    artifacts: Sequence[Artifact], target: str, batch: int, default: str, failed: Collection[str]
) -> Recommended:
    rows = [
        (artifact, row)
        for artifact in artifacts
        for row in artifact.latency
        if row.provider == TARGETS[target] and row.batch == batch and row.busy is None
    ]
    if not rows:
        return Recommended(default, batch, None, f"nothing was measured on {target} at batch {batch}", target)
    threads = min(row.threads for _, row in rows)
    rows = [(a, r) for a, r in rows if r.threads == threads]
    faster = [(a, r) for a, r in rows if r.decisive[0] > 1 and a.file not in failed]
    if not faster:
        own = next((r.decisive[1] for a, r in rows if a.file == default), None)
        why = "no file that passed its gates is distinguishably faster than the baseline"
        return Recommended(default, batch, own, why, target, threads)
    best = max((r for _, r in faster), key=lambda r: r.decisive[1])
    close = [(a, r) for a, r in faster if r.decisive[2] >= best.decisive[0]]
    chosen, row = min(close, key=lambda pair: (_plainness(pair[0]), pair[0].difference, pair[0].bytes))
    low, middle, high = row.decisive
    why = f"{_told(row)}, {ratio_told(low, middle, high)} the baseline"
    if len(close) > 1:
        why += "; of the files as fast within the noise, the plainest"
    return Recommended(chosen.file, batch, middle, why, target, threads, low, high)


def _told(row: LatencyRow) -> str:
    where = f"fastest at batch {row.batch}, {row.threads} thread(s)"
    if row.device_speedup is not None and row.device_p50_ms is not None:
        return f"{where}: {row.device_p50_ms:.4g} ms on the device"
    return f"{where}: {row.p50_ms:.4g} ms"


def _plainness(artifact: Artifact) -> int:
    kinds = PLAINEST_FIRST
    return kinds.index(artifact.kind) if artifact.kind in kinds else len(kinds)
