"""Gates: claims of the recipe that must hold before anything ships."""

from collections.abc import Sequence

from tersor.export.bundle.manifest import Artifact, Gate
from tersor.pipeline.recipe.recipe import Gates


def check_gates(settings: Gates, baseline: Artifact, artifacts: Sequence[Artifact]) -> list[Gate]:
    """Hold the measured files against the gates that are set.

    Args:
        settings: limits; None means no gate.
        baseline, artifacts: the files, latency included; an accuracy that was not measured counts as none.
    """
    rows = []
    if settings.max_accuracy_drop is not None:
        worst = min(artifacts, key=_accuracy)
        drop = _accuracy(baseline) - _accuracy(worst)
        rows.append(_row("max_accuracy_drop", settings.max_accuracy_drop, drop, worst.file))
    if settings.max_bytes is not None:
        packed = next(a for a in artifacts if a.kind == "packed")
        rows.append(_row("max_bytes", settings.max_bytes, packed.bytes, packed.file))
    if settings.max_abs_diff is not None:
        exact = [a for a in [baseline, *artifacts] if a.kind in ("fp32", "lowbit", "packed")]
        worst = max(exact, key=lambda a: a.difference)
        rows.append(_row("max_abs_diff", settings.max_abs_diff, worst.difference, worst.file))
    if settings.max_latency_ms is not None:
        rows.append(_latency(settings.max_latency_ms, artifacts))
    return rows


def parity_gate(files: Sequence[tuple[str, float, float]]) -> Gate:
    """The gate that always stands: every file computes what torch computes, within the bound of its kind.

    Args:
        files: (name, largest difference from torch, the largest allowed), both in logits.

    Returns:
        The gate, by the file that comes nearest to its bound, or exceeds it most.
    """
    name, got, limit = max(files, key=lambda file: file[1] / max(file[2], 1e-300))
    return _row("parity", limit, got, name)


def broken(gates: Sequence[Gate]) -> list[str]:
    """For each gate that does not hold: which, by how much."""
    return [
        f"{gate.gate}: {gate.file} has {gate.got}, the limit is {gate.limit}"
        + (f" ({gate.got - gate.limit:.6g} too much)" if gate.got is not None else "")
        for gate in gates
        if not gate.ok
    ]


def _accuracy(artifact: Artifact) -> float:
    return artifact.accuracy_fraction or 0.0


def _latency(limit: float, artifacts: Sequence[Artifact]) -> Gate:
    """The fastest file's p50 at the first batch size; what was not measured cannot hold."""
    timed = [(row.p50_ms, a.file) for a in artifacts for row in a.latency[:1]]
    if not timed:
        return Gate("max_latency_ms", limit, None, False, "not measured: it")
    return _row("max_latency_ms", limit, *min(timed))


def _row(gate: str, limit: float, got: float, file: str) -> Gate:
    # 1e-12: an accuracy drop of exactly the limit must not fail on the last bit of a subtraction
    return Gate(gate, limit, round(got, 12), got <= limit + 1e-12, file)
