"""How much faster sensitivity is with reused activations than from scratch. Not collected by pytest.

ResNet-20, 20 layers x 9 levels, one thread, random images (times do not depend on them). Batch by batch both
ways in turn, and the numbers compared: python benchmarks/bench_sensitivity.py [images]
"""

import sys
import time

import torch

from tersor.models import network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.weights.sensitivity import sensitivity

LEVELS = [0.1 * i for i in range(1, 10)]
BATCH = 500


def main(count: int) -> None:
    """Print seconds by the clock and of the processor, and both ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    resnet = network.create("resnet20", {}, (3, 32, 32), [str(i) for i in range(10)], Preprocessing())
    clock, cpu = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for done in range(0, count, BATCH):
        images = Images(torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,)))
        rows = {}
        for reuse in (True, False) if done % (2 * BATCH) else (False, True):
            began, cpu_began = time.perf_counter(), time.process_time()
            rows[reuse] = sensitivity(resnet, images, method="sparsity", levels=LEVELS, reuse=reuse)
            clock[reuse] += time.perf_counter() - began
            cpu[reuse] += time.process_time() - cpu_began
        assert rows[True] == rows[False], "reuse changes the numbers"
        for name, spent in (("clock", clock), ("processor", cpu)):
            print(
                f"{done + BATCH} images, {name}: scratch {spent[False]:.1f} s, reuse {spent[True]:.1f} s, "
                f"{spent[False] / spent[True]:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
