"""The form `adaptive`: positions and values of a tensor with one dominating value, range-coded together."""

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec import adaptive
from tersor.export.codec.bits import ByteReader, write_varint
from tersor.export.codec.sparse_forms import Sparse, place, read_head, write_head
from tersor.export.codec.value_coding import MAX_CODEBOOK, Patterns, read_codebook, write_codebook
from tersor.export.codec.views import View, read_view


def encode_adaptive(sparse: Sparse, *, most: int, engine: adaptive.Engine = "auto") -> bytes | None:
    """Return head, codebook and coded symbols, or None if they take over `most` bytes; see docs/format.md.

    Needs a codebook and at least one value.
    """
    if sparse.codebook is None or not len(sparse.values):
        raise ValueError("adaptive coding needs a codebook and values")
    symbols = np.zeros(sparse.view.size, np.uint16)
    symbols[sparse.positions] = 1 + np.searchsorted(sparse.codebook, sparse.values)
    size = len(sparse.codebook)
    columns, kernel = geometry(sparse.view)
    coded = adaptive.encode(symbols, columns, kernel, depth_of(size), most=most, engine=engine)
    if coded is None:
        return None
    head = write_head(sparse, 0) + write_varint(size) + write_codebook(sparse.codebook)
    return head + write_varint(len(coded)) + coded


def decode_adaptive(
    source: ByteReader, dims: tuple[int, ...], flags: int, width: int, is_float: bool
) -> Patterns:
    """Return [n] patterns, n = product(dims); the inverse of `encode_adaptive`."""
    view = read_view(source, dims, flags & 7, bool(flags & 8))
    unused, default = read_head(source, width)
    size = source.varint(MAX_CODEBOOK)
    if unused or not size or not view.size:
        raise source.error("adaptive coding without positions or a codebook", (unused, size, view.size))
    codebook = read_codebook(source, size, width)
    columns, kernel = geometry(view)
    length = source.varint(source.remaining)
    symbols = adaptive.decode(source, length, view.size, columns, kernel, depth_of(size))
    positions: NDArray[np.int64] = np.flatnonzero(symbols)
    index = symbols[positions] - np.uint16(1)
    if len(index) and int(index.max()) >= size:
        raise source.error("an index behind the end of its codebook", int(index.max()), f"< {size}")
    return place(source, view, positions, codebook[index], default)


def geometry(view: View) -> tuple[int, int]:
    """(columns of the matrix in the view\'s order, taps of a filter that lie side by side in it)."""
    rows, columns = view.kept
    taps = int(np.prod(view.dims[2:])) if view.split == 0 and view.rows is None else 1
    return (rows if view.split else columns), max(taps, 1)


def depth_of(size: int) -> int:
    """Bits of an index below `size` >= 1."""
    return (size - 1).bit_length()
