"""Accuracy at equal measured latency, against Torch-Pruning. Not collected by pytest.

    uv pip install --no-deps --target other torch-pruning==1.6.1
    PYTHONPATH=other python benchmarks/compare_torch_pruning.py NETWORK.safetensors --data DATA

Every way prunes one trained CIFAR-10 network to the same latency (ONNX Runtime fp32, one thread, batch 1,
in turn with the baseline) and is tuned with the same settings; Torch-Pruning's ratio is found by bisection on
the clock, with its channels rounded to 8. The best way of each side is chosen on the validation split after a
few epochs, and then tuned anew from its narrowed network with several seeds. At the end both are timed in one
interleaved run. What is trained lies in a folder; the same command goes on from there.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
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
from tersor.pipeline.data.load import Data, load_data
from tersor.pipeline.recipe.recipe import Structure, Tune
from tersor.pipeline.structure import stage as structure
from tersor.pipeline.structure.budget import Clock
from tersor.pipeline.training.fit import fit

Gradients = dict[str, torch.Tensor]
ROUND_TO = 8
BISECTIONS = 9
TUNE = {
    "stage": "tune",
    "optimizer": "sgd",
    "learning_rate": 0.03,
    "weight_decay": 5e-4,
    "channels_last": True,
    "augment": {"shift_pixels": 4, "flip": True},
}


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


def ours_at(
    network: Network, images: Images, speedup: float, pruner: str, profiles: Path, step: int
) -> Network:
    """The width search's network."""
    settings = Structure.model_validate(
        {
            "stage": "structure",
            "pruner": pruner,
            "linear": True,
            "search": {"speedup": speedup, "step": step, "rounds": 5},
            "max_cut": 0.9,
        }
    )
    counts = structure.counts_for(settings, network, profiles, lambda *_: None)
    pruned, details = structure.prune_channels(network, settings, images, lambda *_: None, counts=counts)
    print(json.dumps(details["search"]), flush=True)
    return pruned


class Trials:
    """Tuned networks of every way, kept in a folder: what is there already is not trained again."""

    def __init__(self, folder: Path, data: Data, batch_size: int) -> None:
        self.folder, self.data, self.batch_size = folder, data, batch_size
        self.some = Images.of(data.train.first(10_000), data.preprocessing)
        folder.mkdir(parents=True, exist_ok=True)

    def pruned(self, name: str, make: Callable[[], Network]) -> Network:
        """The way's narrowed network, with new BatchNorm statistics."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            made = make()
            made.with_module(reestimate_batch_norm(made.module(), self.some.inputs)).save(path)
        return networks.load(path)

    def tuned(self, name: str, start: Network, epochs: int, seed: int) -> Network:
        """It after so many epochs; the schedule ends there."""
        path = self.folder / f"{name}, {epochs} epochs, seed {seed}.safetensors"
        if not path.exists():
            tune = Tune.model_validate(TUNE | {"epochs": epochs, "batch_size": self.batch_size})
            fit(start, tune, self.data, seed=seed, teacher=None)[0].save(path)
            print(path.stem, flush=True)
        return networks.load(path)


def main() -> None:
    """Print accuracy and latency of the best way of each side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--choose-after", type=int, default=3, help="epochs before the best are chosen")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("torch-pruning"), help="folder of what was trained")
    options = parser.parse_args()
    import torch_pruning as tp

    torch.set_num_threads(options.threads)
    data = load_data("cifar10", options.data, validation_fraction=0.1)
    network = networks.load(options.network)
    trials = Trials(options.out, data, 128)
    clock = Clock(network, 1, 1)
    clock.time(network)
    allowed = clock.baseline_ms / options.speedup
    scores = {
        "l2norm": (tp.importance.GroupMagnitudeImportance(p=2), {}),
        "taylor": (tp.importance.GroupTaylorImportance(), gradients(network, trials.some)),
    }
    ways: dict[str, dict[str, Callable[[], Network]]] = {
        "Torch-Pruning": {
            f"{name}, {'global' if everywhere else 'uniform'}": partial(
                theirs_at, network, how, everywhere, clock, allowed
            )
            for name, how in scores.items()
            for everywhere in (False, True)
        },
        "tersor": {
            f"taylor, steps of {step}": partial(
                ours_at, network, trials.some, options.speedup, "taylor", options.out / "profiles", step
            )
            for step in (8, 16)
        },
    }
    validation = Images.of(data.validation, data.preprocessing)
    final: dict[str, list[Network]] = {}
    for side, makers in ways.items():
        watched = {}
        for name, make in makers.items():
            start = trials.pruned(f"{side}, {name}", make)
            early = trials.tuned(f"{side}, {name}", start, options.choose_after, 0)
            watched[name] = evaluate(early.module(), validation).accuracy_fraction
            print(f"{side}, {name}: {100 * watched[name]:.2f} % on validation", flush=True)
        best = f"{side}, {max(watched, key=watched.__getitem__)}"
        start = networks.load(options.out / f"{best}.safetensors")
        final[best] = [trials.tuned(best, start, options.epochs, seed) for seed in range(options.seeds)]
    test = Images.of(data.test, data.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{n}.onnx" for n, name in enumerate(["baseline", *final])}
        for net, path in zip([network, *(nets[0] for nets in final.values())], files.values(), strict=True):
            export_onnx(net, path)
        timed = benchmark(files, "cpu", baseline="baseline", batches=(1,), seconds_per_model=2.0)
    rows = []
    for row in timed:
        nets = final.get(row.file, [network])
        accuracies = [evaluate(net.module(), test).accuracy_fraction for net in nets]
        rows.append({"way": row.file, "test_accuracy_fraction": accuracies, "speedup": row.speedup})
        spread = f"({', '.join(f'{100 * a:.2f}' for a in accuracies)})"
        print(f"{row.file:36s} {100 * statistics.mean(accuracies):6.2f} % {spread}  {row.speedup:5.2f}x")
    (options.out / "rows.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
