"""What decides a stage's result, as plain data to be hashed."""

from typing import Any

from tersor.files import sha256_of
from tersor.models import definition
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.table import STAGES


def stage_identity(
    recipe: Recipe, index: int, data_digest: str, before: str, versions: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides a stage's result, as plain data to be hashed."""
    settings = recipe.stages[index]
    identity: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", exclude={"name"}),
        "version": STAGES[settings.stage][0],
        "before": before,
        "index": index,
        "model": [recipe.model, recipe.arguments, definition.source_digest(recipe.model)],
        "licence": recipe.licence,
        "data": data_digest,
        "seed": recipe.seed,
        "threads": recipe.threads,
        "device": recipe.device,
        "versions": versions,
    }
    if settings.stage == "load":
        identity["weights"] = sha256_of(settings.weights) if settings.weights.is_file() else None
    return identity
