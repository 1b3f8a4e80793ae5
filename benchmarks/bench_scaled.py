"""What the packed format's form "scaled" saves: bytes with it and without. Not run by pytest.

python benchmarks/bench_scaled.py
ResNet-20 with random weights, rounded to b bits with a scale for each output channel, packed with coder auto.
"""

import tempfile
from pathlib import Path
from unittest import mock

from tersor.export.codec import form_choice
from tersor.export.codec.pack import pack
from tersor.export.forms.to_onnx import export_onnx
from tersor.pipeline.recipe.recipe import Linear
from tersor.pipeline.reports.networks import random_network
from tersor.pipeline.weights.linear import quantize_weights


def main() -> None:
    """Round, export, pack twice, print."""
    network = random_network("resnet20 B", 32)
    with tempfile.TemporaryDirectory() as folder:
        source, packed = Path(folder) / "rounded.onnx", Path(folder) / "rounded.tsr"
        for bits in (2, 3, 4, 8):
            rounded, _ = quantize_weights(network, Linear(stage="linear", bits=bits))
            export_onnx(rounded, source)
            pack(source, packed, coder="auto")
            size = packed.stat().st_size
            with mock.patch.object(form_choice, "_scaled", return_value=None):
                pack(source, packed, coder="auto")
            print(f"{bits} bits: {size:9,} bytes, {packed.stat().st_size:9,} without the form", flush=True)


if __name__ == "__main__":
    main()
