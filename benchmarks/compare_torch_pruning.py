"""Accuracy at equal measured latency, against Torch-Pruning. Not collected by pytest.

    uv pip install --no-deps --target other torch-pruning==1.6.1
    PYTHONPATH=other python benchmarks/compare_torch_pruning.py RUN/01-train --recipe RECIPE --data DATA

Every way prunes the same trained network to the same latency (ONNX Runtime fp32, one thread, batch 1, in
turn with the baseline) and is tuned with the same settings; Torch-Pruning's ratio is found by bisection on
the clock, with its channels rounded to 8. Both have L2 norms and Taylor scores (gradients of training
images). At the end all networks are timed in one interleaved run.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.benchmark import benchmark
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate, reestimate_batch_norm
from tersor.pipeline.data.load import load_data
from tersor.pipeline.recipe.read import read_recipe
from tersor.pipeline.recipe.recipe import Structure, Tune
from tersor.pipeline.structure import stage as structure
from tersor.pipeline.structure.budget import Clock
from tersor.pipeline.training.fit import fit

Gradients = dict[str, torch.Tensor]
ROUND_TO = 8
BISECTIONS = 9


def gradients(network: Network, images: Images) -> Gradients:
    """Summed over ten batches, by parameter: Torch-Pruning's Taylor scores, as its examples make them."""
    module = network.module().train(False)
    for batch in range(10):
        part = slice(128 * batch, 128 * (batch + 1))
        functional.cross_entropy(module(images.inputs[part]), images.labels[part]).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def theirs(network: Network, how: tuple[Any, Gradients], ratio: float, everywhere: bool) -> Network:
    """Torch-Pruning's network at a ratio; the classifier's outputs are left alone, as its guide says."""
    import torch_pruning as tp

    importance, slopes = how
    module = network.module().train(False)
    for name, parameter in module.named_parameters():
        parameter.grad = slopes[name].clone() if name in slopes else None
    outputs = len(network.classes)
    last = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    pruner = tp.pruner.BasePruner(
        module,
        torch.zeros(1, *network.input_shape),
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=everywhere,
        ignored_layers=last,
        round_to=ROUND_TO,
        max_pruning_ratio=0.9,
    )
    pruner.step()
    return network.with_module(module, forms={})


def theirs_at(
    network: Network, how: tuple[Any, Gradients], everywhere: bool, clock: Clock, allowed_ms: float
) -> Network:
    """Torch-Pruning's least pruned network that takes at most `allowed_ms`."""
    low, high, best = 0.0, 0.95, None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        candidate = theirs(network, how, middle, everywhere)
        if clock.time(candidate) <= allowed_ms:
            high, best = middle, candidate
        else:
            low = middle
    assert best is not None, "no ratio is fast enough"
    return best


def ours_at(network: Network, images: Images, speedup: float, pruner: str, profiles: Path) -> Network:
    """The width search's network."""
    settings = Structure.model_validate(
        {
            "stage": "structure",
            "pruner": pruner,
            "linear": True,
            "search": {"speedup": speedup, "step": 8, "rounds": 5},
            "max_cut": 0.9,
        }
    )
    counts = structure.counts_for(settings, network, profiles, lambda *_: None)
    pruned, details = structure.prune_channels(network, settings, images, lambda *_: None, counts=counts)
    print(json.dumps(details["search"]), flush=True)
    return pruned


def main() -> None:
    """Print accuracy and latency of every way at every speed-up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--speedups", type=float, nargs="+", default=[2.0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("torch-pruning.json"))
    options = parser.parse_args()
    import torch_pruning as tp

    recipe = read_recipe(options.recipe, (), options.data)
    torch.set_num_threads(recipe.threads)
    data = load_data(**recipe.data.model_dump(), seed=recipe.seed)
    network = networks.load(options.stage / "network.safetensors")
    first = Images.of(data.train.first(10_000), data.preprocessing)
    tune = Tune.model_validate(
        {
            "stage": "tune",
            "epochs": options.epochs,
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.03,
            "weight_decay": 5e-4,
            "channels_last": True,
            "augment": {"shift_pixels": 4, "flip": True},
        }
    )
    clock, ways, rows = Clock(network, 1, 1), {"baseline": network}, []
    clock.time(network)
    profiles = options.out.with_suffix(".profiles")
    scores = {
        "l2norm": (tp.importance.GroupMagnitudeImportance(p=2), {}),
        "taylor": (tp.importance.GroupTaylorImportance(), gradients(network, first)),
    }
    for speedup in options.speedups:
        allowed = clock.baseline_ms / speedup
        candidates = {
            f"Torch-Pruning, {name}, {'global' if everywhere else 'uniform'}, {speedup:g}x": theirs_at(
                network, how, everywhere, clock, allowed
            )
            for name, how in scores.items()
            for everywhere in (False, True)
        }
        candidates |= {
            f"tersor, {p}, {speedup:g}x": ours_at(network, first, speedup, p, profiles)
            for p in ("l2norm", "taylor")
        }
        for name, pruned in candidates.items():
            fresh = pruned.with_module(reestimate_batch_norm(pruned.module(), first.inputs))
            ways[name], _ = fit(fresh, tune, data, seed=1, teacher=None)
            print(name, "tuned", flush=True)
    test = Images.of(data.test, data.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(ways)}
        for name, net in ways.items():
            export_onnx(net, files[name])
        timed = benchmark(files, "cpu", baseline="baseline", batches=(1,), seconds_per_model=2.0)
    for row in timed:
        accuracy = evaluate(ways[row.file].module(), test).accuracy_fraction
        rows.append(
            {
                "way": row.file,
                "test_accuracy_fraction": accuracy,
                "speedup": row.speedup,
                "p50_ms": row.p50_ms,
            }
        )
        print(f"{row.file:36s} {100 * accuracy:6.2f} %  {row.speedup:5.2f}x  {row.p50_ms:.4f} ms", flush=True)
    options.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
