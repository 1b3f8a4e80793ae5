"""How long ONNX Runtime takes for one layer of a given shape: the steps of the staircase.

Each shape becomes a one-layer ONNX model. ONNX Runtime's own profiler tells the time inside the layer's
kernel, so that copies and the reordering of the input, which a layer inside a network does not need, are
left out.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.errors import Unavailable
from tersor.export.timing.providers import open_session

OPSET, IR_VERSION = 18, 8
WARM_UP_RUNS, FEWEST_RUNS, MOST_RUNS = 3, 12, 200
WANTED_MS = 2.0
"""Runs of one shape in one pass fill this time, within the bounds above."""
PASSES = 2
"""All shapes are timed this often, in turn; the faster pass counts: whatever disturbs only adds time."""


@dataclass(frozen=True, order=True)
class LayerShape:
    """A convolution (with the ReLU that follows) or linear layer, and the image it sees.

    kernel, stride, padding, dilation: (height, width); (1, 1), (1, 1), (0, 0), (1, 1) for linear layers.
    size: height and width of the input; (1, 1) for linear layers.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int] = (1, 1)
    linear: bool = False

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.inputs // self.groups * self.outputs * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        height, width = (
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return self.weights * height * width

    def key(self) -> str:
        """A short unique name, for files."""
        return "-".join(
            str(v) for part in astuple(self) for v in (part if isinstance(part, tuple) else [part])
        )


def time_layers(
    shapes: Iterable[LayerShape],
    *,
    threads: int = 1,
    batch: int = 1,
    int8: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[LayerShape, float]:
    """Kernel time of each shape on the CPU, in milliseconds.

    Args:
        shapes: each is timed once, however often it is given.
        threads: intra-op threads.
        batch: images a run.
        int8: uint8 activations and int8 weights, one scale a channel (QLinearConv, QGemm's integer product).
        progress: told the fraction done.

    Raises:
        Unavailable: no place for the profiler's temporary file.
    """
    distinct = sorted(set(shapes))
    best: dict[LayerShape, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(PASSES):
            for index, shape in enumerate(distinct):
                kernel_ms = _kernel_ms(layer_model(shape, int8=int8), threads, batch, Path(folder))
                best[shape] = min(kernel_ms, best.get(shape, kernel_ms))
                progress((turn + (index + 1) / len(distinct)) / PASSES)
    return best


def node_times(
    model: bytes, *, threads: int = 1, batch: int = 1, runs: int = 30
) -> dict[str, tuple[str, float]]:
    """Time inside each node of a model on the CPU: node name -> (operator, median milliseconds)."""
    with tempfile.TemporaryDirectory() as folder:
        events = _profile(model, threads, batch, lambda _: runs, Path(folder))
    return {name: (kind, float(np.median(times))) for name, (kind, times) in events.items()}


def layer_model(shape: LayerShape, *, int8: bool = False) -> bytes:
    """A one-layer ONNX model with random weights; input (batch, inputs, height, width) or (batch, inputs)."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    per_filter = shape.inputs // shape.groups
    dims = (shape.outputs, per_filter) if shape.linear else (shape.outputs, per_filter, *shape.kernel)
    place: tuple[Any, ...] = () if shape.linear else shape.size
    kind = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    values = [
        helper.make_tensor_value_info(n, kind, ["batch", w, *(place if n == "x" else [None] * len(place))])
        for n, w in (("x", shape.inputs), ("y", shape.outputs))
    ]
    if int8:
        nodes, constants = _int8_nodes(shape, rng, dims)
    else:
        nodes, constants = _float_nodes(shape, rng, dims)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layer", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model.SerializeToString()


def _attributes(shape: LayerShape) -> dict[str, Any]:
    pads = [*shape.padding, *shape.padding]
    return {
        "kernel_shape": shape.kernel,
        "strides": shape.stride,
        "pads": pads,
        "dilations": shape.dilation,
        "group": shape.groups,
    }


def _float_nodes(
    shape: LayerShape, rng: np.random.Generator, dims: tuple[int, ...]
) -> tuple[list[Any], dict[str, Any]]:
    from onnx import helper

    constants = {
        "w": rng.standard_normal(dims).astype(np.float32) / max(1, dims[1]),
        "b": rng.standard_normal(shape.outputs).astype(np.float32),
    }
    if shape.linear:
        return [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], constants
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], **_attributes(shape)),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    return nodes, constants


def _int8_nodes(
    shape: LayerShape, rng: np.random.Generator, dims: tuple[int, ...]
) -> tuple[list[Any], dict[str, Any]]:
    from onnx import helper

    weights = rng.integers(-127, 128, dims).astype(np.int8)
    scale, zero = np.float32(0.02), np.uint8(0)
    constants = {"xs": np.array(scale), "xz": np.array(zero), "ys": np.array(scale), "yz": np.array(zero)}
    if shape.linear:
        constants |= {"w": np.ascontiguousarray(weights.T), "ws": np.array(scale), "wz": np.array(np.int8(0))}
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        return [helper.make_node("QLinearMatMul", names, ["y"])], constants
    constants |= {
        "w": weights,
        "ws": np.full(shape.outputs, scale),
        "wz": np.zeros(shape.outputs, np.int8),
        "b": rng.integers(-999, 999, shape.outputs).astype(np.int32),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    return [helper.make_node("QLinearConv", names, ["y"], **_attributes(shape))], constants


KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "QLinearConv", "QLinearMatMul", "MatMul"}


def _kernel_ms(model: bytes, threads: int, batch: int, folder: Path) -> float:
    def enough(first_ms: float) -> int:
        """Runs that fill WANTED_MS."""
        return int(np.clip(WANTED_MS / max(first_ms, 1e-3), FEWEST_RUNS, MOST_RUNS))

    events = _profile(model, threads, batch, enough, folder)
    kernel_times = [times for kind, times in events.values() if kind in KERNELS]
    return float(sum(_middle_mean(times) for times in kernel_times))


def _middle_mean(times: np.ndarray) -> float:
    """Mean of the middle half: as robust as the median, and finer than the profiler's whole microseconds."""
    quarter = len(times) // 4
    return float(np.sort(times)[quarter : len(times) - quarter].mean())


def _profile(
    model: bytes, threads: int, batch: int, runs: Callable[[float], int], folder: Path
) -> Mapping[str, tuple[str, np.ndarray]]:
    """Node name -> (operator, milliseconds of each run without the warm-up)."""
    import time

    session = open_session(model, "cpu", threads=threads, profile=folder / "trace")
    entry = session.get_inputs()[0]
    shape = [batch, *(d if isinstance(d, int) else 1 for d in entry.shape[1:])]
    rng = np.random.default_rng(0)
    kind = np.uint8 if "uint8" in entry.type else np.float32
    feed = {entry.name: (rng.random(shape) * (255 if kind is np.uint8 else 1)).astype(kind)}
    session.run(None, feed)
    began = time.perf_counter()
    for _ in range(WARM_UP_RUNS - 1):
        session.run(None, feed)
    count = runs((time.perf_counter() - began) * 1e3 / (WARM_UP_RUNS - 1))
    for _ in range(count):
        session.run(None, feed)
    trace = Path(session.end_profiling())
    try:
        events = json.loads(trace.read_text())
    except (OSError, ValueError) as error:
        raise Unavailable("ONNX Runtime's profiler wrote no trace", got=str(error), where=folder) from error
    finally:
        with contextlib.suppress(OSError):
            trace.unlink()
    times: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            kind_, durations = times.setdefault(name, (event["args"]["op_name"], []))
            durations.append(event["dur"] / 1e3)
    return {
        name.removesuffix("_kernel_time"): (kind_, np.array(durations[WARM_UP_RUNS:]))
        for name, (kind_, durations) in times.items()
    }
