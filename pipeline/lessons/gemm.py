"""R3's exercise: a convolution as a matrix product (unfold, then matmul), timed against the real ones.

`unfold` writes every patch of the image out as a column, so that one matrix product does the whole
convolution; each pixel is then written kernel x kernel times. Conv2d (oneDNN) and ONNX Runtime read the image
where it lies. All three compute the same; that is checked before anything is timed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor.errors import BadInput, ClaimBroken
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.benchmark import time_calls
from tersor.export.timing.latency import LatencyRow
from tersor.export.timing.providers import open_session
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.lessons.convolution_product import GemmConv2d, as_products, fits
from tersor.pipeline.shipping.opened import Finished
from tersor.pipeline.show.markdown import markdown_table
from tersor.progress import Reporter, Tell

BOUND = 1e-4
"""Largest difference of any output that still counts as the same computation."""
R3_SECONDS = (2.99, 1.62)
"""R3's test set of 10,000 images at batch 32: unfold + matmul, Conv2d."""
NETWORK = "network"
"""What `Lesson.part` says of the whole network."""


@dataclass(frozen=True)
class Lesson:
    """One part of the network, computed in several ways.

    part: a convolution's name, or `network`.
    rows: one a way; `file` names the way, `speedup` is Conv2d's p50 over its own.
    max_abs_diff: way -> largest difference of an output from Conv2d's.
    column_bytes: what `unfold` writes for one batch; 0 for the whole network.
    input_bytes: the batch that it reads.
    """

    part: str
    rows: tuple[LatencyRow, ...]
    max_abs_diff: Mapping[str, float]
    column_bytes: int
    input_bytes: int


def run_lesson(
    run: Finished | None, *, batch: int, threads: int, seconds: float, quiet: bool
) -> list[Lesson]:
    """Time a finished run's trained network and each of its convolutions; None: R3's chosen, fresh weights.

    Args:
        run: the finished run, or a bundle.
        batch: images at once; noise, since times do not depend on what is on them.
        threads: of PyTorch and of ONNX Runtime.
        seconds: timing budget of each way.
        quiet: no progress.

    Raises:
        BadInput: the network has no convolution that can be written as one product.
        ClaimBroken: two ways differ by more than 1e-4.
    """
    network = run.baseline() if run is not None else r3_network()
    torch.set_num_threads(threads)
    images = torch.randn(batch, *network.input_shape, generator=torch.Generator().manual_seed(0))
    inputs = _inputs(network.module(), images)
    if not inputs:
        raise BadInput(
            "the network has no convolution that one matrix product could do",
            got=network.definition,
            wanted="a Conv2d of one group",
            where="lesson gemm",
        )
    lessons = list[Lesson]()
    with Reporter([(part, 3.0) for part in (NETWORK, *inputs)], quiet=quiet) as reporter:
        for part in (NETWORK, *inputs):
            with reporter.step() as tell, torch.inference_mode():
                ways = _network_ways(network, images) if part == NETWORK else _layer_ways(*inputs[part])
                read = images if part == NETWORK else inputs[part][1]
                lessons.append(_lesson(part, ways, read, threads, seconds, tell))
                tell(1.0, f"unfold + matmul takes {_ratio(lessons[-1].rows[1])} times as long")
    return lessons


def r3_network() -> Network:
    """R3's chosen network (conv 8, conv 8, dense 100) with fresh weights; only its shapes matter here."""
    torch.manual_seed(0)
    names = tuple(str(i) for i in range(10))
    chosen = {"widths": [8, 8], "kernels": [3, 3], "hidden": 100}
    return networks.create("fashion", chosen, (1, 28, 28), names, Preprocessing())


def _inputs(module: nn.Module, images: Tensor) -> dict[str, tuple[nn.Conv2d, Tensor]]:
    """Each convolution that fits, and what reaches it."""
    seen: dict[str, tuple[nn.Conv2d, Tensor]] = {}

    def note(name: str, layer: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        """Remember what reaches a layer."""
        seen[name] = (layer, inputs[0].clone())

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and fits(layer):
            layer.register_forward_pre_hook(partial(note, name))
    with torch.inference_mode():
        module(images)
    for _, layer in module.named_modules():
        layer._forward_pre_hooks.clear()
    return seen


Ways = dict[str, Callable[[], Any]]


def _network_ways(network: Network, images: Tensor) -> Ways:
    """The whole network, its linear layers the same in both of PyTorch's ways."""
    plain, product = network.module(), network.module()
    as_products(product)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with torch.inference_mode(False):
            export_onnx(network, path)
        session = open_session(path.read_bytes(), "cpu", threads=torch.get_num_threads())
    feed = {session.get_inputs()[0].name: images.numpy()}
    return {
        "Conv2d": lambda: plain(images),
        "unfold + matmul": lambda: product(images),
        "ONNX Runtime": lambda: session.run(None, feed)[0],
    }


def _layer_ways(convolution: nn.Conv2d, images: Tensor) -> Ways:
    """One convolution, and the two halves of its product alone."""
    product = GemmConv2d(convolution)
    columns = product.columns(images)
    session = open_session(_onnx_convolution(convolution), "cpu", threads=torch.get_num_threads())
    feed = {"input": images.numpy()}
    return {
        "Conv2d": lambda: convolution(images),
        "unfold + matmul": lambda: product(images),
        "unfold alone": lambda: product.columns(images),
        "matmul alone": lambda: product.product(columns),
        "ONNX Runtime": lambda: session.run(None, feed)[0],
    }


def _onnx_convolution(convolution: nn.Conv2d) -> bytes:
    """A model of one Conv node: `input` (batch, C, H, W) -> `output`, float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    of = convolution
    tensors = {"weight": of.weight} | ({"bias": of.bias} if of.bias is not None else {})
    values = [numpy_helper.from_array(t.detach().numpy(), name) for name, t in tensors.items()]
    node = helper.make_node(
        "Conv",
        ["input", *tensors],
        ["output"],
        kernel_shape=list(of.kernel_size),
        strides=list(of.stride),
        dilations=list(of.dilation),
        pads=[int(p) for p in of.padding] * 2,
    )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, None, None])
        for name, channels in (("input", of.in_channels), ("output", of.out_channels))
    ]
    graph = helper.make_graph([node], "convolution", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _lesson(part: str, ways: Ways, images: Tensor, threads: int, seconds: float, tell: Tell) -> Lesson:
    """Check that all ways agree, then time them in turn."""
    reference = np.asarray(ways["Conv2d"]())
    whole = {name: way for name, way in ways.items() if not name.endswith("alone")}
    differences = {name: max_difference(way(), reference) for name, way in whole.items()}
    check_same(part, differences)
    timed = time_calls(
        ways,
        baseline="Conv2d",
        provider="CPU",
        batch=len(images),
        threads=threads,
        seconds_per_call=seconds,
        force=True,  # a lesson goes on; its rows say that others ran
        progress=lambda fraction: tell(fraction, "timing"),
    )
    columns = ways["unfold alone"]().nbytes if "unfold alone" in ways else 0
    return Lesson(part, timed.rows, differences, columns, images.nbytes)


def max_difference(value: Tensor | np.ndarray, wanted: np.ndarray) -> float:
    """The largest absolute difference of two arrays; infinite where their shapes differ."""
    got = np.asarray(value)
    return float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")


def check_same(part: str, differences: Mapping[str, float]) -> None:
    """Check that every way computes what Conv2d does.

    Raises:
        ClaimBroken: a way differs by more than 1e-4, or by NaN.
    """
    for way, difference in differences.items():
        if not difference <= BOUND:
            raise ClaimBroken(
                f"{way} does not compute what Conv2d does",
                got=f"an output that differs by {difference:.3g}",
                wanted=f"at most {BOUND:g}",
                where=f"lesson gemm, {part}",
            )


def lesson_markdown(lessons: Sequence[Lesson]) -> str:
    """A line for every part and way; times beside Conv2d's with a 95 % interval."""
    first = lessons[0].rows[0]
    rows = []
    for lesson in lessons:
        for row in lesson.rows:
            difference = lesson.max_abs_diff.get(str(row.file))
            same = f"{difference:.1e}" if difference is not None and row.file != "Conv2d" else ""
            seconds = f"{10_000 / row.throughput_per_s:.2f}"
            rows.append([lesson.part, row.file, f"{row.p50_ms:.3g}", seconds, _ratio(row), same])
    header = ("part", "way", "p50 ms", "10,000 images, s", "time beside Conv2d's", "differs from Conv2d by")
    lines = [
        f"Batch {first.batch}, {first.threads} thread{'s' if first.threads > 1 else ''}, interleaved.",
        "",
        markdown_table(header, rows, "llr"),
        "",
    ]
    lines += [
        f"{lesson.part}: unfold writes {lesson.column_bytes / 1e6:.2f} MB for "
        f"{lesson.input_bytes / 1e6:.2f} MB read ({lesson.column_bytes / lesson.input_bytes:.1f} times)."
        for lesson in lessons
        if lesson.column_bytes
    ]
    product, plain = R3_SECONDS
    lines.append(f"R3: {product} s against {plain} s for 10,000 images, {product / plain:.2f} times as long.")
    return "\n".join(lines) + "\n"


def _ratio(row: LatencyRow) -> str:
    """How many times as long as Conv2d, with the interval; the speed-up turned round."""
    if row.file == "Conv2d":
        return "1"
    words = f"{1 / row.speedup:.2f} [{1 / row.speedup_high:.2f}, {1 / row.speedup_low:.2f}]"
    words += "" if row.distinguishable else ", not distinguishable"
    return words if row.busy is None else f"{words} (the machine was busy: {row.busy})"


def as_json(lessons: Sequence[Lesson]) -> list[dict[str, Any]]:
    """Everything measured, as plain data."""
    return [asdict(lesson) for lesson in lessons]
