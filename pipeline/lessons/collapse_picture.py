"""The picture of `tersor lesson collapse`: accuracy without each neuron, a panel a way of rebuilding."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.pipeline.show.palette import ACCENT, INK, MUTED, OTHER, SOFT
from tersor.pipeline.show.picture import AXES, png

if TYPE_CHECKING:
    from tersor.pipeline.lessons.collapse import Collapse

ACROSS = 4
EXPLAINED = "a dot: accuracy without this neuron\nlight line: before the removal\ndashed: R3's three removals"


def draw_collapse(result: "Collapse", theirs: Sequence[float], path: Path) -> None:
    """Write a PNG: one panel a rebuild, a dot a neuron removed.

    Args:
        result: what was measured.
        theirs: R3's accuracies in %, drawn as lines.
        path: the file to write.
    """
    count = len(result.rebuilds)
    down = -(-count // ACROSS)
    size = (3.3 * ACROSS, 2.7 * down + 0.9)
    with png(path, size, style=AXES, pads=(0.08, 0.1)) as figure:
        panels = figure.subplots(down, ACROSS, squeeze=False, sharex=True, sharey=True)
        for axes in panels.flat[count:]:
            axes.set_axis_off()
        if count % ACROSS:
            panels.flat[count].text(0.02, 0.5, EXPLAINED, fontsize=10, color=MUTED, va="center")
        for axes, way in zip(panels.flat, result.rebuilds):
            axes.axhline(100 * result.baseline, color=SOFT, linewidth=1.5, zorder=0)
            for value in theirs:
                axes.axhline(value, color=OTHER, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
            shown = [100 * v for v in way.accuracies]
            color = ACCENT if way.proven else INK
            axes.scatter(range(len(shown)), shown, s=11, color=color, linewidths=0, zorder=2)
            axes.set_title(
                f"{way.name.replace('_', ' ')}: {'proven' if way.proven else 'the proof fails'}",
                fontsize=10,
                loc="left",
                color=color,
            )
            axes.set_ylim(0, 100)
            axes.tick_params(labelsize=8)
        for axes in panels[:, 0]:
            axes.set_ylabel("accuracy left, %", fontsize=9)
        for axes in panels.flat[max(0, count - ACROSS) : count]:
            axes.set_xlabel("neuron removed", fontsize=9)
            axes.tick_params(labelbottom=True)
        figure.suptitle(
            f"One of {len(result.rebuilds[0].accuracies)} neurons of {result.layer} removed: "
            "a right rebuild and six wrong ones",
            fontsize=13,
            color=INK,
            x=0.01,
            ha="left",
        )
