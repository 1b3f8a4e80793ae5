"""Histograms of each layer's weights, before and after they were shared (R2's figure)."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tersor.errors import BadInput
from tersor.files import read_json
from tersor.pipeline.show.picture import ACCENT, MUTED, PAPER, SOFT, STYLE

QUANTIZING = ("sharing", "linear")
BINS = 101


def draw_run(run: Path, path: Path) -> None:
    """Write a PNG: a row for each layer; left before the first `sharing` or `linear` stage, right at the end.

    Raises:
        BadInput: the run is not finished, or has no such stage.
    """
    todo = "Run `tersor compress` first"
    names = read_json(run / "metrics.json", "the run's metrics", todo)["stages"]
    kinds = [read_json(run / name / "metrics.json", "a stage's metrics", todo)["stage"] for name in names]
    first = next((i for i, kind in enumerate(kinds) if kind in QUANTIZING), None)
    if not first:
        raise BadInput(
            "no stage of this run shares or rounds weights",
            got=f"stages {', '.join(kinds)}",
            wanted=f"one of {', '.join(QUANTIZING)}",
            where=run,
        )
    before, after = (_weights(run / names[i] / "model.onnx") for i in (first - 1, -1))
    _draw({name: (before[name], after[name]) for name in after if name in before}, names[first - 1], path)


def _weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Initializers of rank 2 and more, flat, by name."""
    graph = onnx.load(path).graph
    return {t.name: numpy_helper.to_array(t).ravel() for t in graph.initializer if len(t.dims) >= 2}


def _draw(layers: dict[str, tuple[Any, Any]], before: str, path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 0.9 + 1.75 * len(layers)), facecolor=PAPER, layout="constrained")
        axes = figure.subplots(len(layers), 2, squeeze=False, sharex="row")
        for row, (name, pair) in enumerate(layers.items()):
            limit = float(np.abs(pair[0]).max()) * 1.02 or 1.0
            for column, values in enumerate(pair):
                axis, alive = axes[row][column], values[values != 0]
                if column:
                    found, counts = np.unique(alive, return_counts=True)
                    axis.vlines(found, 0.7, counts, color=ACCENT, linewidth=2)
                    told = f"{len(found)} values"
                else:
                    counts, edges = np.histogram(alive, BINS, (-limit, limit))
                    axis.stairs(counts, edges, fill=True, color=SOFT)
                    told = f"{len(np.unique(alive)):,} values"
                axis.set_yscale("log")
                axis.yaxis.set_minor_formatter(NullFormatter())
                axis.set_ylim(bottom=0.7)
                axis.set_title(
                    f"{name}: {len(alive):,} of {len(values):,} not zero, {told}",
                    fontsize=9,
                    color=MUTED,
                    loc="left",
                )
                axis.tick_params(labelsize=8)
        figure.suptitle(f"Weights that are not zero: after {before} (left), in the file (right)", fontsize=13)
        temporary = path.with_name(path.name + ".tmp")
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    temporary.replace(path)
