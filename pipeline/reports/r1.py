"""Report R1's pruning tables beside ours: LeNet with kernels 8 and 9, one layer at a time and all at once.

R1 ran on CIFAR-100, where chance is 5 % of top-5. On other data the two columns compare shapes of curves,
not figures; the table says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor.errors import BadInput
from tersor.pipeline.show.markdown import markdown_table, number_or_dash
from tersor.pipeline.study.trial import Trial
from tersor.pipeline.weights.sensitivity import ALL_LAYERS, R1_LEVELS, Point

R1_CLASSES = 100
R1_BASELINE = 24.40
"""Top-5 accuracy before pruning, in %."""

R1_TOP5: Mapping[str, tuple[float, ...]] = {
    "conv1": (24.38, 24.38, 24.38, 24.38, 24.38, 24.36, 24.31, 23.63, 21.93, 5.96),
    "conv2": (24.39, 24.38, 24.28, 24.26, 24.17, 24.23, 24.23, 23.96, 23.40, 5.00),
    "fc1": (24.43, 24.35, 24.38, 24.45, 23.42, 22.29, 20.41, 17.54, 17.48, 6.14),
    "fc2": (24.54, 24.67, 24.55, 23.82, 22.53, 19.96, 19.51, 17.24, 15.28, 5.48),
    "fc3": (24.55, 24.12, 22.16, 20.86, 19.33, 16.40, 14.95, 13.42, 12.53, 5.00),
    ALL_LAYERS: (24.40, 23.85, 22.28, 20.23, 18.48, 14.28, 12.80, 12.30, 10.11, 5.00),
}
"""Layer -> top-5 accuracy in % at 10, 20, ... 100 % sparsity, without retraining."""

STUDIES = ("studies/r1-per-layer.yaml", "studies/r1-pruning.yaml")
CLASSES = {"cifar10": 10, "cifar100": 100}


def make_table(data: Path | None, runs: Path, *, fast: bool, quiet: bool) -> tuple[list[dict[str, Any]], str]:
    """Run R1's two pruning studies (their common training once); returns the rows and them as Markdown.

    Args:
        data: folder with CIFAR-10 (or -100, where the studies say so) as torchvision lays it out.
        runs: folder of runs.
        fast: their small variants.
        quiet: no progress.
    """
    from tersor.pipeline.study.file import read_study
    from tersor.pipeline.study.run import run_study

    points: list[Point] = []
    for path in STUDIES:
        study = read_study(Path(path), fast=fast)
        trials = run_study(study, runs, data, quiet=quiet)[1]
        points += [point_of(trial) for trial in trials if trial.finished]
        kind = str(study.overrides.get("data.kind", "cifar10"))
    rows = r1_table(points)
    return rows, markdown(rows, data=kind.upper().replace("CIFAR", "CIFAR-"), classes=CLASSES[kind])


def point_of(trial: Trial) -> Point:
    """A trial of R1's studies as a point of a sensitivity sweep; accuracies are of the test split."""
    metrics, layers = trial.metrics, trial.settings.get("sparsity.layers", [ALL_LAYERS])
    return Point(
        "sparsity",
        layers[0],
        trial.settings["sparsity.amount"],
        metrics["test_accuracy_fraction"],
        metrics["test_top5_accuracy_fraction"],
        metrics["test_loss"],
        int(metrics["nonzero_weights"]),
        int(metrics["effective_macs"]),
    )


def r1_table(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row a layer and level of R1: its top-5 accuracy and ours, in %, and our multiply-adds left.

    Args:
        points: a sparsity sweep of LeNet, by layer, global or both; other levels are left out.

    Returns:
        Rows with layer, level, r1_top5_percent, top5_percent, top1_percent, effective_macs; ours are None
        where `points` has none.

    Raises:
        BadInput: no point is of a layer of R1's network pruned by magnitude.
    """
    ours = {(p.layer, round(p.level, 6)): p for p in points if p.method == "sparsity"}
    if not any(layer in R1_TOP5 for layer, _ in ours):
        raise BadInput(
            "the points are not of R1's network",
            got=", ".join(dict.fromkeys(p.layer for p in points)) or "no points",
            wanted=f"a sparsity sweep of {', '.join(R1_TOP5)}",
            todo="Use the network `lenet`",
        )
    rows = []
    for layer, report in R1_TOP5.items():
        for level, top5 in zip(R1_LEVELS, report):
            point = ours.get((layer, level))
            row = {"layer": layer, "level": level, "r1_top5_percent": top5}
            row["top5_percent"] = 100 * point.top5_accuracy_fraction if point else None
            row["top1_percent"] = 100 * point.accuracy_fraction if point else None
            rows.append({**row, "effective_macs": point.effective_macs if point else None})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], *, data: str, classes: int) -> str:
    """The rows as a Markdown table: layers down, levels across; R1's line above ours.

    Args:
        rows: what `r1_table` returned.
        data: name of the data ours ran on.
        classes: how many it has; where not R1's 100, a note says what can be compared.
    """
    cells = []
    for layer in R1_TOP5:
        own = [row for row in rows if row["layer"] == layer]
        for head, label, key, form in (
            (layer, "R1 top-5", "r1_top5_percent", ".2f"),
            ("", "top-5", "top5_percent", ".2f"),
            ("", "top-1", "top1_percent", ".2f"),
            ("", "MACs left", "effective_macs", ",d"),
        ):
            cells.append([head, label, *(number_or_dash(row[key], form) for row in own)])
    table = markdown_table(("layer", "", *(f"{100 * level:g} %" for level in R1_LEVELS)), cells, "llr")
    note = f"R1: CIFAR-100, top-5 {R1_BASELINE:.2f} % before pruning. Ours: {data}, {classes} classes; "
    note += "multiply-adds of one image."
    if classes != R1_CLASSES:
        chance = 100 * min(1.0, 5 / classes)
        note += (
            f" Not R1's data: top-5 by chance is {chance:.2f} % here and 5.00 % there, so compare where the"
            " curves bend, not their heights."
        )
    return f"{table}\n\n{note}\n"
