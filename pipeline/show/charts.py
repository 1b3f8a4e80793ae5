"""The page's pictures: SVG written by hand, without colours of its own.

Every shape names a class (`bar`, `soft`, `dot` ...) that the page's style sheet paints, light or
dark. Text is not scaled: each picture is drawn once for a wide and once for a narrow screen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tersor.pipeline.show import units
from tersor.pipeline.show.manifest import Timing

WIDE, NARROW = 720, 340
LABELLED_CLASSES = 12
"""With more classes than this the cells of a confusion matrix are too small for numbers."""


@dataclass(frozen=True)
class Bar:
    """One bar: its length, its whisker from low to high, and the words around it.

    style: `bar` (ours), `slow` (ours, and slower), `soft` (the baseline, other coders) or `faint`
        (nothing was shown); `busy` is drawn hatched (timed on a busy machine).
    short: the words where there is no room for all of them.
    """

    name: str
    value: float | None
    label: str
    style: str = "bar"
    low: float | None = None
    high: float | None = None
    short: str | None = None


class _Canvas:
    """Collects the elements of one SVG. Coordinates are CSS pixels."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, style: str, extra: str = "") -> None:
        """A bar; pixels."""
        box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect class="{style}" {box} {extra}/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line; pixels."""
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.parts.append(f'<line class="{style}" {ends}/>')

    def dot(self, x: float, y: float, radius: float = 4.5) -> None:
        """A filled circle; pixels."""
        self.parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')

    def text(self, x: float, y: float, words: str, style: str = "ink", anchor: str = "start") -> None:
        """A label, escaped; pixels."""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self.parts.append(f'<text class="{style}" {place}>{escape(words)}</text>')

    def svg(self, height: float, label: str) -> str:
        """The whole picture as an SVG element with a spoken label."""
        box = f'viewBox="0 0 {self.width:.0f} {height:.0f}" width="{self.width:.0f}" height="{height:.0f}"'
        return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(self.parts)}</svg>'


def both(draw: Any, *arguments: Any) -> str:
    """`draw(*arguments, width)` for wide and narrow screens; the style sheet shows one of them."""
    wide, narrow = draw(*arguments, WIDE), draw(*arguments, NARROW)
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>' if wide else ""


def bars(rows: Sequence[Bar], label: str, width: int, band: tuple[float, float] | None = None) -> str:
    """Horizontal bars from zero, one scale for all; a missing value leaves its words.

    band: from where to where nothing is told apart; drawn behind the bars.
    """
    known = [v for row in rows for v in (row.value, row.high) if v is not None]
    if not known or max(known) <= 0:
        return ""
    wide = width >= WIDE
    left, room, pitch = (150.0, width - 150.0 - 265, 34) if wide else (0.0, float(width), 46)
    scale = room / max(known)
    canvas = _Canvas(width)
    if band:
        ends = [left + min(scale * end, room) for end in band]
        canvas.rect(ends[0], 0, ends[1] - ends[0], len(rows) * pitch, "band")
    for index, row in enumerate(rows):
        top = index * pitch
        middle = top + (pitch / 2 if wide else 30)
        canvas.text(0, middle + 4 if wide else top + 15, row.name, "ink")
        end = scale * max(v for v in (row.value, row.high, 0) if v is not None)
        if row.value is not None:
            canvas.rect(left, middle - 7, max(scale * row.value, 1.5), 14, row.style, 'rx="2"')
            if row.style == "busy":
                _hatch(canvas, left, left + scale * row.value, middle)
        if row.low is not None and row.high is not None:
            _whisker(canvas, left + scale * row.low, left + scale * row.high, middle)
        if wide:
            canvas.text(left + end + 9, middle + 4, row.label, "muted")
        else:
            canvas.text(width, top + 15, row.short or row.label, "muted", "end")
    return canvas.svg(len(rows) * pitch, label)


def _whisker(canvas: _Canvas, low: float, high: float, middle: float) -> None:
    canvas.line(low, middle, high, middle, "whisker")
    for x in (low, high):
        canvas.line(x, middle - 4, x, middle + 4, "whisker")


def _hatch(canvas: _Canvas, left: float, right: float, middle: float) -> None:
    """Slanting lines over a bar of 14 pixels: drawn one by one, for a pattern would be a link."""
    x = left
    while x < right:
        run = min(14.0, right - x)
        canvas.line(x, middle + 7, x + run, middle + 7 - run, "hatch")
        x += 6


def latency(rows: Sequence[Timing], noise: float | None, label: str, width: int) -> str:
    """One bar a file: p50 with its interval, and the speed-up with its own; behind them the noise about 1x.

    noise: fraction by which the baseline differs from itself; None: no band.
    """
    base = next((row.p50.middle for row in rows if row.speedup.middle is None), None)
    band = None if base is None or noise is None else (base / (1 + noise), base * (1 + noise))
    slowest = max((row.p50.middle for row in rows if row.p50.middle is not None), default=None)
    return bars(
        [_latency_bar(row, units.time(row.p50.middle, like_ms=slowest)) for row in rows], label, width, band
    )


def _latency_bar(row: Timing, p50: str) -> Bar:
    ratio, style = row.speedup.middle, "soft"
    words = short = p50
    if ratio is not None:
        style = "bar" if ratio >= 1 else "slow"
        words = f"{p50} · {row.speedup.told}"
        short = words if not row.doubts else f"{p50} · {units.times(ratio)}"
    if ratio is not None and not row.distinguishable:
        words, short, style = p50, p50, "faint"
    words, short = (" · ".join([text, *row.doubts]) for text in (words, short))
    style = "busy" if row.busy is not None else style
    return Bar(row.file, row.p50.middle, words, style, row.p50.low, row.p50.high, short)


def trade(stages: Sequence[Mapping[str, Any]], width: int) -> str:
    """Each stage in a row: validation accuracy as a dot, plain and packed size as bars."""
    sizes = [_sizes(s) for s in stages]
    largest = max((v for pair in sizes for v in pair if v is not None), default=0)
    if not largest:
        return ""
    wide = width >= WIDE
    pitch, top = (40, 26) if wide else (62, 8)
    bar_x, bar_room = (345.0, width - 345.0 - 130) if wide else (0.0, width - 118.0)
    canvas = _Canvas(width)
    height = top + pitch * len(stages)
    if wide:
        canvas.text(135, 13, "validation accuracy", "muted")
        canvas.text(bar_x, 13, "size: plain ONNX, packed", "muted")
    _accuracy_dots(canvas, stages, (135.0, 325.0) if wide else (150.0, float(width)), top, pitch, wide)
    for index, (stage, (plain, packed)) in enumerate(zip(stages, sizes)):
        y = top + index * pitch + (pitch / 2 if wide else 18)
        canvas.text(0, y + 4, str(stage.get("name", "?")), "ink")
        bar_y = y if wide else y + 22
        end = 0.0
        for value, style in ((plain, "soft"), (packed, "bar")):
            if value is not None:
                canvas.rect(bar_x, bar_y - 8, max(bar_room * value / largest, 1.5), 16, style, 'rx="2"')
                end = max(end, bar_room * value / largest)
        canvas.text(bar_x + end + 8, bar_y + 4, _size_words(plain, packed), "muted")
    return canvas.svg(height, "Validation accuracy and size after each stage")


def _accuracy_dots(
    canvas: _Canvas,
    stages: Sequence[Mapping[str, Any]],
    span: tuple[float, float],
    top: float,
    pitch: float,
    wide: bool,
) -> None:
    values = [units.known(s.get("validation_accuracy_fraction")) for s in stages]
    known = [v for v in values if v is not None]
    if not known:
        return
    # At least two points of accuracy across, so that noise does not look like a cliff.
    middle, half = (max(known) + min(known)) / 2, max((max(known) - min(known)) / 2, 0.01)
    left, right = span[0] + 6, span[1] - 62

    def place(value: float) -> float:
        """Horizontal place of an accuracy, in pixels."""
        return left + (right - left) * (value - middle + half) / (2 * half)

    if values[0] is not None:
        canvas.line(place(values[0]), top, place(values[0]), top + pitch * len(stages), "guide")
    before: tuple[float, float] | None = None
    for index, value in enumerate(values):
        if value is None:
            continue
        here = (place(value), top + index * pitch + (pitch / 2 if wide else 18))
        if before and wide:
            canvas.line(*before, *here, "thread")
        before = here
    for index, value in enumerate(values):
        y = top + index * pitch + (pitch / 2 if wide else 18)
        if value is None:
            canvas.text(left, y + 4, units.NOT_MEASURED, "muted")
        else:
            canvas.dot(place(value), y)
            canvas.text(place(value) + 9, y + 4, units.share(value), "ink")


def _sizes(stage: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return units.known(stage.get("onnx_bytes")), units.known(stage.get("packed_bytes"))


def _size_words(plain: float | None, packed: float | None) -> str:
    if plain is None and packed is None:
        return units.NOT_MEASURED
    return " → ".join(units.size(v) for v in (plain, packed) if v is not None)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], label: str) -> str:
    """Rows are true classes, columns what was said; the stronger the colour, the larger its share."""
    number = len(matrix)
    named = number <= LABELLED_CLASSES
    short = max((len(_short(name)) for name in classes), default=0) <= 2
    margin = (22 if short else 64) if named else 4
    cell = (NARROW - margin) / number
    canvas = _Canvas(NARROW)
    canvas.rect(margin, margin, NARROW - margin, NARROW - margin, "ground", 'rx="2"')
    for true, row in enumerate(matrix):
        total = sum(row) or 1
        y = margin + true * cell
        for said, found in enumerate(row):
            if not found:
                continue
            style = "hit" if said == true else "miss"
            strength = 0.15 + 0.75 * math.sqrt(found / total)
            x = margin + said * cell
            canvas.rect(x, y, cell - 1, cell - 1, style, f'fill-opacity="{strength:.2f}"')
            if named:
                ink = "cell strong" if strength > 0.6 else "cell"
                canvas.text(x + cell / 2, y + cell / 2 + 4, str(found), ink, "middle")
        if named:
            canvas.text(margin - 6, y + cell / 2 + 4, _short(classes[true]), "tiny", "end")
            _slanted(canvas, margin + (true + 0.5) * cell, margin - 6, _short(classes[true]))
    return canvas.svg(NARROW, label)


def _slanted(canvas: _Canvas, x: float, y: float, words: str) -> None:
    # Lone digits and letters stand upright; names lean, or they would run into each other.
    if len(words) <= 2:
        canvas.text(x, y, words, "tiny", "middle")
        return
    turn = f'transform="translate({x:.1f} {y:.1f}) rotate(-60)"'
    canvas.parts.append(f'<text class="tiny" {turn}>{escape(words)}</text>')


def _short(name: str) -> str:
    return name if len(name) <= 9 else name[:8] + "…"
