"""`tersor look sensitivity`: the layers of a run's network, one at a time, on the validation split."""

from pathlib import Path

from tersor.errors import BadInput
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.lessons.sensitivity_page import write_sensitivity
from tersor.pipeline.shipping.opened import Finished
from tersor.pipeline.weights.sensitivity import Method, Point, global_sensitivity, sensitivity
from tersor.progress import Reporter

LEVELS: dict[str, tuple[float, ...]] = {
    "sparsity": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "bits": (1, 2, 3, 4, 5, 6, 8),
    "sharing": (1, 2, 3, 4, 5, 6),
}


def run_sensitivity(
    run: Finished,
    data: Path | None,
    *,
    method: Method,
    levels: str,
    stage: str | None,
    limit: int,
    quiet: bool,
) -> tuple[Path, list[Point]]:
    """Measure each layer alone and all together; write csv, json and a page into the run's folder.

    Args:
        run: the finished run, or a bundle.
        data: where its data lie now.
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
    network, dataset = run.network(stage or 0), run.data(data)
    images = Images.of(dataset.validation.first(limit), dataset.preprocessing)
    with Reporter([("each layer", 4.0), ("all layers", 1.0)], quiet=quiet) as reporter:
        with reporter.step() as tell:
            points = sensitivity(network, images, method=method, levels=chosen, progress=tell)
        with reporter.step() as tell:
            points += global_sensitivity(network, images, method=method, levels=chosen, progress=tell)
    with run.results("sensitivity") as folder:
        baseline = evaluate(network.module(), images).accuracy_fraction
        write_sensitivity(folder, points, baseline, f"{run.name}, {stage or run.stages[0].name}, {method}")
    return folder / "sensitivity.html", points
