"""The picture of `tersor look influence`: importance against influence, a panel a layer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.pipeline.lessons.influence import METHODS, Agreement, Channel, Influence
from tersor.pipeline.show.palette import ACCENT, INK, MUTED, OTHER, PAPER, SOFT
from tersor.pipeline.show.picture import AXES, png, round_ticks

if TYPE_CHECKING:
    from tersor.pipeline.show.picture import Axes

ACROSS, MOST_PANELS = 3, 12
NUMBERED = 24
"""Up to so many channels carry their number."""
MARKS = {"squares": "o", "l1": "s", "l2": "D", "taylor": "^"}


def draw_influence(result: Influence, path: Path, name: str) -> None:
    """Write a PNG: for each layer (at most 12) R3's prediction against the measured drop of accuracy, then
    the rank correlations of all predictions.

    Args:
        result: what was measured.
        path: the file to write.
        name: of the run, for the title.
    """
    layers = list(result.layers().items())[:MOST_PANELS]
    agreements = result.agreements()
    across = min(ACROSS, len(layers))
    down = math.ceil(len(layers) / across)
    size = (3.9 * max(across, 2), 3.6 * down + 0.42 * len(layers) + 2.0)
    with png(path, size, style=AXES, pads=(0.12, 0.1)) as figure:
        heights = (3.6 * down, 0.42 * len(layers) + 1.3)
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
        panels = upper.subplots(down, across, squeeze=False)
        for axes in panels.flat[len(layers) :]:
            axes.set_visible(False)
        for axes, (layer, channels) in zip(panels.flat, layers):
            agreement = next(a for a in agreements if a.layer == layer and a.method == "squares")
            _scatter(axes, layer, channels, agreement)
        _correlations(lower.subplots(), [layer for layer, _ in layers], agreements)
        accuracy = 100 * result.baseline.accuracy_fraction
        figure.suptitle(
            f"{name}: what a channel's parameters say, and what its removal costs "
            f"({accuracy:.2f} % of {result.images:,} images before)",
            fontsize=13,
            color=INK,
            x=0.01,
            ha="left",
        )


def _scatter(axes: "Axes", layer: str, channels: Sequence[Channel], agreement: Agreement) -> None:
    guesses = [c.predicted["squares"] for c in channels]
    drops = [100 * c.accuracy_drop_fraction for c in channels]
    first, best = guesses.index(min(guesses)), drops.index(min(drops))
    small = len(channels) > NUMBERED
    axes.axhline(0, color=SOFT, linewidth=1, zorder=0)
    axes.scatter(guesses, drops, s=22 if small else 44, color=ACCENT, alpha=0.7, linewidths=0, zorder=2)
    for index, color in ((best, INK), (first, OTHER)):
        size = 90 if index != best or color == INK else 170  # one ring around the other when they agree
        axes.scatter(
            [guesses[index]],
            [drops[index]],
            s=size,
            facecolors="none",
            edgecolors=color,
            linewidths=1.6,
            zorder=3,
        )
    if not small:
        for c, x, y in zip(channels, guesses, drops):
            axes.annotate(str(c.channel), (x, y), (7, 5), textcoords="offset points", fontsize=8, color=MUTED)
    _scale(axes, guesses, drops)
    axes.margins(x=0.09, y=0.12)
    axes.set_title(f"{layer}: {_said(agreement)}", fontsize=10, loc="left", color=INK)
    axes.set_xlabel("sum of squares of its parameters", fontsize=9)
    axes.set_ylabel("accuracy lost, points", fontsize=9)
    axes.tick_params(labelsize=8)


def _scale(axes: "Axes", guesses: Sequence[float], drops: Sequence[float]) -> None:
    """Logarithmic axes where one channel would push all others into a corner."""

    def plain(value: float, _: object) -> str:
        """A tick's number without exponents."""
        return f"{value:g}"

    if min(guesses) > 0 and max(guesses) / min(guesses) > 5:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(plain)
    typical = sorted(map(abs, drops))[len(drops) // 2]
    if typical > 0 and max(drops) > 12 * typical:
        flat = max(typical, 0.1)
        axes.set_yscale("symlog", linthresh=flat, linscale=0.7)
        axes.locator_params(axis="y", subs=(1.0, 3.0))
        axes.set_yticks([], minor=True)
        axes.yaxis.set_major_formatter(plain)
    else:
        round_ticks(axes.yaxis, 6)


def _said(agreement: Agreement) -> str:
    """The rank correlation in words that do not claim more than the channels carry."""
    if math.isnan(agreement.spearman):
        return "no order to compare"
    doubt = "" if agreement.chance < 0.05 else f" (chance: {100 * agreement.chance:.0f} %)"
    return f"Spearman {agreement.spearman:+.2f}{doubt}"


def _correlations(axes: "Axes", layers: Sequence[str], agreements: Sequence[Agreement]) -> None:
    axes.axvline(0, color=SOFT, linewidth=1, zorder=0)
    offsets = {m: 0.13 * (i - 1.5) for i, m in enumerate(METHODS)}
    for method in METHODS:
        by_layer = {a.layer: a for a in agreements if a.method == method}
        ordered = [by_layer[layer] for layer in layers]
        rows = [row + offsets[method] for row in range(len(layers))]
        filled = [ACCENT if a.chance < 0.05 else PAPER for a in ordered]
        axes.scatter(
            [a.spearman for a in ordered],
            rows,
            marker=MARKS[method],
            s=46,
            c=filled,
            edgecolors=ACCENT,
            linewidths=1.2,
            zorder=3,
        )
        axes.scatter([], [], marker=MARKS[method], s=46, color=ACCENT, label=method)
    axes.scatter([], [], s=90, facecolors="none", edgecolors=OTHER, linewidths=1.6, label="R3's first choice")
    axes.scatter([], [], s=90, facecolors="none", edgecolors=INK, linewidths=1.6, label="the best choice")
    axes.set_yticks(range(len(layers)), layers)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(-1.03, 1.03)
    axes.tick_params(labelsize=9, length=0)
    axes.set_title(
        "Rank correlation of each prediction with the measured loss of accuracy "
        "(hollow: chance does as well in 5 % of orders or more)",
        fontsize=10,
        loc="left",
        color=INK,
    )
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=6,
        frameon=False,
        fontsize=9,
        handletextpad=0.3,
        columnspacing=1.4,
    )
