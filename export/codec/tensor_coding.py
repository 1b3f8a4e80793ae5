"""The forms a piece of a tensor can take in a packed file, and their decoders.

A form is a number in the file, a name in the ledger, and a decoder; which form an encoder takes is decided
in export/codec/form_choice.py.
"""

from dataclasses import dataclass

import numpy as np

from tersor.export.codec.adaptive_form import decode_adaptive
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.byte_coding import decode_bytes, decompress
from tersor.export.codec.grid_form import FIELDS, FULL_SCALE, decode_grid
from tersor.export.codec.scaled_form import join_scales
from tersor.export.codec.sparse_forms import decode_bitmap, decode_joint, decode_relative
from tersor.export.codec.value_coding import Patterns, decode_values, pattern_dtype

MAX_PIECE = 3 << 19
"""Part of the format: most elements coded at once; it bounds what a decoder needs beside its output."""

RAW, POOLED, VALUES, STRINGS, RELATIVE, BITMAP, JOINT, ADAPTIVE, SCALED, ROWS, GRID, COPY = range(12)
VERSION_OF = {ROWS: 2, GRID: 2, COPY: 2}
"""The version of the format that brought a form; 1 for all others."""

NAMES = (
    "raw",
    "byte-planes (pooled)",
    "raw-symbols",
    "lzma",
    "relative-index",
    "bitmap",
    "joint",
    "adaptive",
    "scaled",
    "scaled rows",
    "grid",
    "copy",
)


@dataclass(frozen=True)
class Piece:
    """What both sides know of a piece before its bytes: shape, bytes per number, whether IEEE floats."""

    dims: tuple[int, ...]
    width: int
    is_float: bool

    @property
    def count(self) -> int:
        """Number of elements."""
        return int(np.prod(self.dims, dtype=np.int64))


def split_pieces(dims: tuple[int, ...], width: int, is_float: bool) -> list[Piece]:
    """Return the pieces of a tensor: whole rows of axis 0, as even as possible, at most MAX_PIECE elements.

    A tensor whose single row is larger is cut without regard to its shape.
    """
    count = int(np.prod(dims, dtype=np.int64))
    parts = -(-count // MAX_PIECE)
    if parts <= 1:
        return [Piece(dims, width, is_float)]
    rest = count // dims[0]
    if rest > MAX_PIECE:
        dims, rest = (count,), 1
    rows = max(1, MAX_PIECE // rest)
    starts = range(0, dims[0], rows)
    return [Piece((min(rows, dims[0] - s), *dims[1:]), width, is_float) for s in starts]


def decode_piece(source: ByteReader, piece: Piece) -> tuple[Patterns | None, str, int]:
    """Return (patterns or None for a pooled piece, name of the form used, dropped planes if pooled).

    Raises:
        FormatError: an unknown form, or damaged bytes.
    """
    head = source.byte()
    form, flags = head & 15, head >> 4
    if VERSION_OF.get(form, 1) > source.version:
        raise source.error("a form of a later version", form, f"version {source.version}")
    if form in _SPARSE_DECODERS:
        values = _SPARSE_DECODERS[form](source, piece.dims, flags, piece.width, piece.is_float)
        return values, NAMES[form], 0
    if form == POOLED and flags < piece.width:
        return None, NAMES[form], flags
    if form == SCALED and flags in (1, 2):
        return _decode_scaled(source, piece, flags), NAMES[form], 0
    if form == ROWS and flags in (1, 2):
        return _decode_rows(source, piece, flags), NAMES[form], 0
    if form == GRID and flags <= FIELDS | FULL_SCALE:
        if piece.width != 4 or not piece.is_float:
            raise source.error("a grid for what is not float32", piece.dims)
        return decode_grid(source, piece.count, flags), NAMES[form], 0
    if flags:
        raise source.error("unknown form of a tensor", f"form {form} with flags {flags}")
    dtype = pattern_dtype(piece.width)
    size = piece.count * piece.width
    if form == RAW:
        return np.frombuffer(source.take(size), dtype), NAMES[form], 0
    if form == VALUES:
        values, by_codebook = decode_values(source, piece.count, piece.width, piece.is_float)
        return values, NAMES[form] if by_codebook else "byte-planes", 0
    if form == STRINGS:
        packed = source.take(source.varint(source.remaining))
        return np.frombuffer(decompress(packed, size, source.where), dtype), NAMES[form], 0
    raise source.error("unknown form of a tensor", form)


def _decode_scaled(source: ByteReader, piece: Piece, width: int) -> Patterns:
    """Scales of the rows, then a record of the integers, which takes any form but pooled and scaled."""
    if piece.width != 4 or not piece.is_float or len(piece.dims) < 2 or not piece.count:
        raise source.error("scales for a tensor without rows of float32", piece.dims)
    scales, _ = decode_values(source, piece.dims[0], 4, True)
    return join_scales(scales.view("<f4"), _decode_inner(source, Piece(piece.dims, width, False)))


def _decode_rows(source: ByteReader, piece: Piece, width: int) -> Patterns:
    """Which rows are products, the others, then the products as in `scaled`."""
    if piece.width != 4 or not piece.is_float or len(piece.dims) < 2 or not piece.count:
        raise source.error("scales for a tensor without rows of float32", piece.dims)
    flag, size = source.byte(), piece.dims[0]
    if flag > 1:
        raise source.error("unknown mask flags", flag, "0 or 1")
    bits = np.unpackbits(decode_bytes(source, (size + 7) // 8, bool(flag))).view(np.bool_)
    good = bits[:size]
    if bits[size:].any() or good.all() or not good.any():
        raise source.error("a mask of rows without both kinds, or with padding bits")
    out = np.empty((size, piece.count // size), "<u4")
    count = int(good.sum())
    out[~good] = _decode_inner(source, Piece((size - count, *piece.dims[1:]), 4, True)).reshape(
        size - count, -1
    )
    out[good] = _decode_scaled(source, Piece((count, *piece.dims[1:]), 4, True), width).reshape(count, -1)
    return out.reshape(-1)


def _decode_inner(source: ByteReader, piece: Piece) -> Patterns:
    """A record within a record, which takes any form but pooled and those that hold records themselves."""
    form = source.data[source.position] & 15 if source.remaining else RAW
    if form in (SCALED, ROWS):
        raise source.error("a form within itself", NAMES[form], "any other form")
    values, _, _ = decode_piece(source, piece)
    if values is None:
        raise source.error("a tensor within a record is pooled", NAMES[POOLED], "any other form")
    return values


def read_copy(source: ByteReader, number: int) -> int | None:
    """Return which earlier piece piece `number` equals, or None if a record of its own stands here.

    Raises:
        FormatError: no such piece, or a version without copies.
    """
    if not source.remaining or source.data[source.position] & 15 != COPY:
        return None
    if source.byte() != COPY or source.version < VERSION_OF[COPY]:
        raise source.error("unknown form of a tensor", NAMES[COPY])
    back = source.varint(number)
    if not back:
        raise source.error("a tensor is a copy of itself")
    return number - back


_SPARSE_DECODERS = {
    RELATIVE: decode_relative,
    BITMAP: decode_bitmap,
    JOINT: decode_joint,
    ADAPTIVE: decode_adaptive,
}
