"""Reports R1's and R4's quantization tables beside ours: accuracy at b bits, and what the weights then take.

R1's scales were not undone between layers, so its sweep says the same at nearly every b; its row is kept.
It stands beside two trainings of ours: a good one, and one as slow as R1's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tersor.errors import BadInput
from tersor.pipeline.reports.r1 import AS_R1
from tersor.pipeline.show.markdown import markdown_table, number_or_dash
from tersor.pipeline.show.palette import INK, LINES
from tersor.pipeline.show.picture import AXES, PADS, png, round_ticks
from tersor.pipeline.study.trial import Trial

FLOAT_BITS = 32


@dataclass(frozen=True)
class Report:
    """What a report ran and found.

    studies: ours, without and with fine-tuning. said: row title -> bits -> accuracy in %. metric: which one
    the report's rows are. note: what to know when comparing.
    """

    title: str
    studies: tuple[str, ...]
    metric: str
    said: Mapping[str, Mapping[int, float]]
    note: str


REPORTS: Mapping[str, Report] = {
    "r1": Report(
        "LeNet (kernels 8 and 9)",
        ("studies/r1-bits.yaml", "studies/r1-bits-tuned.yaml"),
        "top-5",
        {
            "R1, one scale for each layer": {2: 3.1, 3: 5.0} | dict.fromkeys(range(4, 17), 25.9),
            "R1, one for each channel": {2: 3.8, 3: 5.0} | dict.fromkeys(range(4, 17), 22.3),
        },
        "CIFAR-100, where top-5 by chance is 5 %. R1's network had 6.8 % top-1 and 22.4 % top-5 before "
        "rounding; its scales were not undone between layers, so its rows, about the same from 4 bits on, "
        "say nothing about bits.",
    ),
    "r4": Report(
        "ResNet-20",
        ("studies/r4-bits.yaml", "studies/r4-bits-tuned.yaml", "studies/r4-pruned-bits.yaml"),
        "top-1",
        {
            "R4, without fine-tuning": {6: 91.45, 5: 91.12, 4: 89.72, 3: 76.62, 2: 8.99},
            "R4, 20 epochs": {4: 91.35, 3: 90.76, 2: 85.65},
        },
        "R4: ResNet-20 of 91.51 % before rounding, grids from min to max, one for each layer.",
    ),
}


def make_table(
    name: str, data: Path | None, runs: Path, *, fast: bool, quiet: bool
) -> tuple[list[dict[str, Any]], str]:
    """Run a report's studies (their common training once); returns the rows and them as Markdown.

    Args:
        name: r1 or r4.
        data: folder with CIFAR-10 as torchvision lays it out.
        runs: folder of runs.
        fast: the studies' small variants.
        quiet: no progress.

    Raises:
        BadInput: no such report.
    """
    from tersor.pipeline.study.file import read_study
    from tersor.pipeline.study.run import run_study

    if name not in REPORTS:
        raise BadInput("no such report", got=name, wanted=", ".join(REPORTS), where="table")
    trials: list[Trial] = []
    for path in REPORTS[name].studies:
        trials += run_study(read_study(Path(path), fast=fast), runs, data, quiet=quiet)[1]
    rows = [row_of(trial) for trial in trials if trial.finished]
    return rows, markdown(REPORTS[name], rows)


def row_of(trial: Trial) -> dict[str, Any]:
    """A trial as a row: what it was, accuracies in %, bytes of the files."""
    stages, metrics = (trial.recipe or {})["stages"], trial.metrics
    linear = next(stage for stage in stages if stage["stage"] == "linear")
    tuned = next((stage for stage in reversed(stages) if stage["stage"] == "tune"), None)
    pruned = next((stage for stage in stages if stage.get("ramp")), None)
    return {
        "way": _slow(stages[0]) + _way(linear, tuned if stages[-1]["stage"] == "tune" else None, pruned),
        "bits": linear["bits"],
        "top1_percent": 100 * metrics["test_accuracy_fraction"],
        "top5_percent": 100 * metrics["test_top5_accuracy_fraction"],
        "loss": metrics["test_loss"],
        "weights": metrics["weights"],
        "packed_bytes": metrics["packed_bytes"],
        "lowbit_bytes": lowbit_bytes(Path(trial.onnx or "")),
        "baseline": {
            key: value
            for key, value in trial.stages[0].to_json().items()
            if key.startswith(("validation", "onnx"))
        },
    }


def lowbit_bytes(onnx: Path) -> int | None:
    """Bytes of the low-bit ONNX file of a stage's network; None where its weights do not fit eight bits."""
    from tersor.export.forms.lowbit import to_lowbit
    from tersor.models import network as networks
    from tersor.pipeline.shipping.files import scales_by_channel
    from tersor.pipeline.stages.store import NETWORK

    network = networks.load(onnx.with_name(NETWORK))
    with TemporaryDirectory() as folder:
        made = to_lowbit(onnx, Path(folder) / "lowbit.onnx", scales=scales_by_channel(network))
    weights = sum(tensor.numel() for name, tensor in network.tensors.items() if name in network.forms)
    return made.bytes_after if sum(t.elements for t in made.tensors) > weights / 2 else None


def markdown(report: Report, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown: accuracy by bits, the report's lines above ours, then the footprint."""
    bits = sorted({row["bits"] for row in rows} | {b for said in report.said.values() for b in said})
    ways = list(dict.fromkeys(row["way"] for row in rows))
    by = {(row["way"], row["bits"]): row for row in rows}
    lines = [f"## {report.title}: accuracy on the test split by bits of a weight", ""]
    cells = [
        [title, report.metric, *(number_or_dash(said.get(b), ".2f") for b in bits)]
        for title, said in report.said.items()
    ]
    for way in ways:
        own = [by.get((way, b)) for b in bits]
        for label, key, form in (
            ("top-1", "top1_percent", ".2f"),
            ("top-5", "top5_percent", ".2f"),
            ("loss", "loss", ".3g"),
        ):
            values = (number_or_dash(row[key] if row else None, form) for row in own)
            cells.append([way if label == "top-1" else "", label, *values])
    lines.append(markdown_table(("%", "", *map(str, bits)), cells, "llr"))
    return "\n".join([*lines, "", report.note, "", *_footprint(rows)]) + "\n"


def _footprint(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Bytes at 32, 2, 4 and 8 bits: weights alone as the reports count, and files as they are."""
    weights = rows[0]["weights"]
    whole = number_or_dash(rows[0]["baseline"].get("onnx_bytes"), ",")
    cells = [[FLOAT_BITS, f"{4 * weights:,}", f"{whole} (plain ONNX)", "-", "before rounding"]]
    for bits in (2, 4, 8):
        for row in rows:
            if row["bits"] == bits and not row["way"].startswith(AS_R1):
                low = number_or_dash(row["lowbit_bytes"], ",")
                alone = f"{(weights * bits + 7) // 8:,}"
                cells.append([bits, alone, low, f"{row['packed_bytes']:,}", row["way"]])
    header = ("bits", "weights alone", "low-bit ONNX file", "model.tsr", "which")
    return [
        "## Footprint",
        "",
        markdown_table(header, cells, "rrrrl"),
        "",
        "Weights alone: bits x weights / 8, without scales, biases and graph. Files hold everything.",
    ]


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Write a PNG: top-1, top-5 and loss against bits, a line for each way; the same rows, the same bytes."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    with png(path, (12, 4.6), style={**AXES, "ytick.color": INK}, dpi=100, pads=PADS) as figure:
        axes = figure.subplots(1, 3)
        for axis, (key, label) in zip(
            axes, (("top1_percent", "top-1 %"), ("top5_percent", "top-5 %"), ("loss", "loss, nats"))
        ):
            for index, way in enumerate(ways):
                points = sorted((row["bits"], row[key]) for row in rows if row["way"] == way)
                style = {"color": LINES[index % len(LINES)], "marker": "os^D"[index // len(LINES) % 4]}
                axis.plot([b for b, _ in points], [v for _, v in points], label=way, markersize=4, **style)
            axis.set_title(label, loc="left", fontsize=11)
            axis.set_xlabel("bits of a weight")
            round_ticks(axis.xaxis, 10, whole=True)
            if key == "loss":
                axis.set_yscale("log")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=9)


def _slow(training: Mapping[str, Any]) -> str:
    """What marks a way whose network was trained as slowly as R1's."""
    return f"{AS_R1}, " if training.get("momentum") == 0 else ""


def _way(linear: Mapping[str, Any], tuned: Mapping[str, Any] | None, pruned: Mapping[str, Any] | None) -> str:
    parts = [
        f"{100 * pruned['ramp']['amount']:g} % pruned" if pruned else "",
        "one scale for each channel" if linear["per_channel"] else "one scale for each layer",
        "" if linear["symmetric"] else "min to max",
        {"max": "", "mse": "least error", "percentile": "percentile"}[linear["scale"]],
    ]
    if tuned is not None:
        epochs = "1 epoch" if tuned["epochs"] == 1 else f"{tuned['epochs']} epochs"
        parts.append(f"{epochs}, {'learned scales' if tuned['learn_scales'] else 'fixed scales'}")
    return ", ".join(part for part in parts if part)
