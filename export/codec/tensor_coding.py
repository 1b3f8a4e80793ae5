"""The forms a piece of a tensor can take in a packed file, and their decoders.

A form is a number in the file, a name in the ledger, and a decoder; which form an encoder takes is decided
in export/codec/form_choice.py.
"""

from dataclasses import dataclass

import numpy as np

from tersor.export.codec.adaptive_form import decode_adaptive
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.byte_coding import decompress
from tersor.export.codec.scaled_form import join_scales
from tersor.export.codec.sparse_forms import decode_bitmap, decode_joint, decode_relative
from tersor.export.codec.value_coding import Patterns, decode_values, pattern_dtype

MAX_PIECE = 3 << 19
"""Part of the format: most elements coded at once; it bounds what a decoder needs beside its output."""

RAW, POOLED, VALUES, STRINGS, RELATIVE, BITMAP, JOINT, ADAPTIVE, SCALED = range(9)
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
    if form in _SPARSE_DECODERS:
        values = _SPARSE_DECODERS[form](source, piece.dims, flags, piece.width, piece.is_float)
        return values, NAMES[form], 0
    if form == POOLED and flags < piece.width:
        return None, NAMES[form], flags
    if form == SCALED and flags in (1, 2):
        return _decode_scaled(source, piece, flags), NAMES[form], 0
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
    raise source.error("unknown form of a tensor", form, f"0..{len(NAMES) - 1}")


def _decode_scaled(source: ByteReader, piece: Piece, width: int) -> Patterns:
    """Scales of the rows, then a record of the integers, which takes any form but pooled and scaled."""
    if piece.width != 4 or not piece.is_float or len(piece.dims) < 2 or not piece.count:
        raise source.error("scales for a tensor without rows of float32", piece.dims)
    scales, _ = decode_values(source, piece.dims[0], 4, True)
    integers, _, _ = decode_piece(source, Piece(piece.dims, width, False))
    if integers is None:
        raise source.error("a tensor's integers are pooled", NAMES[POOLED], "any other form")
    return join_scales(scales.view("<f4"), integers)


_SPARSE_DECODERS = {
    RELATIVE: decode_relative,
    BITMAP: decode_bitmap,
    JOINT: decode_joint,
    ADAPTIVE: decode_adaptive,
}
