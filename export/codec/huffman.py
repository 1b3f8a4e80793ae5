"""Canonical length-limited Huffman coding of symbol arrays: one block = one table and its bit streams.

Two engines write and read the same bytes: "numba" for long arrays, "plain" (numpy) for short ones and for
places where numba does not work. "auto" takes numba from NUMBA_FROM symbols on, so that packing a small
model never waits for a compiler.
"""

import sys
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.bits import ByteReader, pack_fields, windows, write_varint
from tersor.export.codec.prefix_codes import CodeTable, choose_table, lookup, read_table, write_table

Engine = Literal["auto", "numba", "plain"]

STREAMS_FROM = 1 << 15
"""Part of the format: this many symbols or more are split into four streams, fewer into one."""

NUMBA_FROM = 1 << 19
"""Not part of the format: where "auto" changes from plain to numba, whose first use costs 1.5 to 3 s."""

NUMBA_LOADED_FROM = 1 << 16
"""The same once numba is loaded."""

_CHUNK = 1 << 17
"""Symbols or bits the plain engine looks at together: small enough for the cache."""


def encode(symbols: NDArray[np.unsignedinteger], *, engine: Engine = "auto") -> bytes:
    """Return one Huffman block holding `symbols`.

    Args:
        symbols: [n] uint8 or uint16, n >= 1, at most 2**14 distinct values. The number n is not stored.
        engine: who does the work; the bytes are the same.

    Raises:
        ValueError: wrong dtype, no symbols, or more than 2**14 distinct ones.
    """
    symbols = _checked(symbols)
    table = choose_table(histogram(symbols, engine=engine))
    return write_table(table) + encode_streams(symbols, table, engine=engine)


def encode_streams(
    symbols: NDArray[np.unsignedinteger], table: CodeTable, *, engine: Engine = "auto"
) -> bytes:
    """Return the streams of a block behind its table, nothing for a lone symbol; see `encode`."""
    if table.longest == 0:
        return b""
    parts, fast = quarters(len(symbols)), _fast(engine, len(symbols))
    if fast:
        streams = fast.encode(symbols, table, parts)
    else:
        streams = [_encode_stream(symbols[a:b], table) for a, b in parts]
    sizes = b"".join(write_varint(len(s)) for s in streams) if len(streams) > 1 else b""
    return b"".join((sizes, *streams))


def decode(
    source: ByteReader, count: int, alphabet: int, *, engine: Engine = "auto"
) -> tuple[NDArray[np.unsignedinteger], CodeTable]:
    """Read one Huffman block of `count` symbols; the inverse of `encode`.

    Args:
        source: where the block starts; left at the byte after it.
        count: number of symbols n >= 1. The caller answers for it: n (or 2 n) bytes are allocated.
        alphabet: every symbol is below this number, at most 65536; the result is uint8 up to 256.
        engine: who does the work; the symbols are the same.

    Returns:
        ([n] uint8 or uint16, the table that was read).

    Raises:
        FormatError: a wrong table, a stream that is too short, too long or not padded with zero bits.
        ValueError: a count below 1 or an alphabet over 65536.
    """
    if count < 1 or alphabet > 1 << 16:
        raise ValueError(f"cannot decode {count} symbols of an alphabet of {alphabet}")
    table = read_table(source, alphabet)
    dtype = np.dtype(np.uint8 if alphabet <= 256 else np.uint16)
    return decode_streams(source, count, table, dtype, engine=engine), table


def decode_streams(
    source: ByteReader, count: int, table: CodeTable, dtype: np.dtype, *, engine: Engine = "auto"
) -> NDArray[np.unsignedinteger]:
    """Return [count] symbols of `dtype` from the streams behind a table; see `decode`."""
    if table.longest == 0:
        return np.full(count, table.symbols[0], dtype)
    parts = quarters(count)
    if len(parts) == 1:
        return _decode_single(source, count, table, dtype)
    sizes = [source.varint(source.remaining) for _ in parts]
    streams = source.take(sum(sizes))
    shortest = int(table.lengths.min())
    for size, (a, b) in zip(sizes, parts):
        if 8 * size < (b - a) * shortest:
            raise source.error("a Huffman stream is too short", f"{size} bytes", f"{b - a} symbols")
    out = np.empty(count, dtype)
    fast = _fast(engine, count)
    ends = (fast.decode if fast else _decode_streams)(streams, sizes, table, parts, out)
    begin = 0
    for size, end in zip(sizes, ends):
        _check_end(source, streams[begin : begin + size], end)
        begin += size
    return out


def histogram(symbols: NDArray[np.unsignedinteger], *, engine: Engine = "auto") -> NDArray[np.int64]:
    """Return how often each symbol occurs, [largest + 1] or more counts of [n >= 1] uint8 or uint16."""
    if fast := _fast(engine, len(symbols)):
        return fast.histogram(symbols)
    size = int(symbols.max()) + 1
    total = np.zeros(size, np.int64)
    for i in range(0, len(symbols), _CHUNK):
        total += np.bincount(symbols[i : i + _CHUNK], minlength=size)
    return total


def quarters(count: int) -> list[tuple[int, int]]:
    """Return the (start, stop) symbol ranges of the streams: one range, or four of ceil(count / 4)."""
    if count < STREAMS_FROM:
        return [(0, count)]
    step = -(-count // 4)
    return [(i * step, min((i + 1) * step, count)) for i in range(4)]


def _checked(symbols: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    if symbols.dtype not in (np.uint8, np.uint16) or symbols.ndim != 1 or not len(symbols):
        raise ValueError(f"wanted [n >= 1] uint8 or uint16, got {symbols.shape} {symbols.dtype}")
    return np.ascontiguousarray(symbols)


def _fast(engine: Engine, count: int) -> ModuleType | None:
    """Return the numba module, or None where the plain path is asked for, better, or all there is."""
    enough = NUMBA_LOADED_FROM if "tersor.export.codec.huffman_fast" in sys.modules else NUMBA_FROM
    use_numba = engine == "numba" or (engine == "auto" and count >= enough)
    if not use_numba or count < STREAMS_FROM or sys.byteorder != "little":
        return None
    try:
        from tersor.export.codec import huffman_fast
    except ImportError:
        if engine == "numba":
            raise
        return None
    return huffman_fast


def _encode_stream(symbols: NDArray[np.unsignedinteger], table: CodeTable) -> bytes:
    size = int(table.symbols[-1]) + 1
    codes = np.zeros(size, np.uint16)
    lengths = np.zeros(size, np.uint8)
    codes[table.symbols] = table.codes()
    lengths[table.symbols] = table.lengths
    return pack_fields(codes[symbols], lengths[symbols])


def _decode_single(
    source: ByteReader, count: int, table: CodeTable, dtype: np.dtype
) -> NDArray[np.unsignedinteger]:
    """Decode a lone stream, whose size is known only after its last symbol."""
    most = min(source.remaining, (count * table.longest + 7) // 8)
    ahead = source.data[source.position : source.position + most]
    out = np.empty(count, dtype)
    end = _decode_stream(ahead, table, out)
    if not 0 <= end <= 8 * most:
        raise source.error("the packed file ends too early", f"{most} bytes of code words")
    _check_end(source, source.take((end + 7) // 8), end)
    return out


def _check_end(source: ByteReader, stream: memoryview, end: int) -> None:
    """FormatError unless the last code word ends in the last byte and only zero bits follow."""
    if end < 0 or (end + 7) // 8 != len(stream):
        raise source.error("a Huffman stream ends in the wrong place", f"bit {end}", f"{len(stream)} bytes")
    if end % 8 and stream[-1] & (0xFF >> end % 8):
        raise source.error("padding bits are not zero")


def _decode_streams(
    data: memoryview,
    sizes: list[int],
    table: CodeTable,
    parts: list[tuple[int, int]],
    out: NDArray[np.unsignedinteger],
) -> list[int]:
    """Fill `out` from streams that lie back to back; return the bit after each one's last symbol."""
    ends, begin = [], 0
    for size, (a, b) in zip(sizes, parts):
        ends.append(_decode_stream(data[begin : begin + size], table, out[a:b]))
        begin += size
    return ends


def _decode_stream(stream: memoryview, table: CodeTable, out: NDArray[np.unsignedinteger]) -> int:
    """Fill `out` from one stream; return the bit after the last symbol (-1: the stream is too short).

    For all bit positions of a chunk at once: which symbol would start here and where the next one would.
    Then only the walk from symbol to symbol is a Python loop.
    """
    padded = np.zeros(len(stream) + 16, np.uint8)
    padded[: len(stream)] = np.frombuffer(stream, np.uint8)
    symbols, lengths = lookup(table, table.longest)
    done, bit, total = 0, 0, 8 * len(stream)
    while done < len(out) and bit < total:
        span = min(_CHUNK, total - bit)
        window = windows(padded, np.arange(bit, bit + span))
        entry = window >> np.uint64(64 - table.longest)
        following = (np.arange(span) + lengths[entry]).tolist()
        starts, here = _walk(following, span, len(out) - done)
        out[done : done + len(starts)] = symbols[entry[starts]]
        done, bit = done + len(starts), bit + here
    return bit if done == len(out) else -1


def _walk(following: list[int], span: int, most: int) -> tuple[list[int], int]:
    """Return up to `most` symbol starts within a chunk of `span` bits, and where the next one would be."""
    starts: list[int] = []
    here = 0
    while here < span and len(starts) < most:
        starts.append(here)
        here = following[here]
    return starts, here
