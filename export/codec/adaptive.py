"""Context-adaptive binary range coding of sparse matrices; export/codec/adaptive_model.py is the model.

The same source runs in two engines: compiled by numba on arrays, or as plain Python on lists, some hundred
times slower. Bytes are equal.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec import adaptive_model as model
from tersor.export.codec.bits import ByteReader

Engine = Literal["auto", "numba", "plain"]
Symbols = NDArray[np.uint16]
Make = Callable[[Any, str], Any]
"""Makes a sequence of numbers from values and a type: a list or an array, as the engine needs."""

NUMBA_FROM = 200_000
"""So many positions take the plain engine as long as loading numba: it codes the first ones of a process."""
_plain = {"positions": 0}

_CURVE = (
    22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768, 40793,
    47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514,
)  # fmt: skip
"""2^16 / (1 + e^-x) at x = -8, -7.5, ... 8; part of the format, as all tables here."""
_BOUNDS = (1, 2, 3, 4, 6, 9, 13, 19, 28, 40, 58, 83, 118, 160, 205)
_PARTS = ("contexts", "mix", "learn", "one_bit", "index", "code")
"""Functions of the model, callees first."""


def encode(
    symbols: Symbols, columns: int, kernel: int, depth: int, *, most: int, engine: Engine = "auto"
) -> bytes | None:
    """Return the coded symbols without trailing zero bytes, or None when they would take over `most` bytes.

    Args:
        symbols: [rows * columns], 0 for the default value or 1 + an index below 2^depth.
        columns: of the matrix, at least 1.
        kernel: columns that belong together, 1 if none.
        depth: bits of an index, 0 to 12.
    """
    run, make = _run(engine, len(symbols))
    room = most + model.MARGIN + 4
    io, data = make([0, model.ALL, 0, 0, room], "i8"), make(bytes(room), "u1")
    state = _state(columns, depth, make)
    if not run(make(symbols, "u2"), columns, kernel, depth, False, io, data, _tables(make), state):
        return None
    packed = bytes(data[: int(io[3])]) + _flush(int(io[0]), int(io[1]))
    packed = packed.rstrip(b"\0")
    return packed if len(packed) <= most else None


def decode(
    source: ByteReader,
    size: int,
    count: int,
    columns: int,
    kernel: int,
    depth: int,
    *,
    engine: Engine = "auto",
) -> Symbols:
    """Return [count] symbols, `count` a multiple of `columns`; the inverse of `encode`.

    Args:
        source: read for `size` bytes.

    Raises:
        FormatError: there are more bytes than the symbols need, or they end in a zero byte.
    """
    data = bytes(source.take(size))
    run, make = _run(engine, count)
    symbols, coded = make(np.zeros(count, np.uint16), "u2"), make(data, "u1")
    io = make([0, model.ALL, int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4, size], "i8")
    run(symbols, columns, kernel, depth, True, io, coded, _tables(make), _state(columns, depth, make))
    if size > io[3] or data.endswith(b"\0"):
        raise source.error("bytes behind the end of adaptive coding", size, f"at most {int(io[3])}")
    return np.asarray(symbols, np.uint16)


def _flush(low: int, high: int) -> bytes:
    """The fewest bytes that, followed by zeros, are a number in low .. high."""
    for length in range(4):
        mask = (model.ALL << (32 - 8 * length)) & model.ALL
        if (high & mask) >= low:
            return (high & mask).to_bytes(4, "big")[:length]
    return high.to_bytes(4, "big")


def _run(engine: Engine, count: int) -> tuple[Callable[..., Any], Make]:
    """The model's `code`, and what makes the sequences that it works on."""
    many = bool(_compiled.cache_info().currsize) or _plain["positions"] + count >= NUMBA_FROM
    if engine == "numba" or (engine == "auto" and many):
        try:
            return _compiled(), _array
        except ImportError:
            if engine == "numba":
                raise
    _plain["positions"] += count
    return model.code, _list


def _array(values: Any, dtype: str) -> NDArray[np.integer]:
    """A new array, small types for what is looked up at every position: it must stay in the L1 cache."""
    return np.array(memoryview(values) if isinstance(values, bytes) else values, dtype)


def _list(values: Any, _dtype: str) -> list[int]:
    return list(bytearray(values)) if isinstance(values, bytes) else [int(v) for v in values]


@cache
def _compiled() -> Callable[..., Any]:
    """The model's functions, compiled, each seeing the compiled ones it calls; kept on disk if possible."""
    from numba import njit

    names = dict(vars(model))
    for part in _PARTS:
        plain = FunctionType(vars(model)[part].__code__, names, part)
        try:
            names[part] = njit(cache=True, nogil=True)(plain)
        except RuntimeError:  # no writable place for the cache
            names[part] = njit(nogil=True)(plain)
    return names["code"]


@cache
def _tables(make: Make) -> tuple[Any, ...]:
    """squash [4095], stretch [4096], rate [256] and level [257]; see docs/format.md."""
    squash = []
    for t in range(1, 4096):
        low, part = t >> 7, t & 127
        squash.append((_CURVE[low] * (128 - part) + _CURVE[low + 1] * part + 64) >> 7)
    stretch, t = [], 0
    for i in range(4096):
        while t < 4094 and squash[t] < 16 * i + 8:
            t += 1
        stretch.append(t - 2047)
    rate = [2 * 65536 // (2 * n + 3) for n in range(256)]
    level = [sum(density >= bound for bound in _BOUNDS) for density in range(257)]
    return make(squash, "i4"), make(stretch, "i2"), make(rate, "i4"), make(level, "i1")


def _state(columns: int, depth: int, make: Make) -> tuple[Any, ...]:
    """What is learnt, as it is before the first symbol, and work space."""
    slots, nodes = [0] * model.SLOTS, 1 << depth
    return (
        make(slots, "i4"), make(slots, "u1"), make([model.FIRST_WEIGHT] * (model.SETS * model.INPUTS), "i8"),
        make([model.HALF] * nodes, "i4"), make([0] * nodes, "u1"),
        make(bytes(columns + 2), "u1"), make([0] * columns, "i4"),
        make([0] * model.INPUTS, "i8"), make([0] * model.INPUTS, "i8"),
    )  # fmt: skip
