"""Latency against width: what each layer of a network takes at each width, measured on this machine.

ONNX Runtime's convolutions work in blocks of channels, so latency climbs in steps. The measurements are kept
in a file for each machine, number of threads, batch and precision, and only what is missing is timed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor.export.timing.layer_timing import LayerShape, time_layers
from tersor.files import read_json, write_json
from tersor.machine import cpu_features
from tersor.models.network import Network

TIMED_AS = "faster half, passes that agree"
"""How `time_layers` works, in the file's name: times taken otherwise do not mix with these."""
SAME_STEP = 1.04
"""Latencies within this ratio are on one step; measuring twice differs by about as much."""


@dataclass(frozen=True)
class Setting:
    """How layers are timed: threads, images a run, int8 or fp32, MiB of other weights read in between."""

    threads: int = 1
    batch: int = 1
    int8: bool = False
    beside_mib: int = 0


class Staircase:
    """Measured latencies of layer shapes, in a file that grows.

    Args:
        folder: where the files of all machines lie.
        setting: how to time.

    doubtful: shapes of which no two passes agreed, the machine being too busy: their times are not kept.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        import onnxruntime

        self.setting = setting
        self.machine = {**cpu_features(), "onnxruntime": onnxruntime.__version__, "timed": TIMED_AS}
        self.machine |= vars(setting)
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{digest}.json"
        self.known = self._read()
        self.doubtful: dict[LayerShape, float] = {}

    def measure(
        self, shapes: Iterable[LayerShape], progress: Callable[[float], None] = lambda _: None
    ) -> Mapping[LayerShape, float]:
        """Latency of each shape in milliseconds; those not known yet are timed and kept."""
        distinct = set(shapes)
        missing = [shape for shape in distinct - set(self.doubtful) if shape.key() not in self.known]
        if missing:
            timed = time_layers(missing, **vars(self.setting), progress=progress)
            self.doubtful |= {shape: time.ms for shape, time in timed.items() if not time.trusted}
            sure = {shape.key(): time.ms for shape, time in timed.items() if time.trusted}
            self.known = sure | self.known | self._read()  # what another process has kept stays as it is
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"machine": self.machine, "latency_ms": self.known})
        return {s: self.known[s.key()] if s.key() in self.known else self.doubtful[s] for s in distinct}

    def _read(self) -> dict[str, float]:
        if not self.path.is_file():
            return {}
        todo = "Remove it, and profile again"
        return read_json(self.path, "a profile of layer latencies", todo)["latency_ms"]


def layer_shapes(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, tuple[LayerShape, int]]:
    """Conv and Linear layers of a network: name -> (shape, how often it is called), in the order of calls."""
    shapes: dict[str, tuple[LayerShape, int]] = {}

    def note(name: str, layer: Any, image: torch.Tensor) -> None:
        """Record one call."""
        if isinstance(layer, nn.Linear):
            shape = LayerShape(layer.in_features, layer.out_features, linear=True)
        else:
            padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
            shape = LayerShape(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                padding,
                layer.dilation,
                layer.groups,
                (int(image.shape[2]), int(image.shape[3])),
            )
        shapes[name] = shape, shapes.get(name, (shape, 0))[1] + 1

    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: note(name, layer, inputs[0]))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def with_widths(shape: LayerShape, inputs: int, outputs: int) -> LayerShape:
    """The shape at other widths; a grouped convolution keeps the channels of a group, not their number."""
    groups = shape.groups if shape.groups == 1 else inputs // (shape.inputs // shape.groups)
    return replace(shape, inputs=inputs, outputs=outputs, groups=groups)


def steps(widths: Sequence[int], latencies_ms: Sequence[float]) -> list[int]:
    """The widths worth having: no wider one takes as long or less (within 4 %), ascending.

    Args:
        widths: ascending.
        latencies_ms: of the same layer at these widths.
    """
    step_widths, least = [], float("inf")
    for width, latency in zip(reversed(widths), reversed(latencies_ms), strict=True):
        if latency * SAME_STEP < least:
            step_widths.append(width)
            least = latency
    return step_widths[::-1]


def sweep(
    network: Network, stairs: Staircase, step: int, progress: Callable[[float], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Each distinct layer of a network at widths from `step` to twice its own, inputs as they are.

    Returns:
        One row a layer: layers (names of the same shape), shape, widths, latency_ms, steps, macs.
    """
    names: dict[LayerShape, list[str]] = {}
    for name, (shape, _) in layer_shapes(network.module(), network.input_shape).items():
        if shape.groups == 1:
            names.setdefault(shape, []).append(name)
    plans = {shape: widths_of(shape.outputs, step) for shape in names}
    latency = stairs.measure(
        (with_widths(shape, shape.inputs, w) for shape, widths in plans.items() for w in widths), progress
    )
    rows = []
    for shape, widths in plans.items():
        times = [latency[with_widths(shape, shape.inputs, w)] for w in widths]
        rows.append(
            {
                "layers": names[shape],
                "shape": vars(shape),
                "macs": shape.macs,
                "widths": widths,
                "latency_ms": times,
                "steps": steps(widths, times),
            }
        )
    return rows


def widths_of(width: int, step: int) -> list[int]:
    """Multiples of `step` up to twice `width`, and `width` itself, ascending."""
    return sorted({*range(step, 2 * width + 1, step), width})
