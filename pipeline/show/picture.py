"""How every PNG is drawn; and the one of a bundle: size and accuracy after each stage, and how fast it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.files import written_aside
from tersor.pipeline.show import manifest as summary
from tersor.pipeline.show import units
from tersor.pipeline.show.manifest import Json
from tersor.pipeline.show.palette import ACCENT, ASH, INK, MUTED, PAPER, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Style = Mapping[str, Any]
BARS: Style = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the picture is the same anywhere
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
"""Bars beside their names: no axis on the left."""
AXES: Style = {**BARS, "axes.spines.left": True, "ytick.color": MUTED}
"""Numbers along both axes."""
PLAIN: Style = {"axes.spines.top": False, "axes.spines.right": False}
"""As matplotlib comes, open at the top and on the right."""
PADS = (0.04167, 0.04167)
"""matplotlib's own, in inches."""
TARGETS_SHOWN = 6


@contextmanager
def png(
    path: Path,
    size: tuple[float, float],
    *,
    style: Style = BARS,
    dpi: int = 110,
    pads: tuple[float, float] | None = None,
) -> Iterator["Figure"]:
    """A figure to draw in; when the block ends it stands in `path`, whole, or after an error not at all.

    The same drawing gives the same bytes, with or without a screen.

    Args:
        path: the PNG.
        size: width and height in inches.
        style: BARS, AXES or PLAIN, or one of them with changes.
        dpi: pixels an inch.
        pads: inches left free beside and above each panel, which are then placed so that no words overlap;
            None: the drawing places its panels itself.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=pads[0], h_pad=pads[1]) if pads else None
    rc: Any = style  # matplotlib knows its keys one by one
    with matplotlib.rc_context(rc):
        figure = Figure(figsize=size, dpi=100, facecolor=PAPER, layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        with written_aside(path) as aside:
            # Without the version of matplotlib in the file.
            figure.savefig(aside, format="png", dpi=dpi, metadata={"Software": None})


def round_ticks(axis: "Axis", at_most: int, *, whole: bool = False) -> None:
    """Ticks at round numbers, at most so many; `whole`: at whole ones only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(at_most, integer=whole))


def write_picture(path: Path, manifest: Json, stages: Sequence[Json]) -> None:
    """Write a PNG of 1200 x 600 pixels to `path`; the same input gives the same bytes."""
    with png(path, (12, 6), dpi=100) as figure:
        sizes, accuracies, speeds = figure.subplots(1, 3, width_ratios=(5, 3.2, 3.6))
        longest = max((len(name) for name in _names(stages)), default=0)
        left = min(0.03 + 0.0066 * longest, 0.2)
        figure.subplots_adjust(left=left, right=0.975, top=0.75, bottom=0.04, wspace=0.12)
        figure.text(0.02, 0.925, _title(manifest), fontsize=19, fontweight="bold")
        figure.text(0.02, 0.878, _subtitle(manifest), fontsize=12, color=MUTED)
        figure.text(0.02, 0.838, summary.headline(manifest).stored, fontsize=12, color=MUTED)
        _draw_sizes(sizes, stages)
        _draw_accuracies(accuracies, stages)
        _draw_speeds(speeds, manifest)


def _title(manifest: Json) -> str:
    """One file's size, speed and accuracy."""
    head, said = summary.headline(manifest), list[str]()
    file = head.file
    if file is None:
        return str(manifest.get("name", "unnamed"))
    if file.ratio is not None:
        said.append(f"{units.times(file.ratio)} smaller")
    fast = head.timing is not None and head.timing.distinguishable
    said.append(f"{head.speed} faster" if fast else f"speed {head.speed}")
    if file.change is not None:
        said.append(f"accuracy {units.points(file.change)}")
    return f"{file.file}: {', '.join(said)}"


def _subtitle(manifest: Json) -> str:
    head = summary.headline(manifest)
    base, file = head.base, head.file
    sizes, accuracies = (
        [getattr(f, key) if f else None for f in (base, file)] for key in ("bytes", "accuracy")
    )
    parts = [str(manifest.get("name", "unnamed")), " to ".join(map(units.size, sizes))]
    parts.append("test accuracy " + " to ".join(map(units.share, accuracies)))
    parts += [head.place] if head.place else []
    return "  ·  ".join(parts)


def _frame(axes: "Axes", title: str, names: Sequence[str], *, labelled: bool) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=MUTED, pad=12)
    axes.set_yticks(range(len(names)), names if labelled else [""] * len(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _names(stages: Sequence[Json]) -> list[str]:
    return [str(s.get("name", "?")) for s in stages]


def _numbers(stages: Sequence[Json], key: str) -> list[float | None]:
    return [units.known(s.get(key)) for s in stages]


def _draw_sizes(axes: "Axes", stages: Sequence[Json]) -> None:
    _frame(axes, "size: plain ONNX (light), packed (dark)", _names(stages), labelled=True)
    plain, packed = _numbers(stages, "onnx_bytes"), _numbers(stages, "packed_bytes")
    largest = max((v for v in plain + packed if v is not None), default=1.0)
    axes.set_xlim(0, largest * 1.42)
    for row, pair in enumerate(zip(plain, packed)):
        shown = [v for v in pair if v is not None]
        for value, color in zip(pair, (SOFT, ACCENT)):
            if value is not None:
                axes.barh(row, value, 0.56, color=color)
        words = " → ".join(units.size(v) for v in shown) or units.NOT_MEASURED
        axes.text(max(shown, default=0) + largest * 0.02, row, words, va="center", fontsize=10, color=MUTED)


def _draw_accuracies(axes: "Axes", stages: Sequence[Json]) -> None:
    _frame(axes, "validation accuracy", _names(stages), labelled=False)
    values = _numbers(stages, "validation_accuracy_fraction")
    points = [(v, row) for row, v in enumerate(values) if v is not None]
    if not points:
        return
    known = [v for v, _ in points]
    # At least two points of accuracy across, so that noise does not look like a cliff.
    middle, half = (max(known) + min(known)) / 2, max((max(known) - min(known)) / 2, 0.01)
    axes.set_xlim(middle - 1.25 * half, middle + 2.6 * half)
    if values[0] is not None:
        axes.axvline(values[0], color=SOFT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
    axes.plot(known, [row for _, row in points], color=ACCENT, linewidth=1.4, alpha=0.45)
    axes.scatter(known, [row for _, row in points], s=46, color=ACCENT, zorder=3)
    for value, row in points:
        axes.text(value + 0.16 * half, row, units.share(value), va="center", fontsize=10)


def _draw_speeds(axes: "Axes", manifest: Json) -> None:
    """The recommended file of each target and batch size, against the baseline; in grey the noise."""
    picks = summary.picks(manifest)
    shown = [(p, p.timing) for p in picks if p.timing and p.timing.speedup.middle][:TARGETS_SHOWN]
    _frame(axes, "speed-up of the recommended file", [""] * len(shown), labelled=False)
    if not shown:
        axes.set_ylim(1, -1)
        axes.text(0, -0.9, units.NOT_MEASURED, color=MUTED)
        return
    axes.set_ylim(max(len(shown), 3) - 0.4, -0.6)
    largest = max(row.decisive.high or row.decisive.middle or 0 for _, row in shown)
    axes.set_xlim(0, largest * 1.45)
    for index, (pick, row) in enumerate(shown):
        axes.text(0, index - 0.3, f"{pick.place}: {pick.file}", fontsize=9, color=MUTED, va="center")
        _speed_bar(axes, index, row, largest)


def _speed_bar(axes: "Axes", index: int, row: summary.Timing, largest: float) -> None:
    ratio = row.decisive
    value = ratio.middle or 0.0
    if row.busy is not None:
        axes.barh(index, value, 0.3, facecolor=PAPER, edgecolor=ASH, hatch="///")
    else:
        axes.barh(index, value, 0.3, color=ACCENT if row.distinguishable else ASH)
    if row.noise is not None:
        left, right = 1 / (1 + row.noise), 1 + row.noise
        axes.barh(index, right - left, 0.42, left=left, color=INK, alpha=0.22)
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [index, index], color=INK, linewidth=1.2)
    end = max(value, ratio.high or 0) + largest * 0.03
    axes.text(end, index, units.times(value), va="center", fontsize=11, fontweight="bold")
    axes.text(
        0,
        index + 0.28,
        ", ".join([units.interval(ratio.low, ratio.high), *row.doubts]),
        fontsize=9,
        color=MUTED,
        va="center",
    )
