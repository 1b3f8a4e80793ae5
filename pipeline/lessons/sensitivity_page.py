"""What a sensitivity sweep leaves behind: sensitivity.csv, sensitivity.json, and a page to read.

The page is one file without a script; made from the same points it is the same, byte for byte.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

from tersor.errors import BadInput
from tersor.files import write_csv, write_json, write_whole
from tersor.pipeline.show import units
from tersor.pipeline.show.html import template
from tersor.pipeline.weights.sensitivity import ALL_LAYERS, Point

WIDE, NARROW = 1040, 340
MOST_LABELS = 60
"""With more layers than this only the most damaged are named beside their lines."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
AGAINST = {"sparsity": "sparsity", "bits": "bits of a uniform grid", "sharing": "bits of shared values"}


def write_sensitivity(folder: Path, points: Sequence[Point], baseline: float, name: str = "network") -> None:
    """Write sensitivity.csv, sensitivity.json and sensitivity.html into `folder`, which exists.

    Args:
        points: of one method, by layer or global or both.
        baseline: accuracy of the untouched network, a fraction.
        name: of the network, for the page's title.

    Raises:
        BadInput: no points, or points of several methods.
        OSError: a file cannot be written.
    """
    methods = sorted({point.method for point in points})
    if len(methods) != 1:
        raise BadInput("a page shows one method", got=", ".join(methods) or "no points", where=folder)
    rows = [asdict(point) for point in points]
    content = {"name": name, "method": methods[0], "baseline_accuracy_fraction": baseline, "points": rows}
    write_json(folder / "sensitivity.json", content)
    write_csv(folder / "sensitivity.csv", [field.name for field in fields(Point)], rows)
    write_whole(folder / "sensitivity.html", template("sensitivity.html.j2").render(**_page(content, points)))


def level_words(method: str, level: float) -> str:
    """30 %, 1 bit, 4 bits."""
    if method == "sparsity":
        return f"{100 * level:g} %"
    return f"{level:g} bit{'s' * (level != 1)}"


def _page(content: dict[str, Any], points: Sequence[Point]) -> dict[str, Any]:
    from markupsafe import Markup

    method, baseline = content["method"], content["baseline_accuracy_fraction"]
    layers, levels = _axes(points)
    worst = min(points, key=lambda p: p.accuracy_fraction)
    macs = len({p.effective_macs for p in points}) > 1
    return {
        "name": content["name"],
        "against": AGAINST[method],
        "baseline": baseline,
        "layers": sum(layer != ALL_LAYERS for layer in layers),
        "worst": worst,
        "worst_level": level_words(method, worst.level),
        "levels": [level_words(method, level) for level in levels],
        "wide": Markup(lines(points, baseline, WIDE)),
        "narrow": Markup(lines(points, baseline, NARROW)),
        "accuracy": _table(points, "accuracy_fraction", _percent, baseline),
        "top5": _table(points, "top5_accuracy_fraction", _percent),
        "macs": _table(points, "effective_macs", units.count) if macs else [],
    }


def _axes(points: Sequence[Point]) -> tuple[list[str], list[float]]:
    """Layers in the order of the points, levels growing."""
    return list(dict.fromkeys(p.layer for p in points)), sorted({p.level for p in points})


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _table(points: Sequence[Point], key: str, words: Any, baseline: float | None = None) -> list[Any]:
    """[(layer, [(text, strength of the cell's colour in percent)])]; a missing level is a dash.

    The colour grows with the share of `baseline` that is lost; without one there is none.
    """
    layers, levels = _axes(points)
    values = {(p.layer, p.level): getattr(p, key) for p in points}
    rows = []
    for layer in layers:
        cells = []
        for level in levels:
            value = values.get((layer, level))
            lost = 0.0 if value is None or not baseline else max(0.0, 1 - value / baseline)
            cells.append(("–" if value is None else words(value), round(60 * lost)))
        rows.append((layer, cells))
    return rows


@dataclass(frozen=True)
class _Frame:
    """Where levels and accuracies lie in a picture of a given width, in CSS pixels."""

    left: float
    right: float
    top: float
    bottom: float
    levels: tuple[float, float]
    accuracies: tuple[float, float]

    def x(self, level: float) -> float:
        """Horizontal place of a level, in pixels."""
        first, last = self.levels
        return self.left + (self.right - self.left) * (level - first) / ((last - first) or 1)

    def y(self, accuracy: float) -> float:
        """Vertical place of an accuracy, in pixels."""
        low, high = self.accuracies
        return self.bottom - (self.bottom - self.top) * (accuracy - low) / (high - low)


def lines(points: Sequence[Point], baseline: float, width: int) -> str:
    """One line a layer, coloured by depth: harder levels to the right, accuracy upwards, as SVG.

    Its parts name classes that the page's style sheet paints; a layer's line, dots and name are one group,
    so that pointing at any of them brings out all.
    """
    layers, levels = _axes(points)
    if points[0].method != "sparsity":
        levels.reverse()  # few bits on the right, where the names are: there the lines lie apart
    named = sorted(layers, key=lambda n: min(p.accuracy_fraction for p in points if p.layer == n))
    named = named[:MOST_LABELS]
    wide = width >= WIDE
    pitch, margin = (15, 190) if wide else (12, 92)
    height = 70 + max(340 if wide else 250, pitch * len(named))
    shown = [baseline, *(p.accuracy_fraction for p in points)]
    step = next((s for s in STEPS if (max(shown) - min(shown)) / s <= 6), STEPS[-1])
    span = (math.floor(min(shown) / step + 1e-9) * step, math.ceil(max(shown) / step - 1e-9) * step)
    span = span if span[1] > span[0] else (span[0], span[0] + step)
    frame = _Frame(34, width - margin, 14, height - 46, (levels[0], levels[-1]), span)
    parts = [*_grid(frame, levels, step, points[0].method, wide)]
    y = frame.y(baseline)
    parts.append(
        f'<line class="guide" x1="{frame.left:.1f}" y1="{y:.1f}" x2="{frame.right:.1f}" y2="{y:.1f}"/>'
    )
    places = _places(points, named, frame, pitch)
    for index, layer in enumerate(layers):
        layer_points = sorted((p for p in points if p.layer == layer), key=lambda p: frame.x(p.level))
        depth = 100 * index / max(1, len(layers) - 1)
        parts.append(_layer(layer_points, depth, frame, baseline, places.get(layer), wide))
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    label = f"Accuracy against {AGAINST[points[0].method]}, layer by layer"
    return f'<svg {box} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _grid(frame: _Frame, levels: list[float], step: float, method: str, wide: bool) -> Iterator[str]:
    low, high = frame.accuracies
    for tick in range(round((high - low) / step) + 1):
        y = frame.y(low + tick * step)
        yield f'<line class="rule" x1="{frame.left:.1f}" y1="{y:.1f}" x2="{frame.right:.1f}" y2="{y:.1f}"/>'
        words = f"{100 * (low + tick * step):.0f}"
        yield f'<text x="{frame.left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{words}</text>'
    last = -math.inf
    for level in levels:
        x = frame.x(level)
        if x - last >= (40 if wide else 30):  # room for one more number
            words = f"{100 * level if method == 'sparsity' else level:g}"
            yield f'<text x="{x:.1f}" y="{frame.bottom + 20:.1f}" text-anchor="middle">{words}</text>'
            last = x
    words = "% of the layer's weights set to zero" if method == "sparsity" else AGAINST[method]
    yield f'<text x="{frame.left:.1f}" y="{frame.bottom + 40:.1f}">{words}</text>'


def _places(points: Sequence[Point], named: list[str], frame: _Frame, pitch: int) -> dict[str, float]:
    """Layer -> height of its name: beside the end of its line, pushed apart where they would overlap."""
    last = {p.layer: frame.y(p.accuracy_fraction) for p in sorted(points, key=lambda p: frame.x(p.level))}
    order = sorted(named, key=lambda layer: last[layer])
    heights = [last[layer] for layer in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + pitch)
    limit = frame.bottom + 4
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - pitch
    return dict(zip(order, heights))


def _layer(
    points: Sequence[Point], depth: float, frame: _Frame, baseline: float, place: float | None, wide: bool
) -> str:
    """The group of one layer: line, dots that say their numbers, name."""
    corners = [(frame.x(p.level), frame.y(p.accuracy_fraction)) for p in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    name = points[0].layer
    parts = [f"<title>{escape(name)}</title>", f'<polyline class="line" points="{path}"/>']
    for point, (x, y) in zip(points, corners):
        change = units.points(point.accuracy_fraction - baseline)
        said = f"{name}, {level_words(point.method, point.level)}: "
        said += f"{units.share(point.accuracy_fraction)} ({change})"
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if wide else 2.2}">'
        parts.append(f"{dot}<title>{escape(said)}</title></circle>")
    if place is not None:
        (x, y), start = corners[-1], frame.right + 18
        parts.append(f'<polyline class="lead-line" points="{x:.1f},{y:.1f} {start:.1f},{place:.1f}"/>')
        short = name if wide or len(name) <= 12 else "…" + name[-11:]
        parts.append(f'<text x="{start + 4:.1f}" y="{place + 4:.1f}">{escape(short)}</text>')
    whole = " whole" if name == ALL_LAYERS else ""
    return f'<g class="layer{whole}" style="--t:{depth:.0f}%">{"".join(parts)}</g>'
