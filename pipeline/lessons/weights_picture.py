"""Histograms of each layer's weights, before and after they were shared (R2's figure)."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tersor.errors import BadInput
from tersor.files import made_folder
from tersor.pipeline.shipping.opened import Finished
from tersor.pipeline.show.palette import ACCENT, MUTED, SOFT
from tersor.pipeline.show.picture import PADS, png
from tersor.pipeline.stages.run_folder import Run

QUANTIZING = ("sharing", "linear")
BINS = 101
PICTURE = "weights.png"


def draw_run(run: Finished, out: Path | None = None) -> Path:
    """Draw a row for each layer: left before the first `sharing` or `linear` stage, right at the end.

    Args:
        run: the finished run, or a bundle.
        out: the PNG; None: weights.png in the run's folder, or beside its other results.

    Returns:
        The picture.

    Raises:
        BadInput: the run is not finished, or has no such stage.
    """
    kinds = [stage.stage for stage in run.stages]
    first = next((i for i, kind in enumerate(kinds) if kind in QUANTIZING), None)
    if not first:
        raise BadInput(
            "no stage of this run shares or rounds weights",
            got=f"stages {', '.join(kinds)}",
            wanted=f"one of {', '.join(QUANTIZING)}",
            where=run.folder,
        )
    # a bundle holds the first stage's network and the last one's
    earlier = run.stages[first - 1 if isinstance(run, Run) else 0].name
    before, after = _weights(run.onnx(earlier)), _weights(run.onnx())
    layers = {name: (before[name], after[name]) for name in after if name in before}
    if out is None and isinstance(run, Run):
        out = run.folder / PICTURE
    with made_folder(out.parent) if out is not None else run.results("weights") as folder:
        path = out or folder / PICTURE
        _draw(layers, earlier, path)
    return path


def _weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Initializers of rank 2 and more, flat, by name."""
    graph = onnx.load(path).graph
    return {t.name: numpy_helper.to_array(t).ravel() for t in graph.initializer if len(t.dims) >= 2}


def _draw(layers: dict[str, tuple[Any, Any]], before: str, path: Path) -> None:
    with png(path, (11, 0.9 + 1.75 * len(layers)), dpi=100, pads=PADS) as figure:
        axes = figure.subplots(len(layers), 2, squeeze=False, sharex="row")
        for row, (name, pair) in enumerate(layers.items()):
            limit = float(np.abs(pair[0]).max()) * 1.02 or 1.0
            for column, values in enumerate(pair):
                axis, alive = axes[row][column], values[values != 0]
                if column:
                    shared_values, counts = np.unique(alive, return_counts=True)
                    axis.vlines(shared_values, 0.7, counts, color=ACCENT, linewidth=2)
                    distinct = f"{len(shared_values)} values"
                else:
                    counts, edges = np.histogram(alive, BINS, (-limit, limit))
                    axis.stairs(counts, edges, fill=True, color=SOFT)
                    distinct = f"{len(np.unique(alive)):,} values"
                axis.set_yscale("log")
                axis.tick_params(axis="y", which="minor", labelleft=False)
                axis.set_ylim(bottom=0.7)
                axis.set_title(
                    f"{name}: {len(alive):,} of {len(values):,} not zero, {distinct}",
                    fontsize=9,
                    color=MUTED,
                    loc="left",
                )
                axis.tick_params(labelsize=8)
        figure.suptitle(f"Weights that are not zero: after {before} (left), in the file (right)", fontsize=13)
