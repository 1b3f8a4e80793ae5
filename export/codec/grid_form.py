"""Small vectors of floats on one grid (biases and BatchNorm that were rounded): integers times one scale.

No table, because there are too few numbers to pay for one: integers as Rice codes (Rice and Plaunt 1971)
around a centre, or as fields of equal width above their least. From version 2 of the format on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.bits import ByteReader, write_varint
from tersor.export.codec.value_coding import Patterns

MOST = 1 << 23
"""Largest integer, so that it is a float32; part of the format, as is what stands below."""
MOST_COUNT = 1 << 16
_MOST_ORDER = 24
_SCALE_BIAS = 127
FIELDS, FULL_SCALE = 1, 2
"""Flags: fields of equal width in place of Rice codes; the scale takes four bytes in place of an exponent."""


@dataclass(frozen=True)
class Grid:
    """`scale`: float32. `integers`: [n] int64, |integers| < 2**23."""

    scale: np.float32
    integers: NDArray[np.int64]


def on_grid(values: Patterns) -> Grid | None:
    """Return [n] float32 patterns as multiples of the largest power of two they all share, or None.

    A grid whose scale is no power of two shows in rows of a tensor: see scaled_form.py.
    """
    magnitudes = values & np.uint32(0x7FFFFFFF)
    if (magnitudes != values).any() and (values == np.uint32(0x80000000)).any():
        return None
    exponents = (magnitudes >> np.uint32(23)).astype(np.int64)
    some = magnitudes > 0
    if not some.any() or exponents.max() == 255 or exponents[some].min() == 0:
        return None
    mantissas = magnitudes[some] & np.uint32(0x7FFFFF) | np.uint32(0x800000)
    lowest = np.frexp((mantissas & -mantissas).astype(np.float64))[1] - 1
    step = int((exponents[some] - 150 + lowest).min())
    if exponents.max() - 127 - step >= 23 or not -_SCALE_BIAS < step < _SCALE_BIAS:
        return None
    integers = np.ldexp(values.view("<f4").astype(np.float64), -step).astype(np.int64)
    return Grid(np.float32(2.0**step), integers)


def encode_grid(grid: Grid) -> tuple[int, bytes]:
    """Return (flags, the coded vector) of a grid; see docs/format.md, "grid"."""
    power = float(np.log2(grid.scale)) if grid.scale > 0 else 0.5
    full = not power.is_integer() or abs(power) > _SCALE_BIAS
    head = np.float32(grid.scale).tobytes() if full else bytes([int(power) + _SCALE_BIAS])
    fields, body = min(_rice(grid.integers), _fields(grid.integers), key=lambda coded: len(coded[1]))
    return fields | full * FULL_SCALE, head + body


def _fields(integers: NDArray[np.int64]) -> tuple[int, bytes]:
    least = int(integers.min())
    width = int(integers.max() - least).bit_length()
    return FIELDS, _head(width, least) + _low_bits(integers - least, width)


def _rice(integers: NDArray[np.int64]) -> tuple[int, bytes]:
    """Return the shortest Rice code around 0 or the median."""
    best: tuple[int, int, NDArray[np.int64], int] | None = None
    for centre in {0, int(np.sort(integers)[len(integers) // 2])}:
        away = integers - centre
        zigzag = np.where(away < 0, -2 * away - 1, 2 * away)
        likely = max(int(zigzag.sum() // len(zigzag)).bit_length() - 1, 0)
        for order in range(max(likely - 1, 0), likely + 2):
            bits = int((zigzag >> order).sum()) + len(zigzag) * (order + 1) + 8 * len(_head(order, centre))
            if best is None or bits < best[0]:
                best = bits, order, zigzag, centre
    assert best is not None
    _, order, zigzag, centre = best
    ends = np.cumsum((zigzag >> order) + 1)
    unary = np.zeros(int(ends[-1]), np.uint8)
    unary[ends - 1] = 1
    return 0, _head(order, centre) + _low_bits(zigzag & ((1 << order) - 1), order) + np.packbits(
        unary
    ).tobytes()


def _head(order: int, centre: int) -> bytes:
    return bytes([order]) + write_varint(-2 * centre - 1 if centre < 0 else 2 * centre)


def _low_bits(values: NDArray[np.int64], width: int) -> bytes:
    shifts = np.arange(width - 1, -1, -1)
    return np.packbits((values[:, None] >> shifts & 1).astype(np.uint8)).tobytes()


def decode_grid(source: ByteReader, count: int, flags: int) -> Patterns:
    """Return [count >= 1] float32 patterns; the inverse of `encode_grid`.

    Raises:
        FormatError: numbers out of range, a stream that ends early, padding that is not zero.
    """
    if not 1 <= count <= MOST_COUNT:
        raise source.error("a grid for too many numbers", count, f"1..{MOST_COUNT}")
    scale = np.frombuffer(source.take(4), "<f4")[0] if flags & FULL_SCALE else None
    if scale is None:
        scale = np.float32(2.0 ** (source.byte() - _SCALE_BIAS))
    order, zigzag = source.byte(), source.varint(2 * MOST)
    if order > _MOST_ORDER:
        raise source.error("a number of bits is out of range", order, f"at most {_MOST_ORDER}")
    centre = -(zigzag + 1) // 2 if zigzag & 1 else zigzag // 2
    integers = _read_fields(source, count, order)
    if not flags & FIELDS:
        coded = integers | _read_unary(source, count) << order
        integers = np.where(coded & 1, -(coded + 1) // 2, coded // 2)
    integers = integers + centre
    if np.abs(integers).max() >= MOST:
        raise source.error("an integer is out of range", int(np.abs(integers).max()), f"below {MOST}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(integers.astype(np.float32) * scale, "<f4").view("<u4")


def _read_fields(source: ByteReader, count: int, width: int) -> NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(source.take((count * width + 7) // 8), np.uint8))
    if bits[count * width :].any():
        raise source.error("padding bits are not zero")
    out = np.zeros(count, np.int64)
    for column in bits[: count * width].reshape(count, width).T if width else ():
        out = out << 1 | column
    return out


def _read_unary(source: ByteReader, count: int) -> NDArray[np.int64]:
    """Read `count` numbers as so many zeros and a one each, in at most `count` bytes."""
    ahead = np.frombuffer(source.data[source.position : source.position + count], np.uint8)
    ones = np.flatnonzero(np.unpackbits(ahead))[:count]
    if len(ones) < count:
        raise source.error("Rice codes end too early", f"{len(ones)} numbers", f"{count} numbers")
    end = int(ones[-1]) + 1
    last = source.take((end + 7) // 8)
    if end % 8 and last[-1] & (0xFF >> end % 8):
        raise source.error("padding bits are not zero")
    return np.diff(ones, prepend=-1) - 1
