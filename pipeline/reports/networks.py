"""The table network x pruner x ratio: asked, achieved, proven, exported, timed. Weights are random.

BatchNorm statistics and scales are random too: fresh ones would hide a dropped constant.
"""

import difflib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tersor.errors import BadInput, TersorError
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.parity import outputs
from tersor.export.timing.providers import open_session
from tersor.models import network as networks
from tersor.models.cost import cost
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.structure.stage import prune_channels

SMALL = (3, 32, 32)
NETWORKS: dict[str, dict[str, Any]] = {
    "mnist": {"shape": (1, 28, 28), "arguments": {"batch_norm": True}},
    "lenet": {"shape": SMALL},
    "vgg16_half": {"shape": SMALL},
    "resnet20 A": {"shape": SMALL, "arguments": {"shortcut": "A"}},
    "resnet20 B": {"shape": SMALL, "arguments": {"shortcut": "B"}},
    "resnet56 A": {"shape": SMALL, "arguments": {"shortcut": "A"}},
    **{
        name: {}
        for name in (
            "resnet18",
            "resnet50",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "efficientnet_b0",
            "densenet121",
            "googlenet",
            "regnet_y_400mf",
            "resnext50_32x4d",
        )
    },
}
PRUNERS, RATIOS = ("l1norm", "fpgm"), (0.3, 0.5)
SECONDS_PER_MODEL = 0.5


def make(names: Sequence[str], pixels: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each network, pruner and ratio; a failure is a row with its error.

    Args:
        names: keys of NETWORKS.
        pixels: height and width of the images of ImageNet networks.
        say: told each finished row in a few words.

    Raises:
        BadInput: a name that is not in the table.
    """
    for name in names:
        if name not in NETWORKS:
            near = difflib.get_close_matches(name, NETWORKS, 1)
            raise BadInput(
                f"the table has no network called {name!r}",
                wanted=f"one of {', '.join(NETWORKS)}",
                todo=f"Did you mean {near[0]!r}?" if near else None,
            )
    rows = []
    for name in names:
        baseline = random_network(name, pixels)
        for pruner in PRUNERS:
            for ratio in RATIOS:
                row = {"network": name, "pruner": pruner, "asked": ratio}
                try:
                    row |= measure(baseline, pruner, ratio)
                    words = f"differs by {row['masked_max_abs_diff']:.1e}, {row['seconds']:.1f} s"
                except TersorError as error:
                    row["error"] = words = str(error)
                rows.append(row)
                say(f"{name} {pruner} {ratio}: {words}")
    return rows


def random_network(name: str, pixels: int) -> Network:
    """A network of the table with random weights and random BatchNorm statistics, seed 0."""
    entry = NETWORKS[name]
    shape = entry.get("shape", (3, pixels, pixels))
    classes = tuple(str(i) for i in range(10))
    torch.manual_seed(0)
    plain = Preprocessing(255.0, (0.5,) * shape[0], (0.5,) * shape[0])
    net = networks.create(name.split()[0], entry.get("arguments", {}), shape, classes, plain)
    generator, tensors = torch.Generator().manual_seed(1), dict(net.tensors)
    norms = {n.removesuffix(".running_var") for n in tensors if n.endswith(".running_var")}
    for layer in norms:
        for leaf, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            key = f"{layer}.{leaf}"
            tensors[key] = low + torch.rand(tensors[key].shape, generator=generator)
    return net.with_tensors(tensors)


def measure(baseline: Network, pruner: str, ratio: float) -> dict[str, Any]:
    """Prune one network and measure everything of the result.

    Raises:
        TersorError: it cannot be pruned, or the proof fails.
    """
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((8, *baseline.input_shape)).astype(np.float32)
    images = Images(torch.from_numpy(inputs), torch.zeros(len(inputs), dtype=torch.int64))
    settings = Structure(stage="structure", pruner=pruner, sparsity=ratio)
    began = time.monotonic()
    small, details = prune_channels(baseline, settings, images, lambda *_: None)
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        files = {"baseline": Path(folder) / "baseline.onnx", "pruned": Path(folder) / "pruned.onnx"}
        export_onnx(baseline, files["baseline"])
        export_onnx(small, files["pruned"])
        with torch.no_grad():
            wanted = small.module()(images.inputs).numpy()
        got = outputs(open_session(files["pruned"], "cpu"), inputs)
        timed = benchmark(
            files, "cpu", baseline="baseline", batches=(1,), seconds_per_model=SECONDS_PER_MODEL
        )
    return {
        "achieved": details["achieved_sparsity_fraction"],
        "rebuilt_by": details["rebuilt_by"],
        "not_by_nni": details.get("not_by_nni"),
        "masked_max_abs_diff": details["masked_max_abs_diff"],
        "onnx_max_abs_diff": float(np.abs(wanted - got).max()),
        "largest_logit": float(np.abs(wanted).max()),
        "macs_ratio": cost(baseline).macs / cost(small).macs,
        "time_ratio": timed.rows[1].speedup if timed.rows else None,
        "seconds": seconds,
    }


COLUMNS = (
    "network",
    "pruner",
    "asked",
    "achieved",
    "rebuilt by",
    "masked - rebuilt",
    "torch - ONNX Runtime",
    "largest logit",
    "fewer MACs",
    "speedup",
    "prune + prove, s",
)


def markdown(rows: Sequence[dict[str, Any]], pixels: int) -> str:
    """The rows as a table."""
    lines = [
        "# Structural pruning of many networks",
        "",
        "Random weights and BatchNorm statistics, one thread, batch 1, ImageNet networks at "
        f"{pixels}x{pixels} pixels; made by `make table REPORT=networks`. "
        "Differences: the largest of any logit.",
        "",
        markdown_table(COLUMNS, map(_cells, rows)),
    ]
    whys = {row["network"]: row["not_by_nni"] for row in rows if row.get("not_by_nni")}
    lines += ["", "Why NNI's ModelSpeedup did not rebuild it:", ""] if whys else []
    return "\n".join(lines + [f"- {name}: {why}" for name, why in whys.items()]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    head = [row["network"], row["pruner"], f"{row['asked']:.0%}"]
    if "error" in row:
        return [*head, f"fails: {row['error']}", *[""] * (len(COLUMNS) - 4)]
    return [
        *head,
        f"{row['achieved']:.1%}",
        row["rebuilt_by"],
        f"{row['masked_max_abs_diff']:.1e}",
        f"{row['onnx_max_abs_diff']:.1e}",
        f"{row['largest_logit']:.2g}",
        f"{row['macs_ratio']:.2f}x",
        "not measured" if row["time_ratio"] is None else f"{row['time_ratio']:.2f}x",
        f"{row['seconds']:.1f}",
    ]
