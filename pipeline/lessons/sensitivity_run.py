"""`tersor sensitivity`: the layers of a finished run's network, one at a time, on the validation split."""

from pathlib import Path

from tersor.errors import BadInput
from tersor.files import writing
from tersor.models import network as networks
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.data.load import load_data
from tersor.pipeline.lessons.sensitivity_page import write_sensitivity
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.environment import prepare_torch
from tersor.pipeline.stages.run_folder import stage_metrics
from tersor.pipeline.weights.sensitivity import Method, Point, global_sensitivity, sensitivity
from tersor.progress import Reporter

LEVELS: dict[str, tuple[float, ...]] = {
    "sparsity": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "bits": (1, 2, 3, 4, 5, 6, 8),
    "sharing": (1, 2, 3, 4, 5, 6),
}


def run_sensitivity(
    recipe: Recipe, runs: Path, *, method: Method, levels: str, stage: str | None, limit: int, quiet: bool
) -> tuple[Path, list[Point]]:
    """Measure each layer alone and all together; write csv, json and a page into the run's folder.

    Args:
        recipe: of a finished run.
        method: sparsity, bits or sharing.
        levels: comma-separated; empty: R1's for sparsity, 1 to 8 bits otherwise.
        stage: whose network; None: the first stage's, the trained one.
        limit: at most so many validation images.

    Returns:
        The page, and the points of the layers and of all layers together.

    Raises:
        BadInput: unknown stage, levels that are no numbers, or no finished run.
    """
    try:
        chosen = tuple(float(level) for level in levels.split(",")) if levels else LEVELS[method]
    except ValueError as error:
        raise BadInput("levels are numbers, separated by commas", got=levels, where="--levels") from error
    run = runs / recipe.name
    names = [s["name"] for s in stage_metrics(run)]
    wanted = stage or names[0]
    if wanted not in names:
        raise BadInput("the run has no such stage", got=wanted, wanted=", ".join(names), where="--stage")
    prepare_torch(recipe)
    network = networks.load(run / f"{names.index(wanted) + 1:02d}-{wanted}" / "network.safetensors")
    data = load_data(**recipe.data.model_dump(), seed=recipe.seed)
    images = Images.of(data.validation, data.preprocessing)
    images = Images(images.inputs[:limit], images.labels[:limit])
    with Reporter([("each layer", 4.0), ("all layers", 1.0)], quiet=quiet) as reporter:
        with reporter.step() as tell:
            points = sensitivity(network, images, method=method, levels=chosen, progress=tell)
        with reporter.step() as tell:
            points += global_sensitivity(network, images, method=method, levels=chosen, progress=tell)
    folder = run / "sensitivity"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        baseline = evaluate(network.module(), images).accuracy_fraction
        write_sensitivity(folder, points, baseline, f"{recipe.name}, {wanted}, {method}")
    return folder / "sensitivity.html", points
