"""Report R1's tables beside ours: LeNet with kernels 8 and 9 on CIFAR-100, what it costs, and what magnitude
pruning without retraining leaves of it, one layer at a time and all at once.

R1's training was slow: 7.6 % top-1 after 56 epochs. The studies train it so too, and well.
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

R1_MACS: Mapping[str, int] = {
    "conv1": 720_000,
    "pool": 4_056,
    "conv2": 31_104,
    "fc1": 7_680,
    "fc2": 10_080,
    "fc3": 8_400,
}
R1_TRAINING_BYTES = 4_687_304
"""Of a batch of 128, with its 4,118 outputs for the biases too."""

STUDIES = ("studies/r1-per-layer.yaml", "studies/r1-pruning.yaml")
CLASSES = {"cifar10": 10, "cifar100": 100}
WELL, AS_R1 = "trained well", "trained as R1 did"
MOMENTUM = "train.momentum"
"""The setting that tells the two trainings apart."""


def make_table(data: Path | None, runs: Path, *, fast: bool, quiet: bool) -> tuple[list[dict[str, Any]], str]:
    """Run R1's two pruning studies (their trainings once each); returns the rows and them as Markdown.

    Args:
        data: folder with CIFAR-100 (or -10, where the studies say so).
        runs: folder of runs.
        fast: their small variants.
        quiet: no progress.
    """
    from tersor.pipeline.study.file import read_study
    from tersor.pipeline.study.run import run_study

    points: dict[str, list[Point]] = {}
    kind = "cifar100"
    for path in STUDIES:
        study = read_study(Path(path), fast=fast)
        kind = str(study.overrides.get("data.kind", kind))
        for trial in run_study(study, runs, data, quiet=quiet)[1]:
            if trial.finished:
                points.setdefault(training_of(trial.settings), []).append(point_of(trial))
    rows = [row for training, own in points.items() for row in r1_table(own, training)]
    name = kind.upper().replace("CIFAR", "CIFAR-")
    return rows, f"{costs(CLASSES[kind])}\n{markdown(rows, data=name, classes=CLASSES[kind])}"


def training_of(settings: Mapping[str, Any]) -> str:
    """Which of the two trainings a trial's settings are of."""
    return AS_R1 if settings.get(MOMENTUM) == 0 else WELL


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


def costs(classes: int) -> str:
    """Weights, multiply-adds and memory of the network, R1's count beside the true one, as Markdown.

    Args:
        classes: of the data.
    """
    from tersor.models.cost import cost
    from tersor.models.network import create
    from tersor.models.preprocessing import Preprocessing

    names = tuple(map(str, range(classes)))
    network = create("lenet", {"kernels": [8, 9]}, (3, 32, 32), names, Preprocessing())
    counted = cost(network, batch=128)
    own = {layer.name: layer for layer in counted.layers}
    cells = []
    for name, macs in R1_MACS.items():
        layer = own.get(name)
        weights, true = (layer.weights, layer.macs) if layer else (0, 0)
        cells.append([name, f"{weights:,}", f"{macs:,}", f"{true:,}"])
    cells.append(["all", f"{counted.weights:,}", f"{sum(R1_MACS.values()):,}", f"{counted.macs:,}"])
    bits = ", ".join(f"{cost(network, bits=b).weight_bytes:,} at {b}" for b in (2, 4, 8, 32))
    return (
        "## What the network costs, one image\n\n"
        + markdown_table(("layer", "weights", "R1's MACs", "MACs"), cells, "lrrr")
        + "\n\nR1 counts its pools, and conv2 at the pooled 2x2 instead of 4x4. Bytes of the weights by "
        + f"bits: {bits}. Training memory at batch 128, 3 x parameters + 2 x 128 x outputs: R1 "
        + f"{R1_TRAINING_BYTES:,} bytes, here {counted.training_memory_bytes:,} (R1 takes outputs for "
        + "biases).\n"
    )


def r1_table(points: Sequence[Point], training: str = WELL) -> list[dict[str, Any]]:
    """One row a layer and level of R1: its top-5 accuracy and ours, in %, and our multiply-adds left.

    Args:
        points: a sparsity sweep of LeNet, by layer, global or both; other levels are left out.
        training: how it was trained.

    Returns:
        Rows with training, layer, level (0 before pruning), r1_top5_percent, top5_percent, top1_percent,
        effective_macs; ours are None
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
        for level, top5 in zip((0.0, *R1_LEVELS), (R1_BASELINE, *report)):
            point = ours.get((layer if level else ALL_LAYERS, level))
            row = {"training": training, "layer": layer, "level": level, "r1_top5_percent": top5}
            row["top5_percent"] = 100 * point.top5_accuracy_fraction if point else None
            row["top1_percent"] = 100 * point.accuracy_fraction if point else None
            rows.append({**row, "effective_macs": point.effective_macs if point else None})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], *, data: str, classes: int) -> str:
    """The rows as a Markdown table: layers down, levels across; R1's line above ours.

    Args:
        rows: what `r1_table` returned, of one training or more.
        data: name of the data ours ran on.
        classes: how many it has; where not R1's 100, a note says what can be compared.
    """
    cells = []
    for layer in R1_TOP5:
        first = True
        for training in dict.fromkeys(row["training"] for row in rows):
            own = [row for row in rows if (row["layer"], row["training"]) == (layer, training)]
            lines = [
                (f"{training}: top-5", "top5_percent", ".2f"),
                (f"{training}: top-1", "top1_percent", ".2f"),
                *([("MACs left", "effective_macs", ",d")] if training == rows[0]["training"] else []),
            ]
            for label, key, form in [*([("R1: top-5", "r1_top5_percent", ".2f")] if first else []), *lines]:
                cells.append(
                    [layer if first else "", label, *(number_or_dash(row[key], form) for row in own)]
                )
                first = False
    levels = (0.0, *R1_LEVELS)
    table = markdown_table(("layer", "", *(f"{100 * level:g} %" for level in levels)), cells, "llr")
    note = f"R1: CIFAR-100. Ours: {data}, {classes} classes, test split; multiply-adds of one image."
    if classes != R1_CLASSES:
        chance = 100 * min(1.0, 5 / classes)
        note += (
            f" Not R1's data: top-5 by chance is {chance:.2f} % here and 5.00 % there, so compare where the"
            " curves bend, not their heights."
        )
    return f"## Magnitude pruning without retraining\n\n{table}\n\n{note}\n"
