"""The picture of `tersor lesson shrink`: a column a layer, accuracy after each removal and fine-tuning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.pipeline.lessons.shrink import Shrunk, Step
from tersor.pipeline.show.palette import ACCENT, INK, OTHER, REFUSED, SOFT
from tersor.pipeline.show.picture import AXES, png, round_ticks

if TYPE_CHECKING:
    from tersor.pipeline.show.picture import Axes

Figures = Mapping[str, Mapping[int, tuple[float, float]]]
"""Layer -> width -> accuracy in % after the removal and after fine-tuning."""


def draw_shrinking(shrunk: Shrunk, theirs: Figures, path: Path) -> None:
    """Write a PNG: above, test accuracy right after each removal; below, after fine-tuning.

    Args:
        shrunk: what was measured.
        theirs: a report's figures to draw beside ours; may be empty.
        path: the file to write.
    """
    layers = list(dict.fromkeys(step.layer for step in shrunk.steps))
    size = (1.2 + 3.8 * max(len(layers), 2), 6.6)
    with png(path, size, style=AXES, pads=(0.1, 0.1)) as figure:
        axes = figure.subplots(2, len(layers), squeeze=False, sharex="col", sharey="row")
        for column, layer in enumerate(layers):
            steps = [step for step in shrunk.steps if step.layer == layer]
            reported = {w: v for w, v in theirs.get(layer, {}).items()}
            _column(axes[0][column], axes[1][column], steps, reported, shrunk.start[1])
            axes[0][column].set_title(f"{layer}: {_said(steps)}", fontsize=10, loc="left", color=INK)
            axes[1][column].set_xlabel("channels left", fontsize=9)
        axes[0][0].set_ylabel("right after the removal, %", fontsize=9)
        axes[1][0].set_ylabel("after fine-tuning, %", fontsize=9)
        tuned = [100 * s.after_tuning[1] for s in shrunk.steps] + [100 * shrunk.start[1]]
        tuned += [v[1] for layer in layers for v in theirs.get(layer, {}).values()]
        axes[1][0].set_ylim(min(tuned) - 0.7, max(tuned) + 0.7)
        figure.suptitle(
            "Channels taken out one layer after the other: test accuracy (dashed: before)",
            fontsize=13,
            x=0.01,
            ha="left",
        )
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _said(steps: Sequence[Step]) -> str:
    accepted = [step.width for step in steps if step.kept]
    return f"{steps[0].width + len(steps[0].removed)} → {accepted[-1]}" if accepted else "nothing could go"


def _column(
    top: "Axes",
    bottom: "Axes",
    steps: Sequence[Step],
    theirs: Mapping[int, tuple[float, float]],
    start: float,
) -> None:
    """One layer: the widths from left to right, falling."""
    bottom.axhline(100 * start, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
    widths = [step.width for step in steps]
    refused = [step for step in steps if not step.kept]
    for axes, index, name in ((top, 0, "after_removal"), (bottom, 1, "after_tuning")):
        ours = [100 * getattr(step, name)[1] for step in steps]
        if theirs:
            shown = {w: v[index] for w, v in theirs.items()}
            axes.plot(
                list(shown),
                list(shown.values()),
                "s--",
                color=OTHER,
                markersize=5,
                linewidth=1.1,
                label="report R3",
                alpha=0.85,
            )
        axes.plot(widths, ours, "o-", color=ACCENT, markersize=5.5, linewidth=1.6, label="tersor")
        axes.plot(
            [s.width for s in refused],
            [100 * getattr(s, name)[1] for s in refused],
            "x",
            color=REFUSED,
            markersize=10,
            markeredgewidth=2,
            label="costs too much: not kept",
            zorder=4,
        )
        axes.grid(axis="y", color=SOFT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    highest = steps[0].width + len(steps[0].removed)
    bottom.set_xlim(highest + 0.03 * highest, min([*widths, *theirs]) - 0.03 * highest)
    round_ticks(bottom.xaxis, 9, whole=True)
