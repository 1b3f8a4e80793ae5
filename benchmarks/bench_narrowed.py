"""Speed of narrowed networks against what the search predicts of them. Not collected by pytest.

    python benchmarks/bench_narrowed.py DATA WEIGHTS [--shares 0.5 0.33 0.25] [--step 8]

DATA is a folder that holds CIFAR-10, WEIGHTS one with `vgg16_half*.safetensors` and `resnet20*.safetensors`
(trained; ResNet-20 with `shortcut: B`). Each network is narrowed to a share of its multiply-adds (Taylor
scores, `search: {macs}`) and not tuned: speed does not depend on it. Predicted before a narrowed network is
built: the kernels of its layers, measured alone, and what the uncompressed network takes besides its own.
Measured: a run's processor time on one thread, batch 1, low percentile, both precisions.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tersor.export.timing.processor_time import processor_ms
from tersor.export.timing.providers import open_session
from tersor.machine import cpu_features
from tersor.models import network as networks
from tersor.models.cost import cost
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.data.load import Data, load_data
from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.structure import stage as structure
from tersor.pipeline.structure.forecast import Forecast, Precision, onnx_of
from tersor.pipeline.structure.staircase import Setting
from tersor.pipeline.weights.load_weights import read_weights

NETWORKS = {"vgg16_half": {}, "resnet20": {"shortcut": "B"}}
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SECONDS = 0.5


def trained(name: str, weights: Path, data: Data) -> Network:
    """A network with the first weights of its name."""
    net = networks.create(name, NETWORKS[name], data.input_shape, data.classes, data.preprocessing)
    return net.with_tensors(read_weights(min(weights.glob(f"{name}*.safetensors"))))


def narrowed(network: Network, images: Images, share: float, step: int, profiles: Path) -> Network:
    """Within a share of the multiply-adds."""
    settings = Structure.model_validate(
        {
            "stage": "structure",
            "linear": True,
            "reestimate_batch_norm": False,
            "search": {"macs": share, "step": step},
        }
    )
    counts = structure.counts_for(settings, network, profiles, lambda *_: None)
    return structure.prune_channels(network, settings, images, lambda *_: None, counts=counts)[0]


def measured_ms(nets: list[Network], precision: Precision, images: Images) -> list[float]:
    """Milliseconds of a run of one image, each."""
    image, calls = images.inputs[:1].numpy(), {}
    for number, net in enumerate(nets):
        session = open_session(onnx_of(net, precision), "cpu")
        feed = {session.get_inputs()[0].name: image}
        calls[str(number)] = lambda session=session, feed=feed: session.run(None, feed)
    return list(processor_ms(calls, SECONDS).values())


def main() -> None:
    """Print a row for each network and share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.33, 0.25])
    parser.add_argument("--step", type=int, default=8)
    options = parser.parse_args()
    began, worst = time.perf_counter(), 0.0
    data = load_data("cifar10", options.data)
    images = Images.of(data.train.first(2000), data.preprocessing)
    print(f"{cpu_features()}, one thread, batch 1, step {options.step}; ms, p: predicted")
    print("network     MACs asked  got    fp32 (p)               speed   int8 (p)               speed")
    with tempfile.TemporaryDirectory() as folder:
        profiles = Path(folder)
        for name in NETWORKS:
            start = trained(name, options.weights, data)
            nets = [start]
            nets += [narrowed(start, images, share, options.step, profiles) for share in options.shares]
            columns = []
            for precision in PRECISIONS:
                forecast = Forecast(start, profiles, Setting(int8=precision == "int8"))
                predicted = [forecast.latency_ms(net) for net in nets]
                columns.append(list(zip(measured_ms(nets, precision, images), predicted, strict=True)))
            fp32_ms = columns[0][0][0]
            for row, (share, net) in enumerate(zip([1.0, *options.shares], nets, strict=True)):
                got, cells = cost(net).macs / cost(start).macs, []
                for column in columns:
                    ms, forecast_ms = column[row]
                    error = forecast_ms / ms - 1
                    worst = max(worst, abs(error) if row else 0.0)
                    cells.append(f"{ms:.4f} ({forecast_ms:.4f}, {100 * error:+5.1f} %)  {fp32_ms / ms:5.2f}x")
                print(f"{name:12s}{share:10.2f}  {got:.3f}  {'  '.join(cells)}", flush=True)
    print(f"largest error of a prediction {100 * worst:.1f} %, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
