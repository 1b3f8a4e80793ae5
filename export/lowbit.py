"""Small standard ONNX: weights with few distinct values as packed bits and a codebook.

A weight of at most 2^b distinct values becomes b bits per value plus a table. b is written as a
sum of powers of two (7 = 4 + 2 + 1), one uint8 array ("plane") for each, so that no value crosses
a byte. Plane p of the indices of eight neighbouring weights is p bytes; seen as a cube of
2 x 2 x 2 values, these bytes have the shapes

    p = 1: (1, 1, 1)    p = 2: (1, 1, 2)    p = 4: (1, 2, 2)    p = 8: (2, 2, 2)

and shifting them by amounts of the complementary shape ((2, 2, 2), (2, 2, 1), (2, 1, 1)) makes
every plane the same (R, 2, 2, 2) in the weights' own order: no reshaping in between. In ONNX:

    planes: (words >> shifts) & mask  [<< offset, | the planes before]
    weight: Reshape(Gather(codebook, Cast(indices, int32)), shape)

Everything but the input is constant, so ONNX Runtime computes it once when it loads the file and
then runs the fp32 model. Shifts, masks and offsets are stored once for all weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tersor.export import graph as graphs
from tersor.models.errors import BadInput

OPSET, IR_VERSION = 18, 9
"""BitwiseAnd came with opset 18; every ONNX Runtime since 1.17 loads opset 18 with IR version 9."""

SMALLEST = 256
"""Tensors of fewer values cost more in nodes than they save."""

SHIFT_SHAPES = {1: (2, 2, 2), 2: (2, 2, 1), 4: (2, 1, 1)}
"""Bits of a plane -> shape of its shift amounts."""


@dataclass(frozen=True)
class LowbitTensor:
    """One packed weight: its bits per index, and what it took and takes in the file, nodes included."""

    name: str
    elements: int
    distinct: int
    bits: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class LowbitReport:
    """What `to_lowbit` packed; no file was written when `tensors` is empty. Sizes are of the files."""

    tensors: tuple[LowbitTensor, ...]
    bytes_before: int
    bytes_after: int

    @property
    def bits_per_weight(self) -> float:
        """Bits per packed weight, codebooks and nodes included; 32 when nothing was packed."""
        elements = sum(t.elements for t in self.tensors)
        return 8 * sum(t.bytes_after for t in self.tensors) / elements if elements else 32.0


def to_lowbit(onnx_path: Path, path: Path, *, max_bits: int = 8) -> LowbitReport:
    """Write a smaller file of the same outputs, bit for bit, in standard operators at opset 18.

    Args:
        onnx_path: an fp32 file whose weights have few distinct values (exact bit patterns).
        path: the file to write, if any weight can be packed.
        max_bits: pack weights of at most 2^max_bits distinct values, 1 to 8.

    Raises:
        BadInput: `max_bits` out of range, a damaged file, or operators that opset 18 lacks.
        Unavailable: the file cannot be written.
    """
    if not 1 <= max_bits <= 8:
        raise BadInput("a codebook's indices have 1 to 8 bits", got=max_bits, where="max_bits")
    model = graphs.read_model(onnx_path)
    before = model.ByteSize()
    _to_opset(model, onnx_path)
    maker = _Maker(model)
    done = [maker.pack(tensor, max_bits) for tensor in list(model.graph.initializer)]
    packed = tuple(tensor for tensor in done if tensor is not None)
    if not packed:
        return LowbitReport((), before, before)
    maker.finish()
    graphs.set_metadata(model, graphs.metadata(model) | {"precision": "lowbit"})
    graphs.write_model(model, path)
    return LowbitReport(packed, before, model.ByteSize())


class _Maker:
    """Packs the weights of one model one by one and shares what they have in common."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._model = model
        self._taken = {v.name for v in [*graph.input, *graph.output]} | {t.name for t in graph.initializer}
        self._taken |= {name for node in graph.node for name in node.output}
        self._fixed = {v.name for v in [*graph.input, *graph.output]}
        self._counter = 0
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._nodes: list[NodeProto] = []
        self._tensors: list[TensorProto] = []

    def pack(self, tensor: TensorProto, max_bits: int) -> LowbitTensor | None:
        """Put nodes for `tensor` aside and drop it; None, and nothing done, if that saves nothing."""
        if tensor.data_type != TensorProto.FLOAT or tensor.name in self._fixed:
            return None
        values = numpy_helper.to_array(tensor)
        table = _codebook(values, max_bits)
        if table is None:
            return None
        codebook, indices = table
        bits = max(1, int(len(codebook) - 1).bit_length())
        counter, shared = self._counter, dict(self._shared)
        nodes, tensors = self._build(tensor.name, codebook, indices, bits, values.shape)
        size = sum(map(_size, nodes)) + sum(map(_size, tensors))
        if size >= _size(tensor):
            self._counter, self._shared = counter, shared
            return None
        self._nodes += nodes
        self._tensors += tensors
        self._model.graph.initializer.remove(tensor)
        return LowbitTensor(tensor.name, values.size, len(codebook), bits, _size(tensor), size)

    def finish(self) -> None:
        """Put the nodes before the model's own, which read their results."""
        graph = self._model.graph
        own = list(graph.node)
        copies = [NodeProto.FromString(node.SerializeToString()) for node in own]
        del graph.node[:]
        graph.node.extend([*self._nodes, *copies])
        graph.initializer.extend(self._tensors)

    def _build(
        self, name: str, codebook: np.ndarray, indices: np.ndarray, bits: int, shape: tuple[int, ...]
    ) -> tuple[list[NodeProto], list[TensorProto]]:
        nodes: list[NodeProto] = []
        tensors: list[TensorProto] = []

        def constant(array: np.ndarray) -> str:
            """Add an initializer once; return its name."""
            key = (str(array.dtype), array.shape, array.tobytes())
            if key not in self._shared:
                self._shared[key] = self._name()
                tensors.append(numpy_helper.from_array(array, self._shared[key]))
            return self._shared[key]

        def node(operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
            """Add a node; return the name of its output."""
            nodes.append(helper.make_node(operator, inputs, [output or self._name()], **attributes))
            return nodes[-1].output[0]

        total, offset = "", 0
        for plane in _planes(bits):
            words = constant(_words(indices >> offset & (1 << plane) - 1, plane))
            if plane < 8:
                words = node("BitShift", words, constant(_shifts(plane)), direction="RIGHT")
                words = node("BitwiseAnd", words, constant(np.array((1 << plane) - 1, np.uint8)))
            if offset:
                words = node("BitShift", words, constant(np.array(offset, np.uint8)), direction="LEFT")
                words = node("BitwiseOr", total, words)
            total, offset = words, offset + plane
        total = node("Cast", total, to=TensorProto.INT32)
        total = node("Gather", constant(codebook), total)
        if indices.size % 8:
            total = node("Reshape", total, constant(np.array([-1], np.int64)))
            ends = (np.array([i], np.int64) for i in (0, indices.size))
            total = node("Slice", total, *(constant(end) for end in ends))
        node("Reshape", total, constant(np.array(shape, np.int64)), output=name)
        return nodes, tensors

    def _name(self) -> str:
        while (name := f"w{self._counter}") in self._taken:
            self._counter += 1
        self._counter += 1
        return name


def _planes(bits: int) -> Sequence[int]:
    """The powers of two that sum to `bits`, largest first: 7 -> 4, 2, 1."""
    return [plane for plane in (8, 4, 2, 1) if bits & plane]


def _words(values: np.ndarray, plane: int) -> np.ndarray:
    """Pack uint8 values of `plane` bits: (R, then the plane's cube shape), uint8."""
    padded = np.zeros(-(-values.size // 8) * 8, np.uint8)
    padded[: values.size] = values
    cube = padded.reshape(-1, 2, 2, 2)
    if plane == 8:
        return cube
    axes = tuple(i + 1 for i, side in enumerate(SHIFT_SHAPES[plane]) if side == 2)
    return np.bitwise_or.reduce(cube << _shifts(plane), axis=axes, keepdims=True)


def _shifts(plane: int) -> np.ndarray:
    shape = SHIFT_SHAPES[plane]
    return (np.arange(np.prod(shape)) * plane).astype(np.uint8).reshape(shape)


def _codebook(values: np.ndarray, max_bits: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(distinct float32 values, uint8 index of each element), or None if too many or too small."""
    patterns = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    if patterns.size < SMALLEST or np.unique(patterns[:8192]).size > 1 << max_bits:
        return None
    distinct, indices = np.unique(patterns, return_inverse=True)
    if distinct.size > 1 << max_bits:
        return None
    return distinct.view(np.float32), indices.astype(np.uint8)


def _size(item: NodeProto | TensorProto) -> int:
    """Bytes in the file: the message, its tag and its length."""
    length = item.ByteSize()
    return length + 1 + max(1, -(-length.bit_length() // 7))


def _to_opset(model: ModelProto, where: Path) -> None:
    """Convert `model` to opset 18 in place."""
    own = next((o for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if own is None or foreign:
        raise BadInput(
            "the low-bit form is made from standard operators only",
            got=f"operators of domain {', '.join(foreign) or '(none)'}",
            where=where,
        )
    if own.version > OPSET:
        _relabel(model, own.version, where)
        own.version = OPSET
    elif own.version < OPSET:
        _convert_up(model, where)
    model.ir_version = min(model.ir_version, IR_VERSION)


ONLY_MORE_TYPES = frozenset(
    {
        "AveragePool", "Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "Equal",
        "Flatten", "Identity", "If", "IsInf", "IsNaN", "Loop", "Pad", "QuantizeLinear", "ReduceMax",
        "ReduceMin", "Reshape", "Scan", "Shape", "Size", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that later opsets only taught more element types or optional attributes.

onnx.version_converter has no way down for several of them, Reshape among them.
"""


def _relabel(model: ModelProto, version: int, where: Path) -> None:
    """Check that every node means the same at opset 18, as nodes of common networks do."""
    for node in model.graph.node:
        new = onnx.defs.get_schema(node.op_type, version, "")
        try:
            old = onnx.defs.get_schema(node.op_type, OPSET, "")
        except onnx.defs.SchemaError:
            old = None
        same = old is not None and old.since_version == new.since_version
        widened = old is not None and node.op_type in ONLY_MORE_TYPES
        known = old is not None and all(a.name in old.attributes for a in node.attribute)
        known = known and old is not None and len(node.input) <= old.max_input
        if not (same or widened) or not known:
            raise BadInput(
                f"operator {node.op_type} is newer than opset {OPSET}, which the low-bit form is made for",
                got=f"node {node.name!r} at opset {version}",
                where=where,
                todo="Ship the packed .tsr file instead, or export without this operator",
            )


def _convert_up(model: ModelProto, where: Path) -> None:
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(model, OPSET)
    except Exception as error:
        raise BadInput(
            f"the model cannot be converted to opset {OPSET}", got=str(error), where=where
        ) from error
    model.CopyFrom(converted)
