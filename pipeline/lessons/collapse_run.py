"""The lesson of collapse on a finished run: measured, drawn, written."""

from dataclasses import asdict
from pathlib import Path

from tersor.files import write_json
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.lessons.collapse import (
    R3_PERCENT,
    Collapse,
    _dense,
    collapse,
)
from tersor.pipeline.shipping.opened import Finished
from tersor.pipeline.weights.sensitivity import limited
from tersor.progress import Reporter


def run_collapse(
    run: Finished, data: Path | None, *, layer: str | None, images: int, quiet: bool
) -> tuple[Collapse, Path]:
    """Try every rebuild on a finished run's trained network; write collapse.json and collapse.png.

    Args:
        run: the finished run, or a bundle.
        data: where its data lie now.
        layer: a linear layer that one other linear layer reads; None: the last such one.
        images: at most so many validation images.

    Raises:
        BadInput: no such run, or no such layer.
    """
    from tersor.pipeline.lessons.collapse_picture import draw_collapse

    network = run.baseline()
    wired = _dense(network, layer)
    dataset = run.data(data)
    validation = Images.of(limited(dataset.validation, images), dataset.preprocessing)
    with Reporter([("rebuilding", 1.0)], quiet=quiet) as reporter, reporter.step() as tell:
        result = collapse(network, wired, validation, tell)
    with run.results("collapse") as folder:
        write_json(folder / "collapse.json", asdict(result))
        draw_collapse(result, R3_PERCENT, folder / "collapse.png")
    return result, folder / "collapse.png"
