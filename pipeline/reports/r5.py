"""Report R5's table beside ours: MNIST, NNI pruners at 0.2 and 0.7, and the aligned row it lacked."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tersor.export.timing import providers
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.parity import accuracy
from tersor.files import write_whole
from tersor.models.network import Network
from tersor.pipeline.data.load import Data, data_of
from tersor.pipeline.recipe.read import read_recipe
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.run import compress
from tersor.pipeline.show.markdown import markdown_table, number_or_dash
from tersor.pipeline.stages.run_folder import Run
from tersor.pipeline.stages.store import Store

FOLDER = Path("recipes/mnist")
REPORT = {
    "base": ("32, 64", 98.68, 0.331),
    "l1norm-0.2": ("26, 52", 97.77, 0.826),
    "l1norm-0.7": ("10, 20", 85.82, 0.227),
    "fpgm-0.2": ("26, 52", 98.15, 0.320),
    "fpgm-0.7": ("10, 20", 66.79, 0.220),
}
"""R5: model -> channels, accuracy in % without fine-tuning, inference in ms (Xeon Silver 4110, P4000)."""

MODELS = (*REPORT, "aligned")
BATCHES = (1, 64)
TORCH_ROUNDS = {1: 300, 64: 40}


@dataclass(frozen=True)
class Row:
    """One model: what R5 reported, and what we measured. Percentages of the test split; milliseconds p50."""

    model: str
    channels: str
    macs: int
    report_accuracy_percent: float | None
    report_inference_ms: float | None
    pruned_accuracy_percent: float
    tuned_accuracy_percent: float
    masked_max_abs_diff: float | None
    p50_ms: Mapping[str, float]
    """`torch 1`, `torch 64`, `cpu 1`, `cpu 64` and, where there is one, `cuda 1`, `cuda 64`."""
    speedup: Mapping[str, float]
    """The base's p50 over this model's, interleaved, keys as `p50_ms`."""
    not_measured: Mapping[str, str]


def make_table(
    data: Path, runs: Path, overrides: Sequence[str], out: Path | None, *, quiet: bool = False
) -> list[dict[str, Any]]:
    """Run the six recipes (their common training once), measure, and write Markdown where asked.

    Args:
        data: folder with MNIST as torchvision lays it out.
        runs: folder of runs.
        overrides: as --set, for all six.
        out: a Markdown file.
        quiet: no progress.
    """
    store = Store(runs)
    recipes = {name: read_recipe(FOLDER / f"{name}.yaml", overrides, data) for name in MODELS}
    ran = {name: compress(recipe, store, quiet=quiet) for name, recipe in recipes.items()}
    split = data_of(recipes["base"])
    finals = {name: run.network() for name, run in ran.items()}
    files = {name: run.onnx() for name, run in ran.items()}
    timings, missing = _time_everything(files, finals, recipes["base"])
    rows = [_row(name, ran[name], finals[name], split, timings, missing) for name in MODELS]
    if out is not None:
        write_whole(out, markdown(rows))
    return [asdict(row) for row in rows]


def time_torch(
    modules: Mapping[str, torch.nn.Module], shape: tuple[int, ...], rounds: int
) -> dict[str, float]:
    """Median milliseconds of a forward pass of each module, interleaved, one thread, eager mode."""
    images = torch.randn(*shape)
    samples: dict[str, list[float]] = {name: [] for name in modules}
    torch.set_num_threads(1)
    with torch.inference_mode():
        for turn in range(rounds + 5):
            for name, module in modules.items():
                began = time.perf_counter()
                module(images)
                if turn >= 5:  # the first turns warm up
                    samples[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in samples.items()}


def _time_everything(
    files: Mapping[str, Path], finals: Mapping[str, Network], recipe: Recipe
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """p50 in ms: {`cpu 1`: {model: ms}}; and the reasons for targets that are not there."""
    found: dict[str, dict[str, float]] = {}
    modules = {name: network.module() for name, network in finals.items()}
    for batch in BATCHES:
        shape = (batch, *finals["base"].input_shape)
        found[f"torch {batch}"] = time_torch(modules, shape, TORCH_ROUNDS[batch])
    missing: dict[str, str] = {}
    for target in recipe.deploy.targets:
        reason = providers.why_not(target)
        if reason:
            missing[target] = reason
            continue
        timed = benchmark(files, target, baseline="base", batches=BATCHES, seconds_per_model=1.5)
        for row in timed.rows:
            found.setdefault(f"{target} {row.batch}", {})[str(row.file)] = row.p50_ms
        missing |= {f"{target} {refused.batch}": refused.reason for refused in timed.refused}
    return found, missing


def _row(
    name: str,
    run: Run,
    final: Network,
    split: Data,
    timings: Mapping[str, Mapping[str, float]],
    missing: Mapping[str, str],
) -> Row:
    stages = run.stages
    pruned = next((i for i, s in enumerate(stages) if s.stage == "structure"), 0)
    widths = [final.tensors[f"conv{i}.0.weight"].shape[0] for i in (1, 2)]
    return Row(
        model=name,
        channels=", ".join(map(str, widths)),
        macs=stages[-1].macs,
        report_accuracy_percent=REPORT[name][1] if name in REPORT else None,
        report_inference_ms=REPORT[name][2] if name in REPORT else None,
        pruned_accuracy_percent=100 * _accuracy(run.onnx(pruned), split),
        tuned_accuracy_percent=100 * _accuracy(run.onnx(), split),
        masked_max_abs_diff=stages[pruned].details.get("masked_max_abs_diff"),
        p50_ms={key: by_model[name] for key, by_model in timings.items()},
        speedup={key: by_model["base"] / by_model[name] for key, by_model in timings.items()},
        not_measured=dict(missing),
    )


def _accuracy(onnx: Path, split: Data) -> float:
    threads = os.cpu_count() or 1
    session = providers.open_session(onnx, "cpu", threads=threads)
    return accuracy(session, split.preprocessing.apply(split.test.images), split.test.labels)


def _columns(keys: Sequence[str]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    """Heading and cell of every column; the same for terminal and Markdown."""
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("model", lambda r: r["model"]),
        ("channels", lambda r: r["channels"]),
        ("MACs", lambda r: f"{r['macs'] / 1e6:.2f} M"),
        ("R5 %", lambda r: number_or_dash(r["report_accuracy_percent"], ".2f")),
        ("pruned %", lambda r: f"{r['pruned_accuracy_percent']:.2f}"),
        ("tuned %", lambda r: f"{r['tuned_accuracy_percent']:.2f}"),
        ("R5 ms", lambda r: number_or_dash(r["report_inference_ms"], ".3f")),
    ]
    for key in keys:
        columns.append((f"{key} ms", lambda r, k=key: f"{r['p50_ms'][k]:.3f} ({r['speedup'][k]:.2f}x)"))  # type: ignore[misc]
    return columns


NOTE = (
    "R5 %: the report's accuracy, without fine-tuning. pruned / tuned %: ours on the test split, before and "
    "after fine-tuning. Times: p50 of one run at the batch size in the heading, one thread, interleaved; "
    "torch is eager PyTorch, cpu and cuda are ONNX Runtime; x is the base's time over the row's."
)


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, with what the columns mean and what was not measured."""
    plain = [asdict(row) for row in rows]
    columns = _columns(list(plain[0]["p50_ms"]))
    table = markdown_table(
        [heading for heading, _ in columns], ([cell(row) for _, cell in columns] for row in plain)
    )
    missing = [f"Not measured: {target}: {why}." for target, why in rows[0].not_measured.items()]
    head = "# Report R5's table\n\nMade by `make table REPORT=r5 DATA=...`.\n\n"
    return head + "\n\n".join([table, NOTE, *missing]) + "\n"


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Show the table on the terminal."""
    table = Table(title="R5: MNIST, NNI pruners")
    columns = _columns(list(rows[0]["p50_ms"]))
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading in ("model", "channels") else "right")
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    console = Console(width=None if os.isatty(1) else 160)
    console.print(table)
    console.print(NOTE)
    for target, why in rows[0]["not_measured"].items():
        console.print(f"not measured: {target}: {why}")
