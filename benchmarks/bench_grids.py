"""How long do scales take? ResNet-18, 11.7 M weights, a scale for each channel, one core. Not run by pytest.

python benchmarks/bench_grids.py [bits]
"""

import sys
import time

import torch

from tersor.pipeline.weights.grid_scales import Rule
from tersor.pipeline.weights.linear import round_to_grid


def main() -> None:
    """A line for each rule: seconds by the clock and of the processor, and the root mean square error."""
    import torchvision

    torch.set_num_threads(1)
    torch.manual_seed(0)
    bits = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    layers = [layer for layer in torchvision.models.resnet18().modules() if isinstance(layer, kinds)]
    weights = [layer.weight.detach() for layer in layers]
    count = sum(weight.numel() for weight in weights)
    print(f"{count:,} weights, {bits} bits")
    rules: tuple[Rule, ...] = ("max", "percentile", "mse")
    for rule in rules:
        clock, processor = time.perf_counter(), time.process_time()
        rounded = [round_to_grid(weight, bits, axis=0, rule=rule)[0] for weight in weights]
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        error = sum(float((a - b).double().square().sum()) for a, b in zip(weights, rounded))
        print(f"{rule:11}{clock:6.2f} s by the clock {processor:6.2f} s of the processor", end="")
        print(f"   rms error {(error / count) ** 0.5:.6f}")


if __name__ == "__main__":
    main()
