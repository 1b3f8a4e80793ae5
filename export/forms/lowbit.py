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

Weights on a grid of its own for each output channel have few integers but many values: told their
scales, the codebook holds the integers and a Mul by the scales follows.

For readers that know 4-bit and 2-bit tensors, indices of 4 or 2 bits are one:

    weight: Gather(codebook, Cast(indices, int32))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tersor.errors import BadInput
from tersor.export.forms import graph as graphs
from tersor.export.forms.lowbit_words import (
    codebook_of,
    integers_of,
    planes,
    shifts_of,
    small_integers,
    words_of,
)
from tersor.export.forms.opset import to_opset

OPSET, IR_VERSION = 18, 9
"""BitwiseAnd came with opset 18; every ONNX Runtime since 1.17 loads opset 18 with IR version 9."""

NATIVE = ((2, (1, 24, 4), TensorProto.UINT2, 25, 13), (4, (1, 23), TensorProto.UINT4, 21, 10))
"""Bits, first ONNX Runtime that loads such tensors, their type, its opset and IR version."""


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


def to_lowbit(
    onnx_path: Path,
    path: Path,
    *,
    max_bits: int = 8,
    scales: Mapping[str, np.ndarray] | None = None,
    consumer: str = "1.17",
) -> LowbitReport:
    """Write a smaller file of the same outputs, bit for bit, in standard operators.

    Args:
        onnx_path: an fp32 file whose weights have few distinct values (exact bit patterns).
        path: the file to write, if any weight can be packed.
        max_bits: pack weights of at most 2^max_bits distinct values, 1 to 8.
        scales: initializer -> float32 step sizes that broadcast against it, for weights that are
            integers x step. Where a weight is not exactly that, its values are looked at instead.
        consumer: the oldest ONNX Runtime that has to load the file. Opset 18 by default; 21 with 4-bit
            tensors from 1.23 on, 25 with 2-bit ones from 1.24.4 on.

    Raises:
        BadInput: `max_bits` out of range, no version, a damaged file, or operators that the opset lacks.
        Unavailable: the file cannot be written.
    """
    if not 1 <= max_bits <= 8:
        raise BadInput("a codebook's indices have 1 to 8 bits", got=max_bits, where="max_bits")
    native = [row for row in NATIVE if _version(consumer) >= row[1]]
    opset, ir_version = max([(OPSET, IR_VERSION), *(row[3:] for row in native)])
    model = graphs.read_model(onnx_path)
    before = model.ByteSize()
    to_opset(model, opset, ir_version, onnx_path)
    if native:
        model.ir_version = ir_version
    maker = _Maker(model, {row[0]: row[2] for row in native})
    steps = scales or {}
    done = [maker.pack(tensor, max_bits, steps.get(tensor.name)) for tensor in list(model.graph.initializer)]
    packed = tuple(tensor for tensor in done if tensor is not None)
    if not packed:
        return LowbitReport((), before, before)
    maker.finish()
    graphs.set_metadata(model, graphs.metadata(model) | {"precision": "lowbit"})
    graphs.write_model(model, path)
    return LowbitReport(packed, before, model.ByteSize())


class _Maker:
    """Packs the weights of one model one by one and shares what they have in common."""

    def __init__(self, model: ModelProto, native: Mapping[int, int]) -> None:
        self._native = native
        graph = model.graph
        self._model = model
        self._taken = {v.name for v in [*graph.input, *graph.output]} | {t.name for t in graph.initializer}
        self._taken |= {name for node in graph.node for name in node.output}
        self._fixed = {v.name for v in [*graph.input, *graph.output]}
        self._counter = 0
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._nodes: list[NodeProto] = []
        self._tensors: list[TensorProto] = []

    def pack(self, tensor: TensorProto, max_bits: int, scale: np.ndarray | None) -> LowbitTensor | None:
        """Put nodes for `tensor` aside and drop it; None, and nothing done, if that saves nothing."""
        if tensor.data_type != TensorProto.FLOAT or tensor.name in self._fixed:
            return None
        values = numpy_helper.to_array(tensor)
        table = codebook_of(values, max_bits)
        integers = integers_of(values, scale) if scale is not None else None
        by_channel = codebook_of(integers, max_bits) if integers is not None else None
        if by_channel is None or (table is not None and len(table[0]) <= len(by_channel[0])):
            by_channel, scale = table, None
        if by_channel is None:
            return None
        codebook, indices = by_channel
        bits = max(1, int(len(codebook) - 1).bit_length())
        counter, shared = self._counter, dict(self._shared)
        nodes, tensors = self._build(tensor.name, codebook, indices, bits, values.shape, scale)
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
        nodes = list(graph.node)
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend([*self._nodes, *copies])
        graph.initializer.extend(self._tensors)

    def _build(
        self,
        name: str,
        codebook: np.ndarray,
        indices: np.ndarray,
        bits: int,
        shape: tuple[int, ...],
        scale: np.ndarray | None,
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

        last = None if scale is not None else name  # what the weight's own name goes to
        if bits in self._native:
            tensors.append(small_integers(self._name(), indices, bits, shape, self._native[bits]))
            total = node("Cast", tensors[-1].name, to=TensorProto.INT32)
            total = node("Gather", constant(codebook), total, output=last)
        else:
            total = self._indices(indices, bits, constant, node)
            total = node("Gather", constant(codebook), node("Cast", total, to=TensorProto.INT32))
            if indices.size % 8:
                total = node("Reshape", total, constant(np.array([-1], np.int64)))
                ends = (np.array([i], np.int64) for i in (0, indices.size))
                total = node("Slice", total, *(constant(end) for end in ends))
            total = node("Reshape", total, constant(np.array(shape, np.int64)), output=last)
        if scale is not None:
            node("Mul", total, constant(scale), output=name)
        return nodes, tensors

    @staticmethod
    def _indices(
        indices: np.ndarray, bits: int, constant: Callable[..., str], node: Callable[..., str]
    ) -> str:
        """Nodes that put the planes of the indices together; the name of their result, uint8."""
        total, offset = "", 0
        for plane in planes(bits):
            words = constant(words_of(indices >> offset & (1 << plane) - 1, plane))
            if plane < 8:
                words = node("BitShift", words, constant(shifts_of(plane)), direction="RIGHT")
                words = node("BitwiseAnd", words, constant(np.array((1 << plane) - 1, np.uint8)))
            if offset:
                words = node("BitShift", words, constant(np.array(offset, np.uint8)), direction="LEFT")
                words = node("BitwiseOr", total, words)
            total, offset = words, offset + plane
        return total

    def _name(self) -> str:
        while (name := f"w{self._counter}") in self._taken:
            self._counter += 1
        self._counter += 1
        return name


def _version(consumer: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in consumer.split("."))
    except ValueError as error:
        raise BadInput(
            "the consumer is a version of ONNX Runtime",
            got=repr(consumer),
            wanted="such as 1.17 or 1.24.4",
            where="lowbit_consumer",
        ) from error


def _size(item: NodeProto | TensorProto) -> int:
    """Bytes in the file: the message, its tag and its length."""
    length = item.ByteSize()
    return length + 1 + max(1, -(-length.bit_length() // 7))
