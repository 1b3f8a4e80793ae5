"""Report R3's first grid beside ours: 72 networks on Fashion-MNIST, each to 90 % training accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.study.trial import Trial

STUDY = Path("studies/r3-grid1.yaml")
Key = tuple[tuple[int, int], tuple[int, int], int]
"""Widths, kernels, hidden neurons."""

BY_ACCURACY: Mapping[Key, tuple[float, float]] = {
    ((16, 32), (5, 5), 100): (89.14, 570.8),
    ((16, 32), (5, 5), 64): (88.89, 606.5),
    ((8, 8), (3, 3), 64): (88.87, 351.9),
}
BY_TIME: Mapping[Key, tuple[float, float]] = {
    ((8, 8), (3, 3), 100): (88.57, 305.5),
    ((8, 8), (5, 3), 64): (87.97, 331.3),
    ((8, 8), (3, 5), 100): (87.73, 349.5),
}
"""R3's best three by test accuracy and by time: accuracy in %, seconds on the report's machine."""


def make_table(data: Path | None, runs: Path, *, fast: bool, quiet: bool) -> tuple[list[dict[str, Any]], str]:
    """Run R3's first grid where it has not run yet; returns a row a network and the tables as Markdown.

    Args:
        data: folder with Fashion-MNIST as torchvision lays it out.
        runs: folder of runs.
        fast: the small variant.
        quiet: no progress.
    """
    from tersor.pipeline.study.file import read_study
    from tersor.pipeline.study.run import run_study

    trials = run_study(read_study(STUDY, fast=fast), runs, data, quiet=quiet)[1]
    rows = [row_of(trial) for trial in trials if trial.finished]
    return rows, markdown(rows, len(trials))


def row_of(trial: Trial) -> dict[str, Any]:
    """A trial of the grid: its network, what it reached, and how long that took, in s of one core."""
    settings, metrics = trial.settings, trial.metrics
    return {
        "widths": tuple(settings["arguments.widths"]),
        "kernels": tuple(settings["arguments.kernels"]),
        "hidden": settings["arguments.hidden"],
        "test_percent": 100 * metrics["test_accuracy_fraction"],
        "train_percent": 100 * metrics["train_accuracy_fraction"],
        "cpu_seconds": metrics["training_cpu_seconds"],
        "epochs": metrics["epochs"],
        "parameters": metrics["parameters"],
        "macs": metrics["macs"],
    }


def markdown(rows: Sequence[Mapping[str, Any]], trials: int) -> str:
    """Ours by accuracy and by time, R3's six networks beside ours, and what a setting costs on average.

    Args:
        rows: what `row_of` returned, one a finished trial.
        trials: how many networks the grid has.
    """
    accurate = sorted(rows, key=lambda row: -row["test_percent"])[:3]
    quick = sorted(rows, key=lambda row: row["cpu_seconds"])[:3]
    parts = [
        f"{len(rows)} of {trials} networks trained until an epoch's training accuracy reached 90 %.",
        "## Our best three by test accuracy",
        _table(accurate),
        "## Our best three by time",
        _table(quick),
        "## R3's best six beside the same networks here",
        _beside(rows),
        "## Each setting alone: medians over all networks that have it",
        _medians(rows),
        "Ours: accuracy on the test split; processor seconds of the training on one core, which trials beside"
        " each other hardly change. R3: wall-clock seconds of its own machine. Both: one run a network, so"
        " small differences may be chance.",
    ]
    return "\n\n".join(parts) + "\n"


def _name(row: Mapping[str, Any]) -> str:
    (a, b), (k, m) = row["widths"], row["kernels"]
    return f"{a} k{k}, {b} k{m}, {row['hidden']}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            _name(r),
            f"{r['test_percent']:.2f}",
            f"{r['train_percent']:.2f}",
            f"{r['cpu_seconds']:.0f}",
            r["epochs"],
            f"{r['parameters']:,}",
            f"{r['macs']:,}",
        ]
        for r in rows
    ]
    header = ("network", "test %", "train %", "seconds", "epochs", "parameters", "MACs")
    return markdown_table(header, cells, "lr")


def _beside(rows: Sequence[Mapping[str, Any]]) -> str:
    ours = {(row["widths"], row["kernels"], row["hidden"]): row for row in rows}
    cells = []
    for (widths, kernels, hidden), (percent, seconds) in {**BY_ACCURACY, **BY_TIME}.items():
        row = ours.get((widths, kernels, hidden))
        own = (f"{row['test_percent']:.2f}", f"{row['cpu_seconds']:.0f}") if row else ("-", "-")
        name = _name({"widths": widths, "kernels": kernels, "hidden": hidden})
        cells.append([name, f"{percent:.2f}", own[0], f"{seconds:.1f}", own[1]])
    return markdown_table(("network", "R3 %", "ours %", "R3 s", "ours s"), cells, "lr")


def _medians(rows: Sequence[Mapping[str, Any]]) -> str:
    settings = {
        "conv1 filters": lambda r: r["widths"][0],
        "conv2 filters": lambda r: r["widths"][1],
        "conv1 kernel": lambda r: r["kernels"][0],
        "conv2 kernel": lambda r: r["kernels"][1],
        "dense": lambda r: r["hidden"],
    }
    cells = []
    for name, value in settings.items():
        for chosen in sorted({value(row) for row in rows}):
            group = [row for row in rows if value(row) == chosen]
            percent, seconds = (median(row[key] for row in group) for key in ("test_percent", "cpu_seconds"))
            cells.append([name, chosen, f"{percent:.2f}", f"{seconds:.0f}"])
    return markdown_table(("setting", "value", "test %", "seconds"), cells, "lr")
