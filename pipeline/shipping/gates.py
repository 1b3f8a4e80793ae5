"""Gates: claims of the recipe that must hold before anything ships."""

from collections.abc import Mapping, Sequence
from typing import Any

from tersor.pipeline.recipe.recipe import Gates


def check_gates(
    settings: Gates, baseline: Mapping[str, Any], artifacts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Hold the measured files against the gates that are set.

    Args:
        settings: limits; None means no gate.
        baseline, artifacts: manifest entries, latency included.

    Returns:
        One row a gate: gate, limit, got, ok, and the file that decided.
    """
    rows = []
    if settings.max_accuracy_drop is not None:
        worst = min(artifacts, key=lambda a: a["accuracy_fraction"])
        drop = baseline["accuracy_fraction"] - worst["accuracy_fraction"]
        rows.append(_row("max_accuracy_drop", settings.max_accuracy_drop, drop, worst["file"]))
    if settings.max_bytes is not None:
        packed = next(a for a in artifacts if a["kind"] == "packed")
        rows.append(_row("max_bytes", settings.max_bytes, packed["bytes"], packed["file"]))
    if settings.max_abs_diff is not None:
        exact = [a for a in [baseline, *artifacts] if a["kind"] in ("fp32", "lowbit", "packed")]
        worst = max(exact, key=lambda a: a["max_abs_diff"])
        rows.append(_row("max_abs_diff", settings.max_abs_diff, worst["max_abs_diff"], worst["file"]))
    if settings.max_latency_ms is not None:
        rows.append(_latency(settings.max_latency_ms, artifacts))
    return rows


def parity_gate(files: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """The gate that always stands: every file computes what torch computes, within the bound of its kind.

    Args:
        files: (name, largest difference from torch, the largest allowed), both in logits.

    Returns:
        The row of the file that comes nearest to its bound, or exceeds it most.
    """
    name, got, limit = max(files, key=lambda file: file[1] / max(file[2], 1e-300))
    return _row("parity", limit, got, name)


def broken(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each gate that does not hold: which, by how much."""
    return [
        f"{r['gate']}: {r['file']} has {r['got']}, the limit is {r['limit']}"
        + (f" ({r['got'] - r['limit']:.6g} too much)" if r["got"] is not None else "")
        for r in rows
        if not r["ok"]
    ]


def _latency(limit: float, artifacts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fastest file's p50 at the first batch size; what was not measured cannot hold."""
    timed = [(row["p50_ms"], a["file"]) for a in artifacts for row in a["latency"][:1]]
    if not timed:
        return {
            "gate": "max_latency_ms",
            "limit": limit,
            "got": None,
            "ok": False,
            "file": "not measured: it",
        }
    return _row("max_latency_ms", limit, *min(timed))


def _row(gate: str, limit: float, got: float, file: str) -> dict[str, Any]:
    # 1e-12: an accuracy drop of exactly the limit must not fail on the last bit of a subtraction
    return {"gate": gate, "limit": limit, "got": round(got, 12), "ok": got <= limit + 1e-12, "file": file}
