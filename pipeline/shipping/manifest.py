"""The manifest: everything that is claimed of a bundle, as data. No paths and no times of day."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.export.bundle import folder as bundle
from tersor.export.timing import parity
from tersor.models.user_code import is_file_place
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.shipping.gates import check_gates, parity_gate
from tersor.pipeline.stages.environment import environment
from tersor.version import __version__

if TYPE_CHECKING:
    from tersor.pipeline.shipping.files import Shipped

LATENCY_KEYS = (
    "provider",
    "batch",
    "threads",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "speedup",
    "p50_low_ms",
    "p50_high_ms",
    "speedup_low",
    "speedup_high",
    "distinguishable",
    "throughput_per_s",
    "rounds",
)


def make_manifest(
    recipe: Recipe,
    data: Data,
    shipped: "Sequence[Shipped]",
    latency: Sequence[Mapping[str, Any]],
    not_measured: Sequence[tuple[str, str]],
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Put together what was measured.

    Args:
        shipped: the files, baseline.onnx first.
        latency: rows of the benchmark, `file` saying whose.
        not_measured: (what, reason).
        stages: metrics of the run's stages.
    """
    baseline, *artifacts = [_entry(s, latency) for s in shipped]
    packed = next(a for a in artifacts if a["kind"] == "packed")
    packed["notes"] = "unpacks to model.onnx byte for byte, so its latency is that of model.onnx"
    parities = [(s.path.name, s.max_abs_diff, s.most_diff) for s in shipped]
    gates = [parity_gate(parities), *check_gates(recipe.gates, baseline, artifacts)]
    failed = {gate["file"] for gate in gates if not gate["ok"]}
    return {
        "name": recipe.name,
        "tersor_version": __version__,
        "created_by": "tersor deploy",
        "licence": recipe.licence,
        "recipe": without_paths(recipe),
        "data": data_entry(recipe, data),
        "classes": list(data.classes),
        "preprocessing": asdict(data.preprocessing),
        "input": {"name": "input", "shape": ["batch", *data.input_shape], "dtype": "float32"},
        "environment": environment(recipe),
        "compression_ratio": round(baseline["bytes"] / packed["bytes"], 4),
        "recommended": bundle.recommend(artifacts, recipe.deploy.targets, failed=failed),
        "baseline": baseline,
        "artifacts": artifacts,
        "not_measured": [{"what": what, "reason": reason} for what, reason in not_measured],
        "gates": gates,
        "parity": {"file": "parity.npz", "bounds": dict(parity.BOUNDS)},
        "cost": {"baseline": _cost(stages[0]), "model": _cost(stages[-1])},
        "stages": [_stage(s) for s in stages],
    }


def without_paths(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without this machine's paths: of a file its name is kept."""
    plain = recipe.model_dump(mode="json")
    if plain["data"]["path"] is not None:
        plain["data"]["path"] = Path(plain["data"]["path"]).name
    if is_file_place(plain["model"]):
        plain["model"] = Path(plain["model"]).name
    for stage in plain["stages"]:
        if stage.get("weights"):
            stage["weights"] = Path(stage["weights"]).name
    return plain


def _entry(shipped: "Shipped", latency: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [{k: row[k] for k in LATENCY_KEYS} for row in latency if row["file"] == shipped.path.name]
    return {
        **bundle.file_entry(shipped.path, shipped.kind),
        "accuracy_fraction": shipped.accuracy_fraction,
        "max_abs_diff": shipped.max_abs_diff,
        "latency": rows,
    }


def data_entry(recipe: Recipe, data: Data) -> dict[str, Any]:
    """What `verify` needs to cut the same test split from the same data."""
    settings = recipe.data.model_dump(mode="json", exclude={"path"})
    sizes = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
    return {
        "name": data.name,
        "seed": recipe.seed,
        "sha256": data.digest(),
        "images": sizes,
        "settings": settings,
    }


def _cost(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {k: stage[k] for k in ("parameters", "nonzero_weights", "macs")}


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's metrics without the learning curve, which stays in the run folder."""
    details = {k: v for k, v in stage["details"].items() if k != "history"}
    return {**stage, "details": details}
