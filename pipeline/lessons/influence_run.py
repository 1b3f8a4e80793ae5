"""`tersor look influence`: the channels of a run's network, predicted and measured; table, JSON, picture."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from tersor.files import write_json
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.lessons.influence import METHODS, Agreement, Influence, influence
from tersor.pipeline.lessons.influence_picture import draw_influence
from tersor.pipeline.shipping.opened import Finished
from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.weights.sensitivity import limited
from tersor.progress import Reporter

TAYLOR_IMAGES = 2000
"""Training images that the Taylor prediction takes its gradients on."""


def run_influence(
    run: Finished, data: Path | None, *, layers: list[str], stage: str | None, images: int, quiet: bool
) -> tuple[Influence, Path]:
    """Measure, and write influence.json and influence.png into the run's folder `influence`.

    Args:
        run: the finished run, or a bundle.
        data: where its data lie now.
        layers: patterns; empty: all layers whose channels can be removed alone.
        stage: whose network; None: the first stage's.
        images: at most so many validation images, every class in its share.

    Returns:
        What was found, and the picture's path.

    Raises:
        BadInput: no such run, stage or layer; TersorError: a rebuilt network is wrong.
    """
    network, dataset = run.network(stage or 0), run.data(data)
    train = Images.of(limited(dataset.train, TAYLOR_IMAGES), dataset.preprocessing)
    validation = Images.of(limited(dataset.validation, images), dataset.preprocessing)
    with Reporter([("influence", 1.0)], quiet=quiet) as reporter, reporter.step() as tell:
        result = influence(network, train, validation, layers=layers, progress=tell)
    with run.results("influence") as folder:
        write_json(folder / "influence.json", as_json(result))
        draw_influence(result, folder / "influence.png", run.name)
    return result, folder / "influence.png"


def as_json(result: Influence) -> dict[str, Any]:
    """Everything found, as plain data; fractions are of 1."""
    return {
        "images": result.images,
        "baseline": asdict(result.baseline),
        "agreements": [asdict(a) for a in result.agreements()],
        "channels": [asdict(c) for c in result.channels],
        "left_out": dict(result.left_out),
        "proof_max_abs_diff": dict(result.proof_max_abs_diff),
    }


def influence_table(result: Influence) -> Table:
    """A line a layer: every prediction's rank correlation, and what its first choice would cost."""
    table = Table(title="rank correlation of predicted and measured influence (first choice costs, points)")
    table.add_column("layer")
    table.add_column("channels", justify="right")
    for method in METHODS:
        table.add_column(method, justify="right")
    table.add_column("best choice", justify="right")
    agreements = result.agreements()
    for layer, channels in result.layers().items():
        layer_agreements = [a for a in agreements if a.layer == layer]
        best = min(c.accuracy_drop_fraction for c in channels)
        table.add_row(layer, str(len(channels)), *map(_cell, layer_agreements), f"{100 * best:.2f}")
    return table


def influence_markdown(result: Influence) -> str:
    """The same table for a page."""
    rows = []
    agreements = result.agreements()
    for layer, channels in result.layers().items():
        cells = [_cell(a) for a in agreements if a.layer == layer]
        best = min(c.accuracy_drop_fraction for c in channels)
        rows.append([layer, len(channels), *cells, f"{100 * best:.2f}"])
    return markdown_table(("layer", "channels", *METHODS, "best choice"), rows, "lr") + "\n"


def _cell(a: Agreement) -> str:
    return f"{a.spearman:+.2f} ({100 * a.first_choice_drop_fraction:.2f})"
