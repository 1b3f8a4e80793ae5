"""The staircase as a picture and as a table: what a layer takes at each width."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.show.palette import ASH, NAVY, OTHER
from tersor.pipeline.show.picture import PLAIN, png

COLUMNS, MOST_PANELS = 3, 12


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> int:
    """One panel for each of the most expensive layers, as a PNG; returns how many panels.

    Args:
        rows: of `staircase.sweep`.
        title: network, machine and setting.
        path: written to.
    """
    chosen = sorted(rows, key=lambda row: -_now(row) * len(row["layers"]))[:MOST_PANELS]
    lines = -(-len(chosen) // COLUMNS)
    with png(path, (12, 3.1 * lines + 0.8), style=PLAIN) as figure:
        panels = figure.subplots(lines, COLUMNS, squeeze=False)
        for panel, row in zip(panels.flat, chosen, strict=False):
            _panel(panel, row)
        for panel in list(panels.flat)[len(chosen) :]:
            panel.axis("off")
        for panel in panels[-1]:
            panel.set_xlabel("output channels")
        for line in panels:
            line[0].set_ylabel("microseconds")
        handles, words = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, words, loc="upper right", ncols=3, frameon=False, fontsize=10)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        figure.tight_layout(rect=(0, 0, 1, 0.97))
    return len(chosen)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what each layer takes now, how fast that is, and the widths worth having."""
    lines = []
    for row in rows:
        shape, names = row["shape"], row["layers"]
        kernel = "linear" if shape["linear"] else f"{shape['kernel'][0]}x{shape['kernel'][1]}"
        place = "" if shape["linear"] else f", {shape['size'][0]}x{shape['size'][1]} pixels"
        named = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        steps = [str(w) for w in row["steps"] if w <= shape["outputs"]]
        shown = ", ".join(steps if len(steps) <= 8 else [*steps[:3], "...", *steps[-2:]])
        now = _now(row)
        what = f"{shape['inputs']} inputs, {kernel}{place}"
        speed = f"{row['macs'] / now / 1e6:.0f}"
        lines.append([named, what, shape["outputs"], f"{1e3 * now:.1f}", speed, shown])
    header = ("layers", "shape", "width", "microseconds", "GMAC/s", "widths at the end of a step")
    return markdown_table(header, lines)


def _now(row: dict[str, Any]) -> float:
    """Milliseconds at the layer's own width."""
    return float(row["latency_ms"][row["widths"].index(row["shape"]["outputs"])])


def _panel(panel: Any, row: dict[str, Any]) -> None:
    widths, micros = row["widths"], [1e3 * ms for ms in row["latency_ms"]]
    width = row["shape"]["outputs"]
    panel.plot(widths, micros, color=NAVY, marker=".", lw=1.4, label="measured")
    at = [(w, m) for w, m in zip(widths, micros, strict=True) if w in row["steps"]]
    panel.plot(*zip(*at, strict=True), ls="", marker="o", color=OTHER, ms=5, label="end of a step")
    ideal = 1e3 * _now(row) / width
    panel.plot([0, widths[-1]], [0, ideal * widths[-1]], color=ASH, ls=":", label="proportional to width")
    panel.axvline(width, color=ASH, lw=0.8)
    panel.set_xlim(0, widths[-1] * 1.03)
    panel.set_ylim(0, max(micros) * 1.12)
    shape = row["shape"]
    kernel = "linear" if shape["linear"] else f"{shape['kernel'][0]}x{shape['kernel'][1]}"
    place = "" if shape["linear"] else f" at {shape['size'][0]}x{shape['size'][1]}"
    more = f" (+{len(row['layers']) - 1})" if len(row["layers"]) > 1 else ""
    panel.set_title(f"{row['layers'][0]}{more}: {shape['inputs']} -> {width}, {kernel}{place}", fontsize=9)
