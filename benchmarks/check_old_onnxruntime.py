"""Do low-bit files load in an old ONNX Runtime, with the same outputs? Not collected by pytest.

Old wheels want numpy below 2 and therefore an environment of their own:
    uv venv old --python 3.11 && uv pip install --python old/bin/python onnxruntime==1.17.3 'numpy<2'
    python benchmarks/check_old_onnxruntime.py old/bin/python

For b = 1 to 8, one scale for each layer and for each channel: a fresh ResNet-20 is written, its weights on
such grids, and run there. A line says the weights' bytes as a share of fp32, and the largest difference from
torch. Exit code 1 when a file does not load or a difference is above 1e-5.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

OTHER = """
import sys, numpy, onnxruntime
data = dict(numpy.load(sys.argv[1]))
files = sys.argv[3:]
out = {"version": onnxruntime.__version__}
for file in files:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    out[file] = session.run(None, {"input": data["inputs"]})[0]
numpy.savez(sys.argv[2], **out)
"""


def make_files(folder: Path, inputs: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Write all files; for each the outputs of torch and the share of fp32 bytes that its weights take."""
    import torch

    from tersor.export.forms.lowbit import to_lowbit
    from tersor.export.forms.to_onnx import export_onnx
    from tersor.models import network as networks
    from tersor.models.preprocessing import Preprocessing
    from tersor.pipeline.recipe.recipe import Linear
    from tersor.pipeline.shipping.files import scales_by_channel
    from tersor.pipeline.weights.linear import quantize_weights

    torch.manual_seed(0)
    classes = tuple("0123456789")
    fresh = networks.create("resnet20", {}, (3, 32, 32), classes, Preprocessing(255.0, (0.5,), (0.25,)))
    files = {}
    for bits in range(1, 9):
        for per_channel in (False, True):
            linear = Linear(stage="linear", bits=bits, per_channel=per_channel, scale="mse")
            network, _ = quantize_weights(fresh, linear)
            dense, packed = (
                folder / "dense.onnx",
                folder / f"w{bits}-{'channel' if per_channel else 'layer'}.onnx",
            )
            export_onnx(network, dense)
            report = to_lowbit(dense, packed, scales=scales_by_channel(network))
            with torch.no_grad():
                expected = network.module()(torch.from_numpy(inputs)).numpy()
            share = sum(t.bytes_after for t in report.tensors) / sum(t.bytes_before for t in report.tensors)
            files[str(packed)] = (expected, share)
    return files


def main() -> None:
    """Print a line for every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the other environment's python")
    asked = parser.parse_args()
    inputs = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder, inputs)
        np.savez(folder / "in.npz", inputs=inputs)
        there = [str(asked.other), "-c", OTHER, str(folder / "in.npz"), str(folder / "out.npz"), *files]
        subprocess.run(there, check=True)
        outputs = dict(np.load(folder / "out.npz"))
    print(f"onnxruntime {outputs['version']}")
    worst = 0.0
    for file, (expected, share) in files.items():
        difference = float(np.abs(outputs[file] - expected).max())
        worst = max(worst, difference)
        bits = int(Path(file).stem[1])
        allowed = bits / 32 + 0.03
        name = f"{Path(file).stem:12}"
        print(f"{name} weights {share:.4f} of fp32 (limit {allowed:.4f})  difference {difference:.1e}")
        if share > allowed:
            worst = float("inf")
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()
