"""The encoder's choice: which form makes a piece of a tensor smallest.

Every form that could fit is proposed with an estimate of its size; the most promising ones are written out
and the shortest wins. Nothing here is part of the format. A new coder is one more line in `_candidates`.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.adaptive_form import encode_adaptive
from tersor.export.codec.bits import write_varint
from tersor.export.codec.byte_coding import compress, encode_bytes
from tersor.export.codec.grid_form import encode_grid, on_grid
from tersor.export.codec.scaled_form import split_scales
from tersor.export.codec.sparse_forms import (
    FINENESS,
    Sparse,
    encode_bitmap,
    encode_joint,
    encode_relative,
    gap_class,
    gaps_between,
)
from tersor.export.codec.tensor_coding import (
    ADAPTIVE,
    BITMAP,
    GRID,
    JOINT,
    POOLED,
    RAW,
    RELATIVE,
    ROWS,
    SCALED,
    STRINGS,
    VALUES,
    Piece,
)
from tersor.export.codec.value_coding import MAX_CODEBOOK, Patterns, encode_values, split_planes
from tersor.export.codec.views import View, cropped, to_view

Coder = Literal["huffman", "static", "adaptive", "auto"]

POOL_BYTES = 1 << 14
"""Larger pieces of general floats have code tables of their own; smaller ones share them in the pool."""

_FREE = 0.9
"""Share of distinct values from which on no codebook can pay: an entry takes about as much as a value."""

_SAMPLE = 1 << 12
_CLOSE_BITS = 400
_CODEBOOK_ENTRY_BITS = 26
_TABLE_ENTRY_BITS = 2.5
_PROBE_BYTES = 1 << 14


@dataclass(frozen=True)
class Candidate:
    """A form a piece could take: `bits` estimated, `encode` writes the bytes after the form byte."""

    form: int
    flags: int
    bits: float
    encode: Callable[[], bytes]


@dataclass(frozen=True)
class Content:
    """What the choice rests on: the patterns, the most common one, where the others are, how many differ.

    `codebook`: [k] distinct patterns other than the default, ascending, or None for more than 4096.
    """

    piece: Piece
    values: Patterns
    default: int
    positions: NDArray[np.int64]
    others: Patterns
    codebook: Patterns | None
    with_static: bool


def encode_piece(piece: Piece, values: Patterns, coder: Coder = "huffman", *, inner: bool = False) -> bytes:
    """Return a form byte (form | flags << 4) and the coded piece, at most 1 byte longer than the piece.

    Args:
        piece: the shape.
        values: [piece.count] patterns of piece.width bytes.
        coder: "huffman"; "static": tANS wherever it makes a block smaller; "adaptive": context-adaptive range
            coding of every piece it can code; "auto": whatever is smaller.
        inner: the piece is part of another one's record, so it is neither pooled nor scaled.

    A lone form byte POOLED means that the caller puts the piece's planes into the pool.
    """
    small = piece.is_float and values.nbytes <= POOL_BYTES
    floats = piece.is_float and piece.width == 4
    if small and not inner and len(np.unique(values)) > _FREE * len(values):
        # Free floats: only rows of products and grids can be shorter than the pool.
        best, general, most = b"", True, int(_pooled_bytes(values))
    else:
        best = _best_form(piece, values, coder)
        general, most = best[0] & 15 == RAW or (best[0] == VALUES and best[1] == 0), len(best)
    if floats and not inner and (scaled := _scaled(piece, values, coder, most)) is not None:
        best, general = scaled, False
    if floats and small and (grid := on_grid(values)) is not None:
        flags, coded = encode_grid(grid)
        most_bytes = _pooled_bytes(values) if general and not inner else len(best)
        if 1 + len(coded) < most_bytes:
            return bytes([GRID | flags << 4]) + coded
    if general and small and not inner:
        return bytes([POOLED | _zero_planes(values) << 4])
    return best if len(best) <= values.nbytes else bytes([RAW]) + values.tobytes()


def _best_form(piece: Piece, values: Patterns, coder: Coder) -> bytes:
    """Return the shortest form that holds the patterns themselves."""
    content = _content(piece, values, coder in ("static", "auto"))
    candidates = sorted(_candidates(content), key=lambda c: c.bits)
    most = candidates[0].bits * 1.03 + _CLOSE_BITS
    best = min((_written(c) for c in candidates if c.bits <= most), key=len)
    if coder in ("adaptive", "auto") and content.codebook is not None and len(content.others):
        best = _adaptive(content, best if coder == "auto" else None) or best
    return best


def _pooled_bytes(values: Patterns) -> float:
    """Return about how many bytes float32 patterns take in the pool: exponents cost half a byte."""
    return 1 + len(values) * (values.itemsize - _zero_planes(values) - 0.5)


def _scaled(piece: Piece, values: Patterns, coder: Coder, most: int) -> bytes | None:
    """Return the piece as integers times a scale for each row; None: it is not, or no shorter than `most`."""
    split = split_scales(values, piece.dims)
    if split is None:
        return None
    head, with_static = b"", coder in ("static", "auto")
    if not split.good.all():
        is_block, mask = encode_bytes(np.packbits(split.good), with_static=with_static)
        others = np.ascontiguousarray(values.reshape(piece.dims[0], -1)[~split.good]).reshape(-1)
        bad = Piece((int((~split.good).sum()), *piece.dims[1:]), 4, True)
        head = bytes([is_block]) + mask + encode_piece(bad, others, coder, inner=True)
    scales, width = split.scales.view("<u4"), split.integers.itemsize
    distinct = np.unique(scales)
    books = [None] if len(distinct) > MAX_CODEBOOK else [None, distinct]
    head += min((encode_values(scales, book, True, with_static=with_static) for book in books), key=len)
    dims = (len(scales), *piece.dims[1:])
    body = encode_piece(Piece(dims, width, False), split.integers, coder, inner=True)
    coded = bytes([(SCALED if split.good.all() else ROWS) | width << 4]) + head + body
    return coded if len(coded) < most else None


def _adaptive(content: Content, best: bytes | None) -> bytes | None:
    """Return the piece range-coded in the best of its views, or None if that is no shorter than `best`."""
    view = View(content.piece.dims, 0)
    smaller = cropped(view, content.positions)
    views = [view, smaller] if smaller.size < 0.97 * view.size else [view]
    views += [View(content.piece.dims, 1)] if len(content.piece.dims) > 1 else []
    most, shortest = content.values.nbytes if best is None else len(best) - 1, None
    for tried in views:
        positions, order = _sorted_in(tried, content)
        sparse = Sparse(
            tried,
            positions,
            content.others[order],
            content.default,
            content.codebook,
            content.piece.is_float,
            content.with_static,
        )
        coded = encode_adaptive(sparse, most=most)
        if coded is not None and len(coded) < most:
            flags = tried.split | (tried.rows is not None) << 3
            most, shortest = len(coded), bytes([ADAPTIVE | flags << 4]) + coded
    return shortest


def _written(candidate: Candidate) -> bytes:
    return bytes([candidate.form | candidate.flags << 4]) + candidate.encode()


def _zero_planes(values: Patterns) -> int:
    """Return how many of the lowest bytes of the rotated patterns are zero throughout (not all of them)."""
    planes = split_planes(values, True)
    used = [i for i, plane in enumerate(planes) if plane.any()]
    return len(planes) - 1 - max(used, default=0)


def _content(piece: Piece, values: Patterns, with_static: bool = False) -> Content:
    sample, counts = np.unique(values[:: max(1, len(values) // _SAMPLE)], return_counts=True)
    default = int(sample[counts.argmax()])
    positions = np.flatnonzero(values != values.dtype.type(default))
    others = values[positions]
    return Content(piece, values, default, positions, others, _codebook(others), with_static)


def _codebook(values: Patterns) -> Patterns | None:
    """Return the distinct ones of [m] patterns, or None for more than 4096 (a sample settles most cases)."""
    sample = values[:: max(1, len(values) // _SAMPLE)]
    # 4096 draws from 4096 equally likely values show about 63 % different ones.
    if len(values) > 2 * _SAMPLE and len(np.unique(sample)) > 0.8 * len(sample):
        return None
    distinct = np.unique(values)
    return distinct if len(distinct) <= MAX_CODEBOOK else None


def _candidates(content: Content) -> Iterator[Candidate]:
    values, is_float, with_static = content.values, content.piece.is_float, content.with_static
    plain = partial(encode_values, values, None, is_float, with_static=with_static)
    candidates = [
        Candidate(RAW, 0, 8.0 * values.nbytes, values.tobytes),
        Candidate(VALUES, 0, _plane_bits(values, is_float), plain),
    ]
    if content.codebook is not None and len(content.codebook) < MAX_CODEBOOK:
        codebook = np.sort(np.append(content.codebook, values.dtype.type(content.default)))
        bits = _index_bits(values, codebook)
        by_book = partial(encode_values, values, codebook, is_float, with_static=with_static)
        candidates.append(Candidate(VALUES, 0, bits, by_book))
    if len(content.positions) < 0.9 * len(values):
        candidates += _sparse_candidates(content)
    yield from candidates
    best = min(c.bits for c in candidates)
    if _strings_pay(values, best):
        yield Candidate(STRINGS, 0, best, partial(_strings, values))


def _strings(values: Patterns) -> bytes:
    packed = compress(values.tobytes())
    return write_varint(len(packed)) + packed


def _strings_pay(values: Patterns, best_bits: float) -> bool:
    """Whether repeated strings (found in four samples of 4 KiB) make the piece at least 10 % smaller."""
    size = _PROBE_BYTES // 4 // values.itemsize
    starts = [i * max(len(values) - size, 0) // 3 for i in range(4)] if len(values) > 4 * size else [0]
    probe = b"".join(values[s : s + (size if len(starts) == 4 else len(values))].tobytes() for s in starts)
    return 8 * len(zlib.compress(probe, 1, -15)) < 0.9 * best_bits * len(probe) / values.nbytes


def _entropy_bits(counts: NDArray[np.integer]) -> float:
    """Return about how many bits a Huffman block takes whose symbols occur [a] times each."""
    used = counts[counts > 0].astype(np.float64)
    total = used.sum()
    if len(used) < 2:
        return 8.0
    return float(max(total * np.log2(total) - (used * np.log2(used)).sum(), total)) + _TABLE_ENTRY_BITS * len(
        used
    )


def _index_bits(values: Patterns, codebook: Patterns) -> float:
    bits = _CODEBOOK_ENTRY_BITS * len(codebook)
    return bits + _entropy_bits(np.bincount(np.searchsorted(codebook, values))) if len(values) else bits


def _plane_bits(values: Patterns, is_float: bool) -> float:
    planes = split_planes(values, is_float)
    return (
        sum(min(_entropy_bits(np.bincount(plane)), 8.0 * len(plane)) for plane in planes)
        if len(values)
        else 0
    )


def _sparse_candidates(content: Content) -> list[Candidate]:
    """Return the sparse forms, in the order of positions that makes gap coding smallest."""
    others, codebook, is_float = content.others, content.codebook, content.piece.is_float
    view, gap_bits = min(
        ((v, _gap_costs(gaps_between(_sorted_in(v, content)[0]))) for v in _views(content)),
        key=lambda choice: min(choice[1]) + _mask_bits(choice[0]),
    )
    positions, order = _sorted_in(view, content)
    sparse = Sparse(view, positions, others[order], content.default, codebook, is_float, content.with_static)
    flags = view.split | (view.rows is not None) << 3
    book_bits = 0 if codebook is None else _CODEBOOK_ENTRY_BITS * len(codebook)
    value_bits = _plane_bits(others, is_float) if codebook is None else _index_bits(others, codebook)
    bits = _bitmap_bits(sparse) + _mask_bits(view) + value_bits
    candidates = [Candidate(BITMAP, flags, bits, partial(encode_bitmap, sparse))]
    for f in sorted(FINENESS, key=lambda f: gap_bits[f])[:2]:
        bits = gap_bits[f] + _mask_bits(view) + value_bits
        candidates.append(Candidate(RELATIVE, flags, bits, partial(encode_relative, sparse, f)))
    if codebook is not None and len(others):
        for f in FINENESS:
            bits = _joint_bits(sparse, f) + _mask_bits(view) + book_bits
            candidates.append(Candidate(JOINT, flags, bits, partial(encode_joint, sparse, f)))
    return candidates


def _mask_bits(view: View) -> int:
    return 0 if view.rows is None else sum(view.shape)


def _bitmap_bits(sparse: Sparse) -> float:
    mask = np.zeros(sparse.view.size, np.bool_)
    mask[sparse.positions] = True
    return min(_entropy_bits(np.bincount(np.packbits(mask))), len(mask)) if len(mask) else 0


def _views(content: Content) -> Iterator[View]:
    """Yield the orders of positions worth trying: every split, with and without dead rows and columns."""
    dims = content.piece.dims
    for split in range(len(dims)):
        view = View(dims, split)
        yield view
        smaller = cropped(view, content.positions)
        if smaller.size < 0.97 * view.size:
            yield smaller


def _sorted_in(view: View, content: Content) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (positions in the view, ascending; which of the values comes where)."""
    positions = to_view(view, content.positions)
    if view.split == 0:
        return positions, np.arange(len(positions))
    order = np.argsort(positions, kind="stable")
    return positions[order], order


def _gap_costs(gaps: NDArray[np.int64]) -> list[float]:
    """Return for every fineness about how many bits the gaps take."""
    if not len(gaps):
        return [0.0] * len(FINENESS)
    distinct, counts = np.unique(gaps, return_counts=True)
    costs = []
    for fineness in FINENESS:
        classes, extra = gap_class(distinct, fineness)
        costs.append(_entropy_bits(np.bincount(classes, counts)) + float((extra * counts).sum()))
    return costs


def _joint_bits(sparse: Sparse, fineness: int) -> float:
    assert sparse.codebook is not None
    gaps = gaps_between(sparse.positions)
    classes, extra = gap_class(gaps[gaps > 0] - 1, fineness)
    values = np.bincount(np.searchsorted(sparse.codebook, sparse.values))
    return _entropy_bits(np.concatenate((values, np.bincount(classes)))) + float(extra.sum())
