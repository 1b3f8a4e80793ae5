"""The manifest of a bundle, put together from what was measured. No paths and no times of day."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.export.bundle import folder as bundle
from tersor.export.bundle.manifest import Artifact, DataEntry, Input, Manifest, NotMeasured, Parity
from tersor.export.bundle.recommendation import recommend
from tersor.export.timing import parity
from tersor.export.timing.benchmark import Timings
from tersor.export.timing.latency import LatencyRow
from tersor.export.timing.providers import TARGETS
from tersor.models.user_code import is_file_place
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.shipping.gates import check_gates, parity_gate
from tersor.pipeline.stages.environment import environment
from tersor.pipeline.stages.metrics import StageMetrics
from tersor.version import __version__

if TYPE_CHECKING:
    from tersor.pipeline.shipping.files import Shipped


def make_manifest(
    recipe: Recipe,
    data: Data,
    shipped: "Sequence[Shipped]",
    timings: Timings,
    not_measured: Sequence[tuple[str, str]],
    stages: Sequence[StageMetrics],
) -> Manifest:
    """Put together what was measured.

    Args:
        shipped: the files, baseline.onnx first.
        timings: of the benchmark; rows say by `file` whose they are.
        not_measured: (what, reason).
        stages: metrics of the run's stages.
    """
    baseline, *artifacts = [_entry(s, timings.rows) for s in shipped]
    packed = next(a for a in artifacts if a.kind == "packed")
    parities = [(s.path.name, s.max_abs_diff, s.most_diff) for s in shipped]
    gates = [parity_gate(parities), *check_gates(recipe.gates, baseline, artifacts)]
    failed = {gate.file for gate in gates if not gate.ok}
    settings = recipe.deploy
    choices = recommend(artifacts, settings.targets, settings.batches, failed=failed)
    return Manifest(
        name=recipe.name,
        tersor_version=__version__,
        created_by="tersor deploy",
        licence=recipe.licence,
        recipe=without_paths(recipe),
        data=data_entry(recipe, data),
        classes=data.classes,
        preprocessing=data.preprocessing,
        input=Input("input", ("batch", *data.input_shape), "float32"),
        environment=environment(recipe),
        compression_ratio=round(baseline.bytes / packed.bytes, 4),
        recommended={c.target or "": c for c in reversed(choices)},
        recommendations=choices,
        clock=timings.conditions,
        baseline=baseline,
        artifacts=tuple(artifacts),
        not_measured=tuple(NotMeasured(*pair) for pair in (*not_measured, *_refused(timings))),
        gates=tuple(gates),
        parity=Parity("parity.npz", parity.BOUNDS),
        cost={"baseline": _cost(stages[0]), "model": _cost(stages[-1])},
        stages=tuple(_stage(s) for s in stages),
    )


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


def _entry(shipped: "Shipped", latency: Sequence[LatencyRow]) -> Artifact:
    packed = "unpacks to model.onnx byte for byte, so its latency is that of model.onnx"
    return replace(
        bundle.file_entry(shipped.path, shipped.kind),
        accuracy_fraction=shipped.accuracy_fraction,
        max_abs_diff=shipped.max_abs_diff,
        latency=tuple(replace(row, file=None) for row in latency if row.file == shipped.path.name),
        notes=packed if shipped.kind == "packed" else None,
    )


def _refused(timings: Timings) -> list[tuple[str, str]]:
    """What was to be timed, and why there is no figure of it."""
    names = {provider: target for target, provider in TARGETS.items()}
    return [
        (f"{names.get(r.provider, r.provider)} at batch {r.batch}, {r.threads} thread(s)", r.reason)
        for r in timings.refused
    ]


def data_entry(recipe: Recipe, data: Data) -> DataEntry:
    """What `verify` needs to cut the same test split from the same data."""
    settings = recipe.data.model_dump(mode="json", exclude={"path"})
    sizes = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
    return DataEntry(data.name, recipe.seed, data.digest(), sizes, settings)


def _cost(stage: StageMetrics) -> dict[str, int]:
    return {
        "parameters": stage.parameters,
        "nonzero_weights": stage.nonzero_weights,
        "macs": stage.macs,
    }


def _stage(stage: StageMetrics) -> dict[str, Any]:
    """A stage's metrics without the learning curve, which stays in the run folder."""
    details = {k: v for k, v in stage.details.items() if k != "history"}
    return replace(stage, details=details).to_json()
