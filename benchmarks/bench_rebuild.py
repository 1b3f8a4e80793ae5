"""Seconds and peak memory of pruning, rebuilding and proving one network. Not collected by pytest.

    python benchmarks/bench_rebuild.py resnet50 --pixels 224

Each row is a process of its own, for the peak of a process never falls. It is the whole process's resident
memory, with torch and NNI in it.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

RATIOS, PRUNERS = (0.3, 0.5), ("l1norm", "fpgm")
IMAGES = 8


def one(name: str, pixels: int, pruner: str, ratio: float) -> str:
    """Prune a network with random weights here; returns a line with seconds and peak memory."""
    import torch

    from tersor.pipeline.accuracy.evaluate import Images
    from tersor.pipeline.recipe.recipe import Structure
    from tersor.pipeline.reports.networks import random_network
    from tersor.pipeline.structure.stage import prune_channels

    baseline = random_network(name, pixels)
    inputs = np.random.default_rng(0).standard_normal((IMAGES, *baseline.input_shape)).astype(np.float32)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    settings = Structure(stage="structure", pruner=pruner, sparsity=ratio)
    images = Images(torch.from_numpy(inputs), torch.zeros(IMAGES, dtype=torch.int64))
    _, details = prune_channels(baseline, settings, images, lambda *_: None)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        f"{name} {pixels} px, {pruner} {ratio:.0%}: {seconds:.1f} s, peak {peak / 2**20:.2f} GiB "
        f"(before {before / 2**20:.2f}), masked - rebuilt {details['masked_max_abs_diff']:.1e}"
    )


def main() -> None:
    """Print a line for each pruner and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--only", nargs=2, metavar=("PRUNER", "RATIO"))
    options = parser.parse_args()
    if options.only:
        print(one(options.network, options.pixels, options.only[0], float(options.only[1])), flush=True)
        return
    for pruner in PRUNERS:
        for ratio in RATIOS:
            command = [sys.executable, __file__, options.network, "--pixels", str(options.pixels)]
            subprocess.run([*command, "--only", pruner, str(ratio)], check=True)


if __name__ == "__main__":
    main()
