"""How long ONNX Runtime takes for one layer of a given shape: the steps of the staircase.

Each shape becomes a one-layer ONNX model. ONNX Runtime's own profiler tells the time inside the layer's
kernel, so that copies and the reordering of the input, which a layer inside a network does not need, are
left out. It counts whole microseconds of the wall clock, its own part in each node included: prices compare
layers, and a network's remainder (structure/forecast.py) puts right what is the same for every node.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.errors import Unavailable
from tersor.export.timing.processor_time import processor_ms
from tersor.export.timing.providers import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET, IR_VERSION = 18, 8
WARM_UP_RUNS, FEWEST_RUNS, MOST_RUNS = 3, 12, 200
WANTED_MS = 2.0
"""Runs of one shape in one pass fill this time, within the bounds above."""
FEWEST_PASSES, MOST_PASSES = 2, 6
"""All shapes are timed in turn; the fastest pass counts: whatever disturbs only adds time. Shapes whose two
fastest passes differ are timed again."""
SAME_FRACTION, SAME_MS = 0.03, 0.001
"""Two passes agree within this fraction, or within the profiler's microsecond."""
TRUSTED_FRACTION = 0.1
"""A time that no second pass confirms so closely, or within two microseconds, is not to be trusted."""

REST_TURNS, REST_SECONDS = 5, 0.1


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
    def pixels(self) -> int:
        """Of the output."""
        height, width = (
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height * width

    @property
    def activations(self) -> int:
        """Output elements for one image."""
        return self.outputs * self.pixels

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.weights * self.pixels

    def key(self) -> str:
        """A short unique name, for files."""
        return "-".join(
            str(v) for part in astuple(self) for v in (part if isinstance(part, tuple) else [part])
        )


@dataclass(frozen=True)
class LayerTime:
    """What a layer takes.

    ms: milliseconds of one run, those of the fastest pass.
    second_ms: of the pass after it.
    """

    ms: float
    second_ms: float

    @property
    def agrees(self) -> bool:
        """Whether no further pass is needed."""
        return self.second_ms - self.ms <= max(SAME_MS, SAME_FRACTION * self.ms)

    @property
    def trusted(self) -> bool:
        """Whether another pass confirms it: else the machine was too busy for a time."""
        return self.second_ms - self.ms <= max(2 * SAME_MS, TRUSTED_FRACTION * self.ms)


def time_layers(
    shapes: Iterable[LayerShape],
    *,
    threads: int = 1,
    batch: int = 1,
    int8: bool = False,
    beside_mib: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[LayerShape, LayerTime]:
    """Kernel time of each shape on the CPU.

    Args:
        shapes: each is timed once, however often it is given.
        threads: intra-op threads.
        batch: images a run.
        int8: uint8 activations and int8 weights, one scale a channel (QLinearConv, QGemm's integer product).
        beside_mib: memory that is read between two runs, as a network's other weights are: the layer then
            finds its own no nearer than it does there.
        progress: told the fraction done.

    Raises:
        Unavailable: no place for the profiler's temporary file.
    """
    distinct = sorted(set(shapes))
    passes: dict[LayerShape, list[float]] = {shape: [] for shape in distinct}
    beside = [np.ones(1 << 18, np.float32) for _ in range(beside_mib)]  # one array would get huge pages
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(MOST_PASSES):
            left = [s for s in distinct if turn < FEWEST_PASSES or not _fastest(passes[s]).agrees]
            for index, shape in enumerate(left):
                model = layer_model(shape, int8=int8)
                passes[shape].append(_kernel_ms(model, threads, batch, Path(folder), beside))
                if turn < FEWEST_PASSES:
                    progress((turn + (index + 1) / len(left)) / FEWEST_PASSES)
    return {shape: _fastest(times) for shape, times in passes.items()}


def _fastest(passes: list[float]) -> LayerTime:
    return LayerTime(*sorted(passes)[:2])


def node_times(
    model: bytes, *, threads: int = 1, batch: int = 1, runs: int = 30
) -> dict[str, tuple[str, float]]:
    """Time inside each node of a model on the CPU: node name -> (operator, milliseconds, faster runs)."""
    with tempfile.TemporaryDirectory() as folder:
        events = _profile(model, threads, batch, lambda _: runs, Path(folder))
    return {name: (kind, _faster_half(times)) for name, (kind, times) in events.items()}


@dataclass(frozen=True)
class Rest:
    """What a run of a model takes besides its layers' kernels, as the profiler counts these, milliseconds.

    fixed_ms: whatever the activations' size; less than nothing where the profiler's own part in every node
        is more than the rest.
    scaled_ms: goes with the activations' size.
    """

    fixed_ms: float
    scaled_ms: float

    def at(self, activations: float) -> float:
        """With activations of this share of the model's."""
        return self.fixed_ms + self.scaled_ms * activations


def rest_of(model: bytes, *, batch: int = 1) -> Rest:
    """The processor time of a run on one thread, less the time inside the layers' kernels.

    Both are taken in turn and the median of the differences counts, so that a busy machine meets both. Each
    node that is no layer counts at least what the model's cheapest node takes, whatever its size: that much
    is in `fixed_ms`.
    """
    session = open_session(model, "cpu")
    feed = _feed(session, batch)
    differences, others = [], []
    for _ in range(REST_TURNS):
        run_ms = processor_ms({"run": lambda: session.run(None, feed)}, REST_SECONDS)["run"]
        nodes = node_times(model, batch=batch)
        layers_ms = sum(ms for kind, ms in nodes.values() if kind in KERNELS)
        others_ms = sum(ms for kind, ms in nodes.values() if kind not in KERNELS)
        differences.append(
            min(run_ms - layers_ms, others_ms)
        )  # the profiler only adds: more is the noise of both
        cheapest = min(ms for _, ms in nodes.values())
        others.append(sum(ms - cheapest for kind, ms in nodes.values() if kind not in KERNELS))
    scaled = float(np.median(others))
    return Rest(float(np.median(differences)) - scaled, scaled)


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


KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "QLinearConv", "QLinearMatMul", "QGemm", "MatMul"}
"""Operators that are a layer."""


def _kernel_ms(model: bytes, threads: int, batch: int, folder: Path, beside: Sequence[np.ndarray]) -> float:
    def enough(first_ms: float) -> int:
        """Runs that fill WANTED_MS."""
        return int(np.clip(WANTED_MS / max(first_ms, 1e-3), FEWEST_RUNS, MOST_RUNS))

    events = _profile(model, threads, batch, enough, folder, beside)
    kernel_times = [times for kind, times in events.values() if kind in KERNELS]
    return float(sum(_faster_half(times) for times in kernel_times))


def _faster_half(times: np.ndarray) -> float:
    """Mean of the faster half: other processes only add, and a mean is finer than whole microseconds."""
    return float(np.sort(times)[: (len(times) + 1) // 2].mean())


def _feed(session: "InferenceSession", batch: int) -> dict[str, np.ndarray]:
    """Noise for the session's one input."""
    entry = session.get_inputs()[0]
    shape = [batch, *(d if isinstance(d, int) else 1 for d in entry.shape[1:])]
    rng = np.random.default_rng(0)
    kind = np.uint8 if "uint8" in entry.type else np.float32
    return {entry.name: (rng.random(shape) * (255 if kind is np.uint8 else 1)).astype(kind)}


def _profile(
    model: bytes,
    threads: int,
    batch: int,
    runs: Callable[[float], int],
    folder: Path,
    beside: Sequence[np.ndarray] = (),
) -> Mapping[str, tuple[str, np.ndarray]]:
    """Node name -> (operator, milliseconds of each run without the warm-up).

    beside: is read before each run.
    """
    import time

    session = open_session(model, "cpu", threads=threads, profile=folder / "trace")
    feed = _feed(session, batch)
    session.run(None, feed)
    began = time.perf_counter()
    for _ in range(WARM_UP_RUNS - 1):
        session.run(None, feed)
    count = runs((time.perf_counter() - began) * 1e3 / (WARM_UP_RUNS - 1))
    for _ in range(count):
        for memory in beside:
            memory.max()
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
