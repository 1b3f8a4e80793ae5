"""Where the tensors lie inside the bytes of an ONNX file, found by walking the protobuf wire format.

The file is never parsed into objects and never written anew, so cutting the tensors out and putting them
back gives the same bytes, whatever wrote the file. The same walk runs over the *skeleton* (the file without
the cut bytes) and finds the same places, so the places need not be stored.

Field numbers are those of onnx.proto; the wire format is described at protobuf.dev (encoding).
"""

import math
from dataclasses import dataclass

from tersor.errors import FormatError

MIN_SPAN = 32
"""Part of the format: shorter payloads stay in the skeleton."""

MAX_FIELDS = 1 << 20
"""Part of the format: a file with more fields is no network but an attempt to keep a decoder busy."""

MAX_SPANS = 1 << 15
_MAX_DEPTH = 64
_MAX_DIMS = 8

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_CHILDREN: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
_DIMS, _DATA_TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL, _LOCATION = 1, 2, 4, 8, 9, 10, 13, 14

_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    4: ("uint16", 2),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
    12: ("uint32", 4),
    13: ("uint64", 8),
    14: ("complex64", 4),
    15: ("complex128", 8),
    16: ("bfloat16", 2),
}
"""TensorProto.DataType -> (name, bytes per number); all others are packed or 8-bit: 1 byte."""


@dataclass(frozen=True)
class Span:
    """One tensor's payload: `size` bytes from `start` in the file, numbers of `width` bytes each.

    `dims` is the tensor's shape when it agrees with the size, else (size / width,); product(dims) * width
    is always `size`. `dtype` is a numpy-like name; `is_float` says whether the numbers are IEEE floats.
    """

    start: int
    size: int
    width: int
    dims: tuple[int, ...]
    dtype: str
    is_float: bool
    name: str


@dataclass(frozen=True)
class Layout:
    """The spans of a file in ascending order, and whether a tensor's data lies in another file."""

    spans: tuple[Span, ...]
    has_graph: bool
    external: bool


class NotOnnx(Exception):
    """The bytes are no protobuf message of the expected form; says where."""


def find_spans(data: bytes | memoryview) -> Layout:
    """Return the spans in the bytes of an ONNX file.

    Raises:
        NotOnnx: the bytes do not follow the wire format, hold no graph, or exceed a limit above.
    """
    walk = _Walk(data, len(data), cut=False)
    walk.message(_MODEL, len(data), 0)
    if not walk.has_graph:
        raise NotOnnx("there is no graph")
    return Layout(tuple(walk.spans), walk.has_graph, walk.external)


def find_cuts(skeleton: bytes | memoryview, total: int) -> Layout:
    """Return the spans of the file of `total` bytes whose skeleton is given.

    Raises:
        FormatError: the skeleton is damaged, or skeleton and spans do not add up to `total`.
    """
    walk = _Walk(skeleton, total, cut=True)
    try:
        walk.message(_MODEL, total, 0)
        if walk.position - walk.removed != len(skeleton):
            raise NotOnnx(f"{len(skeleton)} skeleton bytes where {walk.position - walk.removed} belong")
    except NotOnnx as error:
        raise FormatError("the skeleton is damaged", got=str(error), where="section SKELETON") from None
    return Layout(tuple(walk.spans), walk.has_graph, walk.external)


class _Walk:
    """A position in the file; `removed` is how many bytes before it are cut out of `data`."""

    def __init__(self, data: bytes | memoryview, total: int, *, cut: bool) -> None:
        self.data = data
        self.total = total
        self.cut = cut
        self.position = self.removed = self.fields = 0
        self.spans: list[Span] = []
        self.has_graph = self.external = False

    def varint(self, end: int) -> int:
        """Return the next varint (at most 10 bytes, before `end`)."""
        value = shift = 0
        while True:
            offset = self.position - self.removed
            if self.position >= end or offset >= len(self.data) or shift > 63:
                raise NotOnnx(f"a number ends outside its message at byte {self.position}")
            byte = self.data[offset]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def skip(self, size: int, end: int) -> None:
        """Move over `size` bytes that are present."""
        if size > end - self.position or size > len(self.data) - (self.position - self.removed):
            raise NotOnnx(f"a field ends outside its message at byte {self.position}")
        self.position += size

    def field(self, end: int) -> tuple[int, int, int]:
        """Read one field's key; return (number, wire type, varint value or payload size)."""
        self.fields += 1
        key = self.varint(end)
        number, wire = key >> 3, key & 7
        if number == 0 or self.fields > MAX_FIELDS:
            raise NotOnnx(f"field {number} (the {self.fields}th) at byte {self.position}")
        if wire in (0, 2):
            return number, wire, self.varint(end)
        if wire in (1, 5):
            return number, wire, 8 if wire == 1 else 4
        raise NotOnnx(f"wire type {wire} at byte {self.position}")

    def message(self, kind: int, end: int, depth: int) -> None:
        """Walk the fields of a message up to byte `end` of the file."""
        if depth > _MAX_DEPTH:
            raise NotOnnx(f"messages nested deeper than {_MAX_DEPTH} at byte {self.position}")
        children = _CHILDREN[kind]
        while self.position < end:
            number, wire, size = self.field(end)
            child = children.get(number) if wire == 2 else None
            if child is None:
                self.skip(size if wire else 0, end)
                continue
            if size > end - self.position:
                raise NotOnnx(f"a message ends outside its parent at byte {self.position}")
            self.has_graph |= child == _GRAPH
            if child == _TENSOR:
                self.tensor(self.position + size)
            else:
                self.message(child, self.position + size, depth + 1)

    def tensor(self, end: int) -> None:
        """Walk a TensorProto up to byte `end`, noting its payloads as spans."""
        dims: list[int] = []
        data_type, name = 0, ""
        payloads: list[tuple[int, int, int]] = []
        while self.position < end:
            number, wire, value = self.field(end)
            if wire == 2 and number in (_FLOATS, _RAW, _DOUBLES) and value >= MIN_SPAN:
                payloads.append((number, self.position, value))
                self._payload(value, end)
                continue
            offset = self.position - self.removed
            self.skip(value if wire else 0, end)
            if number == _DIMS:
                dims += self._dims(wire, value, offset)
            elif number == _DATA_TYPE and wire == 0:
                data_type = value
            elif number == _NAME and wire == 2:
                name = bytes(self.data[offset : offset + min(value, 256)]).decode("utf-8", "replace")
            elif number == _EXTERNAL or (number == _LOCATION and value != 0):
                self.external = True
        for number, start, size in payloads:
            self._note(number, start, size, dims, data_type, name)

    def _payload(self, size: int, end: int) -> None:
        if not self.cut:
            self.skip(size, end)
            return
        if size > end - self.position:
            raise NotOnnx(f"a tensor ends outside its message at byte {self.position}")
        self.position += size
        self.removed += size

    def _dims(self, wire: int, value: int, offset: int) -> list[int]:
        """Return the dimensions of one field: a lone varint, or packed ones."""
        if wire == 0:
            return [value]
        if wire != 2 or value > 10 * _MAX_DIMS:
            return []
        packed = _Walk(self.data[offset : offset + value], value, cut=False)
        dims = []
        while packed.position < value:
            dims.append(packed.varint(value))
        return dims

    def _note(self, number: int, start: int, size: int, dims: list[int], data_type: int, name: str) -> None:
        if len(self.spans) >= MAX_SPANS:
            raise NotOnnx(f"more than {MAX_SPANS} tensors")
        dtype, width = _TYPES.get(data_type, (f"type{data_type}", 1))
        if number != _RAW:
            width = 4 if number == _FLOATS else 8
        if size % width:
            width = 1
        shape = tuple(dims) if len(dims) <= _MAX_DIMS else ()
        if math.prod(shape) * width != size or not shape:
            shape = (size // width,)
        is_float = width > 1 and ("float" in dtype or "complex" in dtype)
        self.spans.append(Span(start, size, width, shape, dtype, is_float, name))
