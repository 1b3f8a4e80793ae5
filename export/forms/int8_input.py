"""The first layer of an int8 file in layouts that ONNX Runtime's fast kernel takes: exact, more or less fast.

The kernel of u8 x s8 wants input channels in fours; a layer of three takes the slow way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

InputLayout = Literal["plain", "padded", "blocks"]
"""padded: channels of the zero point up to a multiple of four, with weights of zero; blocks: of a layer of
stride two, two by two pixels become one of four times the channels, and the kernel half as wide and high."""
LAYOUTS: tuple[InputLayout, ...] = ("plain", "padded", "blocks")
STEP = 4
"""Input channels that the fast kernel takes at once."""


@dataclass(frozen=True)
class _First:
    """The first layer: its input quantized, dequantized, the convolution, the integers of its weight."""

    rounding: NodeProto
    back: NodeProto
    conv: NodeProto
    weight: TensorProto

    @property
    def integers(self) -> np.ndarray:
        """int8 (outputs, inputs, height, width)."""
        return numpy_helper.to_array(self.weight)


def with_layout(model: ModelProto, layout: InputLayout) -> ModelProto | None:
    """A copy of a QDQ file with its first layer in this layout; None where it does not fit that layer.

    The outputs are the same bit for bit: products with zero are added, or the same ones in another order,
    and sums are of integers.
    """
    changed = ModelProto.FromString(model.SerializeToString())
    if layout == "plain":
        return changed
    first = _first(changed.graph)
    write = {"padded": _pad, "blocks": _block}[layout]
    return changed if first is not None and write(changed.graph, first) else None


def first_layer_alone(model: ModelProto) -> ModelProto | None:
    """The file cut behind its first layer, to time that one alone; None where that one is not in int8."""
    cut = ModelProto.FromString(model.SerializeToString())
    made_by = {name: node for node in cut.graph.node for name in node.output}
    conv = next((n for n in cut.graph.node if _reads_image(n, cut.graph, made_by)), None)
    after = next((n for n in cut.graph.node if conv is not None and conv.output[0] in n.input), None)
    if after is None or after.op_type != "QuantizeLinear":
        return None
    needed, waiting = set[str](), [after.output[0]]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting.extend(made_by[name].input if name in made_by else ())
    nodes = [n for n in cut.graph.node if needed.intersection(n.output)]
    tensors = [t for t in cut.graph.initializer if t.name in needed]
    result = helper.make_tensor_value_info(after.output[0], TensorProto.UINT8, None)
    graph = helper.make_graph(nodes, "first", list(cut.graph.input), [result], tensors)
    cut.graph.CopyFrom(graph)
    return cut


def _reads_image(node: NodeProto, graph: GraphProto, made_by: Mapping[str, NodeProto]) -> bool:
    """Whether a convolution reads the graph's input, quantized and perhaps laid out anew."""
    if node.op_type != "Conv":
        return False
    name = node.input[0]
    while name in made_by and made_by[name].op_type in (
        "DequantizeLinear",
        "QuantizeLinear",
        "Pad",
        "Reshape",
        "Transpose",
    ):
        name = made_by[name].input[0]
    return name == graph.input[0].name


def _first(graph: GraphProto) -> _First | None:
    """The first layer where it is one int8 convolution over all channels, its input read by nothing else."""
    chain, name = list[NodeProto](), graph.input[0].name
    for kind in ("QuantizeLinear", "DequantizeLinear", "Conv"):
        readers = [node for node in graph.node if name in node.input]
        if len(readers) != 1 or readers[0].op_type != kind:
            return None
        chain.append(readers[0])
        name = readers[0].output[0]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    source = next((n for n in graph.node if n.output[0] == chain[2].input[1]), None)
    weight = tensors.get(source.input[0]) if source is not None else None
    shared = weight is not None and sum(weight.name in n.input for n in graph.node) > 1
    shared = shared or sum(chain[2].input[1] in n.input for n in graph.node) > 1
    if weight is None or shared or weight.data_type != TensorProto.INT8 or len(weight.dims) != 4:
        return None
    channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return _First(chain[0], chain[1], chain[2], weight) if weight.dims[1] == channels else None


def _pad(graph: GraphProto, first: _First) -> bool:
    weight = first.integers
    more = -weight.shape[1] % STEP
    if more == 0:
        return False
    zeros = np.zeros((len(weight), more, *weight.shape[2:]), weight.dtype)
    pads = _constant(graph, "input_pads", [0, 0, 0, 0, 0, more, 0, 0])
    rounded = first.rounding.output[0]
    node = helper.make_node("Pad", [rounded, pads, first.rounding.input[2]], ["input_padded"])
    _insert(graph, first, [node], np.concatenate([weight, zeros], 1))
    return True


def _block(graph: GraphProto, first: _First) -> bool:
    """Pixels (c, 2y + dy, 2x + dx) become channel (dx, c, dy) of pixel (y, x), where the layer allows it."""
    weight, old = first.integers, _window(first.conv)
    _, channels, height, width = (d.dim_value for d in graph.input[0].type.tensor_type.shape.dim)
    sides = [
        _halved(size, kernel, *pads)
        for size, kernel, pads in zip((height, width), weight.shape[2:], old.pads, strict=True)
    ]
    fits = old.strides == (2, 2) and old.dilations == (1, 1) and not old.automatic
    if not fits or sides[0] is None or sides[1] is None:
        return False
    (above, rows, shift_y, below), (left, columns, shift_x, right) = sides[0], sides[1]
    spread = np.zeros((len(weight), channels, 2 * rows, 2 * columns), weight.dtype)
    spread[:, :, shift_y : shift_y + weight.shape[2], shift_x : shift_x + weight.shape[3]] = weight
    blocks = spread.reshape(len(weight), channels, rows, 2, columns, 2).transpose(0, 5, 1, 3, 2, 4)
    nodes = _to_blocks(graph, first.rounding.output[0], (channels, height, width))
    _insert(graph, first, nodes, blocks.reshape(len(weight), 4 * channels, rows, columns))
    kept = [a for a in first.conv.attribute if a.name not in ("pads", "strides", "kernel_shape", "auto_pad")]
    del first.conv.attribute[:]
    first.conv.attribute.extend([*kept, helper.make_attribute("pads", [above, left, below, right])])
    return True


def _to_blocks(graph: GraphProto, rounded: str, image: tuple[int, int, int]) -> list[NodeProto]:
    """Steps that each move one axis, which ONNX Runtime does fast; its own layout takes the last one back."""
    channels, height, width = image
    high, wide = height // 2, width // 2
    steps: list[tuple[str, list[int]]] = [
        ("Reshape", [-1, channels, high, 2, width]),
        ("Transpose", [0, 1, 3, 2, 4]),
        ("Reshape", [-1, 2 * channels, high, width]),
        ("Transpose", [0, 2, 3, 1]),
        ("Reshape", [-1, high, wide, 4 * channels]),
        ("Transpose", [0, 3, 1, 2]),
    ]
    nodes, name = list[NodeProto](), rounded
    for index, (kind, numbers) in enumerate(steps):
        output = f"input_blocks_{index}"
        if kind == "Reshape":
            shape = _constant(graph, f"input_shape_{index}", numbers)
            nodes.append(helper.make_node(kind, [name, shape], [output]))
        else:
            nodes.append(helper.make_node(kind, [name], [output], perm=numbers))
        name = output
    return nodes


def _insert(graph: GraphProto, first: _First, nodes: list[NodeProto], weight: np.ndarray) -> None:
    """Put the nodes between rounding and layer, and give the layer its new weight."""
    at = list(graph.node).index(first.rounding) + 1
    for offset, node in enumerate(nodes):
        node.name = f"input_layout_{offset}"
        graph.node.insert(at + offset, node)
    first.back.input[0] = nodes[-1].output[0]
    first.weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight), first.weight.name))
    sized = [a for a in first.conv.attribute if a.name == "kernel_shape"]
    for attribute in sized:
        attribute.ints[:] = weight.shape[2:]


def _constant(graph: GraphProto, name: str, numbers: list[int]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return name


@dataclass(frozen=True)
class _Window:
    """How a convolution moves: (vertical, horizontal) of each; pads: ((above, below), (left, right))."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    automatic: bool
    """Padded as the size demands, not as `pads` says."""


def _window(conv: NodeProto) -> _Window:
    told = {a.name: tuple(a.ints) for a in conv.attribute if a.ints}
    top, left, bottom, right = told.get("pads", (0, 0, 0, 0))
    strides, dilations = told.get("strides", (1, 1)), told.get("dilations", (1, 1))
    pads = ((top, bottom), (left, right))
    automatic = any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in conv.attribute)
    return _Window((strides[0], strides[1]), (dilations[0], dilations[1]), pads, automatic)


def _halved(size: int, kernel: int, before: int, after: int) -> tuple[int, int, int, int] | None:
    """Of one axis at stride two, in pairs of pixels: padding before, kernel, pixels the kernel is shifted by,
    padding after. None where the axis has no pairs, or the pairs reach less far than the pixels did."""
    outputs = (size + before + after - kernel) // 2 + 1
    pairs_before = (before + 1) // 2
    shift = 2 * pairs_before - before
    pairs = (kernel + shift + 1) // 2
    pairs_after = outputs - 1 - pairs_before + pairs - size // 2
    return None if size % 2 or pairs_after < 0 else (pairs_before, pairs, shift, pairs_after)
