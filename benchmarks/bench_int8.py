"""int8 files of trained networks: which operators went where, accuracy, speed. Not collected by pytest.

    python benchmarks/bench_int8.py DATA WEIGHTS [--batches 1 32] [--openvino] [--force]

DATA is a folder that holds CIFAR-10, WEIGHTS one with `vgg16_half*.safetensors` and `resnet20*.safetensors`
(trained; ResNet-20 with `shortcut: B`). `before`: layers with weights, plain first layer, means as they are;
`now`: what `deploy` chooses. Speed is of the fp32 file, one thread, alone; accuracy on the test split.
With --openvino its int8 of the same file, too (the extra `peers`).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench_narrowed import NETWORKS, trained

from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import parity
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.latency import ratio_told
from tersor.export.timing.providers import open_session
from tersor.machine import cpu_features
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.data.load import Data, load_data
from tersor.pipeline.lessons.scenarios_run import run_peers
from tersor.pipeline.shipping.int8_choice import (
    METHODS,
    Judge,
    candidates_of,
    floor_of,
    layouts_to_try,
    make_int8,
    sets_to_try,
)

MOST_DROP = 0.005


def chosen(network: Network, folded: Path, path: Path, data: Data, *, before: bool) -> dict[str, Any]:
    """Write the int8 file as it was made before, or as it is now."""
    judge = Judge(Images.of(data.validation.first(2000), data.preprocessing), 2)
    images = data.preprocessing.apply(data.train.images[:256])
    return make_int8(
        folded,
        path,
        images,
        judge,
        candidates=candidates_of(network, images, METHODS),
        floor=floor_of(judge(folded)[0], judge(folded)[0], MOST_DROP),
        operators=sets_to_try("weighted" if before else "auto"),
        layouts=layouts_to_try("plain" if before else "auto"),
    )


def accuracy(path: Path, data: Data) -> float:
    """On the test split."""
    images = data.preprocessing.apply(data.test.images)
    return parity.accuracy(open_session(path, "cpu", threads=2), images, data.test.labels)


def main() -> None:
    """Print a line for each network, file and batch size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--force", action="store_true")
    asked = parser.parse_args()
    data = load_data("cifar10", asked.data)
    print(f"{cpu_features()}, one thread")
    for name in NETWORKS:
        network = trained(name, asked.weights, data)
        with tempfile.TemporaryDirectory() as folder:
            files = {kind: Path(folder) / f"{kind}.onnx" for kind in ("fp32", "before", "now", "folded")}
            export_onnx(network, files["fp32"])
            folded = files.pop("folded")
            export_onnx(network, folded, fold_batch_norm=True)
            infos = {
                kind: chosen(network, folded, files[kind], data, before=kind == "before")
                for kind in ("before", "now")
            }
            for kind, info in infos.items():
                print(f"{name} {kind}: {info['operators']}, {info['layout']} first layer, {info['method']}")
                for where in ("integer", "float"):
                    print(f"  {where}: {dict(info[f'{where}_operators'])}")
            for kind, path in files.items():
                print(f"{name} {kind}: {path.stat().st_size:,} bytes, {100 * accuracy(path, data):.2f} %")
            timed = benchmark(
                files, "cpu", baseline="fp32", batches=asked.batches, seconds_per_model=2.0, force=asked.force
            )
            for row in timed.needed():
                ratio = ratio_told(row.speedup_low, row.speedup, row.speedup_high)
                print(f"{name} {row.file}, batch {row.batch}: {row.p50_ms:.4f} ms, {ratio}", flush=True)
            for batch in asked.batches if asked.openvino else ():
                for peer in run_peers([files["now"]], ["openvino"], batches=[batch], force=asked.force):
                    print(
                        f"{name} int8 in {peer.peer}, batch {batch}: {peer.latency.p50_ms:.4f} ms", flush=True
                    )


if __name__ == "__main__":
    main()
