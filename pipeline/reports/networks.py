"""The table of networks: asked, achieved, proven, exported, for each with random weights.

Statistics of norms, scales that start at one value and weights that start at zero are random too: fresh ones
would hide a dropped constant, or a branch that is multiplied by nothing.
"""

import difflib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tersor.errors import BadInput, TersorError
from tersor.export.forms.int8 import to_int8
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.parity import outputs
from tersor.export.timing.providers import open_session
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.structure import Structure
from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.structure.coupling import couple
from tersor.pipeline.structure.proof import randomised
from tersor.pipeline.structure.stage import prune_channels

_TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet0_5
    mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_y_400mf resnet18 resnext50_32x4d
    shufflenet_v2_x0_5 squeezenet1_1 swin_t vgg11_bn vit_b_16 wide_resnet50_2
"""
_TIMM = """
    convnext_atto convnextv2_atto cspresnet50 darknet53 densenet121 dla34 dm_nfnet_f0 ecaresnet26t
    edgenext_xx_small efficientnet_lite0 efficientnetv2_rw_t ese_vovnet19b_dw fasternet_t0 ghostnetv2_100
    halonet26t hgnetv2_b0 hrnet_w18_small inception_next_atto inception_v3 lambda_resnet26t lcnet_035
    levit_conv_128s mixnet_s mnasnet_small mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0
    mobilevit_xxs nasnetalarge pnasnet5large poolformer_s12 regnetx_002 regnety_002 repvgg_a0 repvit_m0_9
    res2net50_26w_4s resnet18 resnet50d resnetv2_50 resnext26ts rexnet_100 seresnet18 skresnet18 starnet_s1
    tresnet_m vgg11_bn xception41
"""
OWN: Mapping[str, dict[str, Any]] = {
    "mnist": {"shape": (1, 28, 28), "arguments": {"batch_norm": True}},
    "lenet": {"shape": (3, 32, 32)},
    "vgg16_half": {"shape": (3, 32, 32)},
    "resnet20 A": {"shape": (3, 32, 32), "arguments": {"shortcut": "A"}},
    "resnet20 B": {"shape": (3, 32, 32), "arguments": {"shortcut": "B"}},
}
"""Networks of the reports: the image and the arguments."""
NETWORKS = (
    *OWN,
    *(f"torchvision:{name}" for name in _TORCHVISION.split()),
    *(f"timm:{name}" for name in _TIMM.split()),
)
"""What the table holds when nothing is named; any `torchvision:NAME` and `timm:NAME` can be."""
LEAST = {
    "torchvision:inception_v3": 96,
    "timm:inception_v3": 96,
    "timm:nasnetalarge": 96,
    "timm:pnasnet5large": 96,
    "timm:levit_conv_128s": 224,
    "timm:halonet26t": 256,
    "timm:lambda_resnet26t": 128,
}
"""Pixels that a network needs at least."""
CLASSES = 10
PRELOADED = (
    "timm",
    "torchvision.models",
    "networkx",
    "torch.export._trace",
    "torch._functorch.aot_autograd",
    "torch._functorch._aot_autograd.graph_compile",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
)
"""What every network's process would else load for itself."""


def make(
    names: Sequence[str],
    settings: Structure,
    pixels: int,
    say: Callable[[str], None],
    *,
    int8: bool = False,
) -> list[dict[str, Any]]:
    """One row for each network, made in a process of its own; a failure is a row with its error.

    Args:
        names: of NETWORKS, or any `torchvision:NAME` or `timm:NAME`.
        settings: how each is pruned.
        pixels: height and width of the images, or what the network needs at least.
        say: told each finished row in a few words.
        int8: quantize the exported file too, calibrated on 64 random images, and compare.

    Raises:
        BadInput: a name that is neither.
    """
    for name in names:
        _check_name(name)
    rows = []
    for name in names:
        row = {"network": name, "pixels": shape_of(name, pixels)[1], **_apart(name, settings, pixels, int8)}
        rows.append(row)
        say(f"{name}: {_words(row)}")
    return rows


def _check_name(name: str) -> None:
    if name in NETWORKS or name.startswith(("torchvision:", "timm:")):
        return
    near = difflib.get_close_matches(name, NETWORKS, 1)
    raise BadInput(
        f"the table has no network called {name!r}",
        wanted=f"one of {', '.join(OWN)}, torchvision:NAME or timm:NAME",
        todo=f"Did you mean {near[0]!r}?" if near else None,
    )


def _apart(name: str, settings: Structure, pixels: int, int8: bool) -> dict[str, Any]:
    """The row of one network, by a child: its memory is its own, and a crash is a row."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_row, name, settings.model_dump(), pixels, int8).result()
        except BrokenProcessPool:
            return {"error": "the process died (out of memory?)", "kind": "crash"}


def _row(name: str, settings: dict[str, Any], pixels: int, int8: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    couple(torch.nn.Conv2d(3, 4, 1).eval(), torch.zeros(2, 3, 8, 8))  # torch's exporter loads itself here
    try:
        measured = measure(random_network(name, pixels), Structure.model_validate(settings), int8=int8)
    except TersorError as error:
        return {"error": str(error), "kind": "refused"}
    except Exception as error:  # a fault of ours: the table says so
        return {"error": f"{type(error).__name__}: {error}", "kind": "traceback"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return measured | {"peak_memory_bytes": peak * (1 if sys.platform == "darwin" else 1024)}


def shape_of(name: str, pixels: int) -> tuple[int, int, int]:
    """The images of a network: those of its report, or of `pixels`, or what it needs at least."""
    side = max(pixels, LEAST.get(name, 0))
    return OWN.get(name, {}).get("shape", (3, side, side))


def random_network(name: str, pixels: int) -> Network:
    """A network of the table with random weights and statistics, seed 0."""
    shape, arguments = shape_of(name, pixels), OWN.get(name, {}).get("arguments", {})
    classes = tuple(str(i) for i in range(CLASSES))
    torch.manual_seed(0)
    plain = Preprocessing(255.0, (0.5,) * shape[0], (0.5,) * shape[0])
    definition = name.split()[0] if name in OWN else name
    net = networks.create(definition, arguments, shape, classes, plain)
    return randomised(net)


def measure(baseline: Network, settings: Structure, *, int8: bool = False) -> dict[str, Any]:
    """Prune one network and measure everything of the result; `make` says what `int8` adds.

    Raises:
        TersorError: it cannot be pruned, or the proof fails.
    """
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((8, *baseline.input_shape)).astype(np.float32)
    images = Images(torch.from_numpy(inputs), torch.from_numpy(rng.integers(0, CLASSES, 8)))
    began, steps = time.monotonic(), []
    small, details = prune_channels(baseline, settings, images, lambda *_: steps.append(time.monotonic()))
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        export_onnx(small, path)
        with torch.no_grad():
            wanted = small.module()(images.inputs).numpy()
            before = baseline.module()(images.inputs).numpy()
        got = outputs(open_session(path, "cpu"), inputs)
        rounded = _int8_difference(small, Path(folder)) if int8 else {}
    told = ["asked_sparsity_fraction", "achieved_sparsity_fraction", "parameters", "macs"]
    told += ["rebuilt_by", "masked_max_rel_diff"]
    largest = float(np.abs(wanted).max())
    return {name: details[name] for name in told} | {
        "not_pruned": details["not_pruned"],
        "candidates": len(set(details["widths"]) | set(details["not_pruned"])),
        "not_by_nni": details.get("not_by_nni"),
        "not_as_module": details.get("not_as_module"),
        "moved_rel": float(np.abs(wanted - before).max() / np.abs(before).max()),
        "onnx_max_rel_diff": float(np.abs(wanted - got).max()) / largest,
        "coupling_seconds": steps[1] - steps[0],
        "seconds": seconds,
        **rounded,
    }


def _int8_difference(network: Network, folder: Path) -> dict[str, Any]:
    """How far the int8 file is from the fp32 file on 64 further random images."""
    rng = np.random.default_rng(1)
    calibration, images = rng.standard_normal((2, 64, *network.input_shape)).astype(np.float32)
    folded, quantized = folder / "folded.onnx", folder / "int8.onnx"
    export_onnx(network, folded, fold_batch_norm=True)
    to_int8(folded, quantized, calibration)
    before, after = (outputs(open_session(path, "cpu"), images) for path in (folded, quantized))
    return {
        "int8_rel_rms": float(np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))),
        "int8_agreement_fraction": float((before.argmax(1) == after.argmax(1)).mean()),
    }


def as_asked(row: Mapping[str, Any]) -> bool:
    """Whether every candidate lost what was asked of it, within rounding."""
    return "error" not in row and not row["not_pruned"]


def _words(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"{row['kind']}: {row['error']}"
    return f"{100 * row['achieved_sparsity_fraction']:.1f} % of the channels, {row['seconds']:.1f} s"


COLUMNS = (
    "network",
    "px",
    "got",
    "layers left whole",
    "parameters",
    "MACs",
    "rebuilt by",
    "moved",
    "masked - rebuilt",
    "torch - ONNX Runtime",
    "coupling, s",
    "whole, s",
    "MB",
    "Torch-Pruning 1.6.1",
)


def markdown(
    rows: Sequence[Mapping[str, Any]], settings: Structure, beside: Mapping[str, str] | None = None
) -> str:
    """The rows as a page.

    Args:
        beside: network -> what Torch-Pruning made of it, as benchmarks/prune_networks.py found.
    """
    beside = beside or {}
    pruned = [row for row in rows if "error" not in row]
    asked = sum(as_asked(row) for row in rows)
    refused = sum(row.get("kind") == "refused" for row in rows)
    counts = f"{len(rows)} networks: {asked} as asked (every candidate within rounding), "
    counts += f"{len(pruned) - asked} in part, {refused} refused in words, "
    counts += f"{len(rows) - len(pruned) - refused} failed."
    lines = [
        "# Structural pruning of many networks",
        "",
        f"{100 * settings.sparsity:g} % of the channels asked of every layer, scores by {settings.pruner}, "
        f"linear layers {'too' if settings.linear else 'left'}. Random weights and statistics, one thread; "
        "made by `make table REPORT=networks`. Differences: the largest of any logit over the largest logit: "
        "masked against rebuilt in float64, torch against ONNX Runtime in float32; moved: the pruned network "
        "against the one before, to show that the others say something. Parameters and MACs: what is left. "
        "Coupling: exporting, labels, and whether the program computes what the network does; whole: with "
        "scores, rebuild and proof. MB: the highest memory of a process of its own, with all libraries.",
        "",
        counts,
        "",
        markdown_table(COLUMNS, [_cells(row, beside) for row in rows], "lrr"),
    ]
    rounded = [row for row in pruned if "int8_rel_rms" in row]
    if rounded:
        header = ("network", "int8 - fp32, RMS over RMS of the logits", "same class")
        cells = [
            (r["network"], f"{r['int8_rel_rms']:.3f}", f"{100 * r['int8_agreement_fraction']:.0f} %")
            for r in rounded
        ]
        lines += ["", "The int8 file against the fp32 file, ONNX Runtime, 64 random images:", ""]
        lines += [markdown_table(header, cells, "lr")]
    kept = [(row["network"], name, why) for row in pruned for name, why in row["not_pruned"].items()]
    if kept:
        lines += ["", "Why layers kept channels:", ""]
        lines += [f"- {network}, {layers}: {why}" for network, layers, why in _grouped(kept)]
    for key, title in (
        ("not_by_nni", "Why NNI's ModelSpeedup did not rebuild it:"),
        ("not_as_module", "Why the network's own Python could not follow, and its graph took its place:"),
    ):
        whys = {row["network"]: row[key] for row in pruned if row.get(key)}
        lines += ["", title, ""] if whys else []
        lines += [f"- {name}: {_line(why)}" for name, why in whys.items()]
    return "\n".join(lines) + "\n"


def _grouped(kept: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One line for each network and reason: the first layer, and how many more."""
    together: dict[tuple[str, str], list[str]] = {}
    for network, layer, why in kept:
        together.setdefault((network, why), []).append(layer)
    return [
        (network, f"`{layers[0]}`" + (f" and {len(layers) - 1} more" if len(layers) > 1 else ""), why)
        for (network, why), layers in together.items()
    ]


def _line(text: str, most: int = 240) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _cells(row: Mapping[str, Any], beside: Mapping[str, str]) -> list[str]:
    other = beside.get(row["network"], "not run")
    if "error" in row:
        words = f"{row['kind']}: {_line(row['error'])}"
        return [row["network"], str(row["pixels"]), words, *[""] * (len(COLUMNS) - 4), other]
    left = {key: row[key][1] / row[key][0] for key in ("parameters", "macs")}
    return [
        row["network"],
        str(row["pixels"]),
        f"{row['achieved_sparsity_fraction']:.1%}",
        f"{len(row['not_pruned'])} of {row['candidates']}",
        f"{left['parameters']:.0%}",
        f"{left['macs']:.0%}",
        row["rebuilt_by"],
        f"{row['moved_rel']:.2g}",
        f"{row['masked_max_rel_diff']:.1e}",
        f"{row['onnx_max_rel_diff']:.1e}",
        f"{row['coupling_seconds']:.1f}",
        f"{row['seconds']:.1f}",
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
        other,
    ]


def read_beside(path: Path) -> dict[str, str]:
    """What benchmarks/prune_networks.py wrote.

    Raises:
        BadInput: the file is not there, or none of its kind.
    """
    try:
        raw = json.loads(path.read_text())
        return {str(name): str(words) for name, words in raw.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(
            "the results to stand beside the table cannot be read",
            got=f"{type(error).__name__}: {error}",
            wanted="a JSON object: network -> words, as benchmarks/prune_networks.py writes it",
            where=path,
        ) from error
