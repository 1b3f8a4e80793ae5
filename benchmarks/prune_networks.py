"""Torch-Pruning on the networks of `tersor table networks`: does it prune, does the result run.

    uv pip install --no-deps --target other torch-pruning==1.6.1
    PYTHONPATH=other python benchmarks/prune_networks.py --out benchmarks/torch-pruning-networks.json
    tersor table networks --beside benchmarks/torch-pruning-networks.json

Half of the channels of every layer by group L2 norms, the classifier's outputs left alone, as its guide says.
Each network has a process of its own and `--seconds`. Whether the result is right is not looked at.
"""

import argparse
import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from tersor.pipeline.reports.networks import CLASSES, NETWORKS, random_network


def theirs(name: str, pixels: int) -> str:
    """What became of a network, in a few words."""
    import torch_pruning as tp

    network = random_network(name, pixels)
    module = network.module().eval()
    images = torch.randn(2, *network.input_shape)
    last = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    last += [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.out_channels == CLASSES]
    before = sum(p.numel() for p in module.parameters())
    try:
        pruner = tp.pruner.BasePruner(
            module,
            images,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=last,
        )
        pruner.step()
    except Exception as error:
        return f"crashes: {type(error).__name__}"
    left = sum(p.numel() for p in module.parameters()) / before
    try:
        with torch.no_grad():
            module(images)
    except Exception as error:
        return f"does not run: {type(error).__name__}"
    return f"runs, {left:.0%} of the parameters left"


def _child(name: str, pixels: int, answers: Connection) -> None:
    torch.set_num_threads(1)
    answers.send(theirs(name, pixels))


def apart(name: str, pixels: int, seconds: float) -> str:
    """The same in a process of its own, with a limit."""
    context = multiprocessing.get_context("fork")
    ours, answers = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(name, pixels, answers))
    child.start()
    answers.close()
    try:
        return ours.recv() if ours.poll(seconds) else f"not done after {seconds:g} s"
    except EOFError:
        return "crashes: the process died"
    finally:
        child.kill()
        child.join()


def main() -> None:
    """Write what became of every network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--out", type=Path, default=Path("torch-pruning-networks.json"))
    options = parser.parse_args()
    found = {}
    for name in options.names:
        found[name] = apart(name, options.pixels, options.seconds)
        print(f"{name}: {found[name]}", flush=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
