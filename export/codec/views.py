"""Orders in which a tensor's positions are counted: along rows or columns, dead ones left out.

A tensor [d0, d1, ...] is looked at as a matrix, its first `split` axes being the rows. Weights that survive
pruning cluster in rows or columns, so the gaps between them are shorter in one of the orders.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.bits import ByteReader
from tersor.export.codec.byte_coding import decode_bytes, encode_bytes

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """How positions are counted.

    `split` 0: in memory order (the matrix is dims[0] x rest); s >= 1: down the columns of the matrix
    product(dims[:s]) x rest. `rows` and `columns`: [r], [c] bool, which of them are counted, or None for all.
    """

    dims: tuple[int, ...]
    split: int
    rows: NDArray[np.bool_] | None = None
    columns: NDArray[np.bool_] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the whole matrix."""
        cut = max(self.split, 1)
        return math.prod(self.dims[:cut]), math.prod(self.dims[cut:])

    @property
    def kept(self) -> tuple[int, int]:
        """(rows, columns) that are counted."""
        rows, columns = self.shape
        return (
            rows if self.rows is None else int(self.rows.sum()),
            columns if self.columns is None else int(self.columns.sum()),
        )

    @property
    def size(self) -> int:
        """Number of positions in this view."""
        rows, columns = self.kept
        return rows * columns


def to_view(view: View, positions: Positions) -> Positions:
    """Return [m] positions in the view for [m] positions in memory order (those of counted rows only)."""
    if view.split == 0 and view.rows is None:
        return positions
    row, column = np.divmod(positions, view.shape[1])
    if view.rows is not None and view.columns is not None:
        row = (np.cumsum(view.rows) - 1)[row]
        column = (np.cumsum(view.columns) - 1)[column]
    rows, columns = view.kept
    return column * rows + row if view.split else row * columns + column


def from_view(view: View, positions: Positions) -> Positions:
    """Return [m] positions in memory order for [m] positions in the view; the inverse of `to_view`."""
    if view.split == 0 and view.rows is None:
        return positions
    rows, columns = view.kept
    if view.split:
        column, row = np.divmod(positions, rows)
    else:
        row, column = np.divmod(positions, columns)
    if view.rows is not None and view.columns is not None:
        row, column = np.flatnonzero(view.rows)[row], np.flatnonzero(view.columns)[column]
    return row * view.shape[1] + column


def cropped(view: View, positions: Positions) -> View:
    """Return the view without the rows and columns that hold none of the [m] positions (memory order)."""
    rows, columns = (np.zeros(size, np.bool_) for size in view.shape)
    row, column = np.divmod(positions, view.shape[1])
    rows[row] = True
    columns[column] = True
    return View(view.dims, view.split, rows, columns)


def write_masks(view: View, *, with_static: bool = False) -> bytes:
    """Return the stored form of a cropped view's masks: a flag byte, then 8 rows (columns) to a byte."""
    if view.rows is None or view.columns is None:
        return b""
    coded = [encode_bytes(np.packbits(mask), with_static=with_static) for mask in (view.rows, view.columns)]
    return bytes([coded[0][0] | coded[1][0] << 1]) + coded[0][1] + coded[1][1]


def read_view(source: ByteReader, dims: tuple[int, ...], split: int, is_cropped: bool) -> View:
    """Read a view; the inverse of `write_masks`. FormatError when split or masks do not fit the shape."""
    if split >= max(len(dims), 1):
        raise source.error("a tensor is split behind its last axis", split, f"below {len(dims)}")
    view = View(dims, split)
    if not is_cropped:
        return view
    flags = source.byte()
    if flags > 3:
        raise source.error("unknown mask flags", flags, "0..3")
    masks = []
    for i, size in enumerate(view.shape):
        packed = decode_bytes(source, (size + 7) // 8, bool(flags >> i & 1))
        bits = np.unpackbits(packed).view(np.bool_)
        if bits[size:].any():
            raise source.error("padding bits are not zero")
        masks.append(bits[:size])
    return View(dims, split, *masks)
