"""The latency of narrower versions of a network: its layers by the staircase, all else by its own file.

The file is the one that ships: fp32 as exported, or int8 (QLinearConv on uint8 activations, weights int8 a
channel), so that pooling, sums, QuantizeLinear and DequantizeLinear at the ends and an input that the file
pads to more channels are counted as they run there.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tersor.export.forms.graph import read_model
from tersor.export.forms.int8 import to_int8
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.layer_timing import LayerShape, Rest, rest_of
from tersor.models.network import Network
from tersor.pipeline.structure.staircase import Setting, Staircase, layer_shapes

CALIBRATION_IMAGES = 16
MIB = 1 << 20

Precision = Literal["fp32", "int8"]
"""What a network runs in when it is timed."""


def onnx_of(network: Network, precision: Precision) -> bytes:
    """The network's file as it would ship; int8 ranges are those of noise, which no latency depends on.

    Raises:
        BadInput: it cannot be exported or quantized.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        export_onnx(network, path, fold_batch_norm=precision == "int8")
        if precision == "int8":
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(CALIBRATION_IMAGES, *network.input_shape, generator=generator)
            to_int8(path, path, noise.numpy())
        return path.read_bytes()


class Forecast:
    """Predicts the latency of narrower versions of a network.

    Args:
        start: the network.
        profiles: folder of measured layer latencies.
        setting: threads, batch and precision.
        progress: told the fraction done of each measurement of layers.
    """

    def __init__(
        self,
        start: Network,
        profiles: Path,
        setting: Setting,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.start, self.profiles, self.setting, self.progress = start, profiles, setting, progress
        self.stairs = Staircase(profiles, setting)

    @cached_property
    def rest(self) -> Rest:
        """What a run of the start takes besides its layers; nothing where processor time says little."""
        return rest_of(self._model, batch=self.setting.batch) if self.setting.threads == 1 else Rest(0.0, 0.0)

    @cached_property
    def _model(self) -> bytes:
        return onnx_of(self.start, "int8" if self.setting.int8 else "fp32")

    @cached_property
    def _filed_channels(self) -> int:
        """Channels of the image where the first layer reads it; fp32 files leave them as they are."""
        return _image_channels(self._model) if self.setting.int8 else self.start.input_shape[0]

    def prices(self, shapes: Iterable[LayerShape]) -> Mapping[LayerShape, float]:
        """Milliseconds inside the kernel of each shape, its weights near."""
        return self._priced(self.stairs, shapes)

    def latency_ms(self, network: Network) -> float:
        """Of a narrower version; its layers find their weights as far away as they will lie in it."""
        layers = _layers(network)
        weight_bytes = sum(shape.weights for shape, _ in layers) * (1 if self.setting.int8 else 4)
        stairs = Staircase(self.profiles, replace(self.setting, beside_mib=_rounded_mib(weight_bytes)))
        prices = self._priced(stairs, [shape for shape, _ in layers])
        kernels = sum(prices[shape] * calls for shape, calls in layers)
        return kernels + self.rest.at(_activations(layers) / _activations(_layers(self.start)))

    def _priced(self, stairs: Staircase, shapes: Iterable[LayerShape]) -> Mapping[LayerShape, float]:
        filed = {shape: self._as_filed(shape) for shape in shapes}
        times = stairs.measure(filed.values(), self.progress)
        return {shape: times[kept] for shape, kept in filed.items()}

    def _as_filed(self, shape: LayerShape) -> LayerShape:
        """A layer that reads the image has the channels that the file gives the image."""
        of_image = shape.inputs == self.start.input_shape[0] and shape.groups == 1
        return replace(shape, inputs=self._filed_channels) if of_image else shape


def _layers(network: Network) -> list[tuple[LayerShape, int]]:
    return list(layer_shapes(network.module(), network.input_shape).values())


def _activations(layers: Iterable[tuple[LayerShape, int]]) -> float:
    """Output elements of all layers, of one image."""
    return sum(shape.activations * calls for shape, calls in layers)


def _rounded_mib(size: int) -> int:
    """To a power of two, so that networks of about one size share their measurements; 0 below half a MiB."""
    return 0 if size < MIB / 2 else 1 << max(0, round(np.log2(size / MIB)))


def _image_channels(model: bytes) -> int:
    """Input channels of the file's first layer."""
    graph = read_model(model).graph
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    first = next(node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    weight = first.input[1]
    if weight not in dims:  # of an int8 file: DequantizeLinear of the integers
        weight = made_by[weight].input[0]
    return int(dims[weight][1])
