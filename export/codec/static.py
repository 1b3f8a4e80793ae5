"""Static entropy coding of symbol arrays (tANS): within a percent of the entropy; Huffman pays whole bits.

Symbols are coded from the last to the first and decoded from the first to the last; one block = one table
and its bit streams. Two engines as in huffman.py: "numba" for long arrays, "plain" for short ones; bytes are
equal.
"""

import sys
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.bits import ByteReader, pack_fields, write_varint
from tersor.export.codec.huffman import Engine, quarters
from tersor.export.codec.state_codes import StateTable

NUMBA_FROM = 1 << 18
"""Not part of the format: where "auto" changes from plain to numba."""
NUMBA_LOADED_FROM = 1 << 13
"""The same once numba is loaded."""


def encode(symbols: NDArray[np.unsignedinteger], table: StateTable, *, engine: Engine = "auto") -> bytes:
    """Return the streams of a static block, each with its size before it; the table is written by the caller.

    Args:
        symbols: [n >= 1] uint8 or uint16, all in the table.
        table: see `choose_states`.
        engine: who does the work; the bytes are the same.
    """
    parts = quarters(len(symbols))
    fast = _fast(engine, len(symbols))
    if fast:
        streams = fast.encode(symbols, table, parts)
    else:
        streams = [_encode_stream(symbols[a:b], table) for a, b in parts]
    return b"".join([*(write_varint(len(s)) for s in streams), *streams])


def decode(
    source: ByteReader, count: int, table: StateTable, dtype: np.dtype, *, engine: Engine = "auto"
) -> NDArray[np.unsignedinteger]:
    """Return [count >= 1] symbols of `dtype`; the inverse of `encode`.

    Raises:
        FormatError: a stream that is too short, too long, or does not end in the state it must end in.
    """
    parts = quarters(count)
    sizes = [source.varint(source.remaining) for _ in parts]
    streams = source.take(sum(sizes))
    out = np.empty(count, dtype)
    begins, begin = [], 0
    for size in sizes:
        begins.append(_first_bit(source, streams[begin : begin + size], table.bits))
        begin += size
    fast = _fast(engine, count)
    if fast:
        ends = fast.decode(streams, sizes, begins, table, parts, out)
    else:
        ends, begin = [], 0
        for size, bit, (a, b) in zip(sizes, begins, parts):
            ends.append(_decode_stream(streams[begin : begin + size], bit, table, out[a:b]))
            begin += size
    for size, (bit, state) in zip(sizes, ends):
        if bit != 8 * size or state:
            raise source.error(
                "a static stream ends in the wrong place", f"bit {bit}, state {state}", f"bit {8 * size}"
            )
    return out


def _first_bit(source: ByteReader, stream: memoryview, bits: int) -> int:
    """Return the bit after the 1 that tells where a stream begins."""
    if not len(stream) or not stream[0] or 8 * len(stream) < bits + 1:
        raise source.error("a static stream does not begin", f"{len(stream)} bytes")
    return 9 - int(stream[0]).bit_length()


def _fast(engine: Engine, count: int) -> ModuleType | None:
    """Return the numba module, or None where the plain path is asked for, better, or all there is."""
    enough = NUMBA_LOADED_FROM if "tersor.export.codec.static_fast" in sys.modules else NUMBA_FROM
    if engine == "plain" or (engine == "auto" and count < enough) or sys.byteorder != "little":
        return None
    try:
        from tersor.export.codec import static_fast
    except ImportError:
        if engine == "numba":
            raise
        return None
    return static_fast


def _encode_stream(symbols: NDArray[np.unsignedinteger], table: StateTable) -> bytes:
    places, starts = (part.tolist() for part in table.grouped())
    frequencies = table.frequencies.tolist()
    size = 1 << table.bits
    lookup = np.zeros(int(table.symbols[-1]) + 1, np.int64)
    lookup[table.symbols] = np.arange(len(table.symbols))
    fields, widths, state = [], [], size
    for i in lookup[symbols][::-1].tolist():
        frequency = frequencies[i]
        width = state.bit_length() - frequency.bit_length()
        width -= state >> width < frequency
        fields.append(state & ((1 << width) - 1))
        widths.append(width)
        state = size + places[starts[i] + (state >> width) - frequency]
    total = sum(widths) + table.bits + 1
    fields.append(state - size | size)  # the 1 that tells where the stream begins, then the state
    widths.append(table.bits + 1 + -total % 8)
    return pack_fields(np.array(fields[::-1], np.int64), np.array(widths[::-1], np.int64))


def _decode_stream(
    stream: memoryview, bit: int, table: StateTable, out: NDArray[np.unsignedinteger]
) -> tuple[int, int]:
    """Fill `out` from one stream; return (the bit after the last symbol, the last state)."""
    states, widths, bases = table.transitions()
    symbols = table.symbols[states].tolist()
    taken, following = widths.tolist(), bases.tolist()
    padded = np.zeros(len(stream) + 4, np.uint32)
    padded[: len(stream)] = np.frombuffer(stream, np.uint8)
    window = (padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]).tolist()
    state = (window[bit >> 3] >> (32 - table.bits - (bit & 7))) & ((1 << table.bits) - 1)
    bit += table.bits
    total, found = 8 * len(stream), []
    for _ in range(len(out)):
        found.append(symbols[state])
        width = taken[state]
        end = bit + width
        if end > total:
            return total + 1, state
        state = following[state] + ((window[bit >> 3] >> (32 - width - (bit & 7))) & ((1 << width) - 1))
        bit = end
    out[:] = found
    return bit, state
