"""How fast are the ONNX forms? Weights are random: speed does not look at them. Not run by pytest.

python benchmarks/bench_forms.py [network ...]      ('resnet20 A' 'resnet20 B' vgg16_half resnet18)
One thread, batch 1; fp32, int8 QDQ, int8 with the first layer in float and 4-bit low-bit are interleaved
in one process; a line for each network.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from tersor.export.forms.int8 import to_int8
from tersor.export.forms.lowbit import to_lowbit
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.benchmark import benchmark
from tersor.pipeline.recipe.recipe import Linear
from tersor.pipeline.reports.networks import random_network
from tersor.pipeline.weights.linear import quantize_weights

NETWORKS = {"resnet20 A": 32, "resnet20 B": 32, "vgg16_half": 32, "resnet18": 224}
SECONDS = 5.0


def main() -> None:
    """Export, quantize, time, print."""
    for name in sys.argv[1:] or NETWORKS:
        network, pixels = random_network(name, NETWORKS[name]), NETWORKS[name]
        images = np.random.default_rng(0).standard_normal((32, 3, pixels, pixels)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            files = {
                form: Path(folder) / f"{form}.onnx" for form in ("fp32", "folded", "int8", "first", "lowbit")
            }
            export_onnx(network, files["fp32"])
            export_onnx(network, files["folded"], fold_batch_norm=True)
            folded = files.pop("folded")
            layers = to_int8(folded, files["int8"], images)["quantized"]
            to_int8(folded, files["first"], images, keep_float=layers[:1])
            rounded, _ = quantize_weights(network, Linear(stage="linear", bits=4, per_channel=False))
            four = Path(folder) / "rounded.onnx"
            export_onnx(rounded, four)
            to_lowbit(four, files["lowbit"], max_bits=4)
            rows = benchmark(
                files, "cpu", baseline="fp32", batches=(1,), seconds_per_model=SECONDS, inputs=images
            )
        print(f"{name:11}", end="")
        for row in rows:
            interval = f"[{row.speedup_low:.2f}, {row.speedup_high:.2f}]"
            print(f"  {row.file} {row.p50_ms:.3f} ms {row.speedup:.2f}x {interval}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
