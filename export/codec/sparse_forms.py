"""Tensors with one dominating value (zero after pruning): where the other values are, and what they are.

Three ways to say where: *relative* codes the gap before each, *bitmap* one bit per position (8 bits are one
Huffman symbol), *joint* codes runs of the dominating value and the other values as symbols of one code.
Gaps are coded like deflate's distances: a class by Huffman, the rest of the gap in plain bits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec import blocks
from tersor.export.codec.bits import ByteReader, pack_fields, unpack_fields, write_varint
from tersor.export.codec.byte_coding import decode_bytes, encode_bytes
from tersor.export.codec.value_coding import (
    MAX_CODEBOOK,
    Patterns,
    decode_values,
    encode_values,
    read_codebook,
    write_codebook,
)
from tersor.export.codec.views import Positions, View, from_view, read_view, write_masks

FINENESS = (0, 1, 2, 3, 4, 5, 6, 7)
"""Class sizes tried: 2**fineness classes per doubling of the gap."""


_CHUNK = 1 << 18
"""Positions converted at once; it bounds a decoder's memory."""


@dataclass(frozen=True)
class Sparse:
    """What an encoder needs to know of a tensor.

    `view`: the order of positions. `positions`: [m] ascending, in the view; `values`: [m] patterns there;
    `default`: the pattern everywhere else. `codebook`: [k] ascending distinct values, or None when there are
    too many. `with_static`: take the static coder where it is smaller.
    """

    view: View
    positions: Positions
    values: Patterns
    default: int
    codebook: Patterns | None
    is_float: bool
    with_static: bool = False

    def coded_values(self) -> bytes:
        """Return the values, coded."""
        return encode_values(self.values, self.codebook, self.is_float, with_static=self.with_static)


def gap_class(gaps: Positions, fineness: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (class, number of extra bits), each [m], of gaps >= 0.

    Gaps below 2**(f+1) are classes of their own; above, every doubling is cut into 2**f classes of equal
    width 2**e, and e extra bits say where in its class a gap lies: class = e * 2**f + (gap >> e).
    """
    extra = np.maximum(np.frexp(gaps.astype(np.float64))[1].astype(np.int64) - 1 - fineness, 0)
    return (extra << fineness) + (gaps >> extra), extra


def _class_start(classes: NDArray[np.int32], fineness: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return (smallest gap, number of extra bits), each [m], of gap classes of a piece of a tensor."""
    extra = np.maximum((classes >> fineness) - 1, 0)
    return (classes - (extra << fineness)) << extra, extra


def _class_count(largest: int, fineness: int) -> int:
    """Return how many classes the gaps 0..largest have."""
    return int(gap_class(np.array([largest]), fineness)[0][0]) + 1


def gaps_between(positions: Positions) -> Positions:
    """Return [m] numbers of skipped positions before each of [m] ascending positions."""
    return np.diff(positions, prepend=-1) - 1


def write_head(sparse: Sparse, fineness: int) -> bytes:
    """Return masks, then one byte: fineness, and whether the default is stored because it is not zero."""
    stored = sparse.default.to_bytes(sparse.values.itemsize, "little") if sparse.default else b""
    return (
        write_masks(sparse.view, with_static=sparse.with_static)
        + bytes([fineness | (sparse.default != 0) << 3])
        + stored
    )


def read_head(source: ByteReader, width: int) -> tuple[int, int]:
    """Return (fineness, default pattern)."""
    flags = source.byte()
    if flags > 15:
        raise source.error("unknown flags of a sparse tensor", flags, "0..15")
    return flags & 7, int.from_bytes(source.take(width), "little") if flags & 8 else 0


def encode_relative(sparse: Sparse, fineness: int) -> bytes:
    """Return gap classes, their extra bits, and the values; see docs/format.md, "relative"."""
    classes, extra = gap_class(gaps := gaps_between(sparse.positions), fineness)
    parts = [write_head(sparse, fineness), write_varint(len(gaps))]
    if len(gaps):
        parts.append(blocks.encode(_narrow(classes), with_static=sparse.with_static))
        parts.append(pack_fields(gaps & ((1 << extra) - 1), extra))
        parts.append(sparse.coded_values())
    return b"".join(parts)


def decode_relative(
    source: ByteReader, dims: tuple[int, ...], flags: int, width: int, is_float: bool
) -> Patterns:
    """Return [n] patterns, n = product(dims); the inverse of `encode_relative`."""
    view = read_view(source, dims, flags & 7, bool(flags & 8))
    fineness, default = read_head(source, width)
    count = source.varint(view.size)
    if not count:
        return place(source, view, np.zeros(0, np.int64), np.zeros(0, f"<u{width}"), default)
    classes = blocks.decode(source, count, _class_count(view.size - 1, fineness))
    steps = _read_gaps(source, classes, fineness)
    steps += 1
    positions = np.cumsum(steps, dtype=np.int64)
    positions -= 1
    values, _ = decode_values(source, count, width, is_float)
    return place(source, view, positions, values, default)


def encode_bitmap(sparse: Sparse) -> bytes:
    """Return one bit per position of the view, 8 to a byte, and the values; docs/format.md, "bitmap"."""
    mask = np.zeros(sparse.view.size, np.bool_)
    mask[sparse.positions] = True
    is_block, coded = encode_bytes(np.packbits(mask), with_static=sparse.with_static)
    values = sparse.coded_values() if len(sparse.values) else b""
    return write_head(sparse, int(is_block)) + coded + values


def decode_bitmap(
    source: ByteReader, dims: tuple[int, ...], flags: int, width: int, is_float: bool
) -> Patterns:
    """Return [n] patterns, n = product(dims); the inverse of `encode_bitmap`."""
    view = read_view(source, dims, flags & 7, bool(flags & 8))
    is_block, default = read_head(source, width)
    if is_block > 1:
        raise source.error("unknown form of a bitmap", is_block, "0 or 1")
    mask = np.unpackbits(decode_bytes(source, (view.size + 7) // 8, bool(is_block))).view(np.bool_)
    if mask[view.size :].any():
        raise source.error("padding bits are not zero")
    positions = np.flatnonzero(mask)
    values = np.zeros(0, f"<u{width}")
    if len(positions):
        values = decode_values(source, len(positions), width, is_float)[0]
    return place(source, view, positions, values, default)


def encode_joint(sparse: Sparse, fineness: int) -> bytes:
    """Return runs and values as symbols of one code; see docs/format.md, "joint".

    Needs a codebook and at least one value.
    """
    if sparse.codebook is None or not len(sparse.values):
        raise ValueError("joint coding needs a codebook and values")
    index = np.searchsorted(sparse.codebook, sparse.values)
    gaps = gaps_between(sparse.positions)
    classes, extra = gap_class(gaps - (gaps > 0), fineness)
    pairs = np.stack([len(sparse.codebook) + classes, index], axis=1)
    shown = np.stack([gaps > 0, np.ones(len(gaps), np.bool_)], axis=1)
    symbols = pairs[shown]
    runs, run_bits = (gaps - 1)[gaps > 0], extra[gaps > 0]
    return b"".join(
        (
            write_head(sparse, fineness),
            write_varint(len(sparse.codebook)),
            write_codebook(sparse.codebook),
            write_varint(len(symbols)),
            blocks.encode(_narrow(symbols), with_static=sparse.with_static),
            pack_fields(runs & ((1 << run_bits) - 1), run_bits),
        )
    )


def decode_joint(
    source: ByteReader, dims: tuple[int, ...], flags: int, width: int, is_float: bool
) -> Patterns:
    """Return [n] patterns, n = product(dims); the inverse of `encode_joint`."""
    view = read_view(source, dims, flags & 7, bool(flags & 8))
    fineness, default = read_head(source, width)
    size = source.varint(MAX_CODEBOOK)
    if not size:
        raise source.error("joint coding without a codebook")
    codebook = read_codebook(source, size, width)
    # Every symbol moves on by at least one position.
    count = source.varint(view.size)
    if not count:
        raise source.error("joint coding without values")
    symbols = blocks.decode(source, count, size + _class_count(view.size, fineness))
    is_run = symbols >= size
    steps = np.ones(count, np.int32)
    steps[is_run] += _read_gaps(source, symbols[is_run] - symbols.dtype.type(size), fineness)
    positions = np.cumsum(steps, dtype=np.int64)[~is_run] - 1
    return place(source, view, positions, codebook[symbols[~is_run]], default)


def _narrow(symbols: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
    return symbols.astype(np.uint8 if int(symbols.max()) < 256 else np.uint16)


def _read_gaps(source: ByteReader, classes: NDArray[np.integer], fineness: int) -> NDArray[np.int32]:
    """Read the extra bits of [m] classes; return the [m] gaps, below 2**23."""
    start, extra = _class_start(classes.astype(np.int32), fineness)
    bits = int(extra.sum(dtype=np.int64))
    packed = source.take((bits + 7) // 8)
    if bits % 8 and packed[-1] & (0xFF >> bits % 8):
        raise source.error("padding bits are not zero")
    start += unpack_fields(packed, extra).astype(np.int32)
    return start


def place(source: ByteReader, view: View, positions: Positions, values: Patterns, default: int) -> Patterns:
    """Return [n] patterns: `values` at `positions` of the view, the default elsewhere."""
    if len(positions) and int(positions[-1]) >= view.size:
        raise source.error("a value lies behind the end of its tensor", int(positions[-1]), f"< {view.size}")
    rows, columns = view.shape
    out = np.full(rows * columns, default, values.dtype)
    for i in range(0, len(positions), _CHUNK):
        out[from_view(view, positions[i : i + _CHUNK])] = values[i : i + _CHUNK]
    return out
