"""What a training's settings cost: time for a thousand images, plain and with each. Not run by pytest.

python benchmarks/bench_training.py [network ...]       (resnet20 vgg16_half mnist)
Random images: time does not look at them. The settings take turns in one process, on OMP_NUM_THREADS cores,
an epoch of 1,280 images each; the first epoch, with torch.compile's minute, is not counted. Prints the median
of the others, and the median of its ratios to `plain` in the same turn.
"""

import statistics
import sys

import numpy as np
import torch

from tersor.models import network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.data.load import Data, Split
from tersor.pipeline.recipe.training import Training
from tersor.pipeline.training.fit import _Run

NETWORKS = {"resnet20": (3, 32, 32), "vgg16_half": (3, 32, 32), "mnist": (1, 28, 28)}
SMALLER = {"smaller": {"pixels": 24, "share": 0.99}}
SETTINGS: dict[str, dict[str, object]] = {
    "plain": {},
    "compiled": {"compiled": True},
    "bf16": {"precision": "bf16"},
    "24 pixels": SMALLER,
    "24 pixels, compiled": {**SMALLER, "compiled": True},
}
IMAGES, TURNS = 1280, 5
CLASSES = tuple(str(digit) for digit in range(10))


def random_data(shape: tuple[int, int, int]) -> Data:
    """Images of noise: IMAGES to train on, ten to validate."""
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = random.integers(0, 256, (count, *shape), np.uint8)
        return Split(images, random.integers(0, 10, count))

    preprocessing = Preprocessing(mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    return Data("noise", CLASSES, preprocessing, split(IMAGES), split(10), split(10))


def main() -> None:
    """Train in turns, print."""
    for name in sys.argv[1:] or NETWORKS:
        shape = NETWORKS[name]
        data, runs, times = random_data(shape), {}, dict[str, list[float]]()
        for words, settings in SETTINGS.items():
            if name != "resnet20" and "smaller" in settings:
                continue  # the others' Linear layers are made for one size
            fresh = network.create(name, {}, shape, list(CLASSES), data.preprocessing)
            training = Training(epochs=1 + TURNS, channels_last=True, **settings)
            runs[words] = _Run(fresh, training, data, 0, "cpu", None)
        for _ in range(1 + TURNS):
            for words, run in runs.items():
                run.one_epoch(lambda *_: None)
                times.setdefault(words, []).append(run.seconds - sum(times.get(words, [])))
        print(f"{name}, {torch.get_num_threads()} threads")
        for words, spent in times.items():
            counted = spent[1:]
            ratio = statistics.median(a / b for a, b in zip(counted, times["plain"][1:], strict=True))
            thousand = statistics.median(counted) / IMAGES * 1000
            print(f"  {words:20} {thousand:6.2f} s for 1,000 images, {ratio:.2f} of plain", flush=True)


if __name__ == "__main__":
    main()
