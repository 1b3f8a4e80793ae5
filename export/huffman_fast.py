"""The numba engine of export/huffman.py: the same bytes, much faster on long arrays.

Imported only when it is used: importing numba takes longer than packing a small model.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from tersor.export.prefix_codes import FAST_LENGTH, MAX_LENGTH, CodeTable, lookup

_LOOKUPS = 4
"""Look-ups per load of a 64-bit window: 57 bits of it are valid, and 4 words take at most 56."""
assert _LOOKUPS * MAX_LENGTH <= 57


class _Kernel:
    """A compiled function, cached on disk where the folder allows it and compiled in memory elsewhere."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        try:
            self._compiled = numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # no writable place for the cache: a read-only install without a home
            self._compiled = numba.njit(nogil=True)(function)

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self._compiled(*arguments)
        except OSError:  # the cache could not be read or written (full disk, changed rights)
            self._compiled = numba.njit(nogil=True)(self._function)
            return self._compiled(*arguments)


@_Kernel
def _count(symbols, counts):  # type: ignore[no-untyped-def]
    # Eight tables, because equal neighbours would wait for each other's increment.
    whole = len(symbols) // 8 * 8
    for i in range(0, whole, 8):
        for j in range(8):
            counts[j, symbols[i + j]] += 1
    for i in range(whole, len(symbols)):
        counts[0, symbols[i]] += 1


def histogram(symbols: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Return [256 or 65536] counts of [n < 2**32] uint8 or uint16 symbols."""
    counts = np.zeros((8, 1 << 8 * symbols.itemsize), np.uint32)
    _count(symbols, counts)
    return counts.sum(axis=0, dtype=np.int64)


@_Kernel
def _encode(symbols, entries, starts, stops, words, begins, bits):  # type: ignore[no-untyped-def]
    # entries[symbol] = code << 4 | length. Four symbols make one chunk of at most 56 bits. The word is
    # stored after every chunk and the position moves on when it is full, so there is no branch.
    u = np.uint64
    one, four, fifteen, sixtyfour = u(1), u(4), u(15), u(64)
    for j in range(4):
        at, stop = begins[j], stops[j]
        word, used = u(0), u(0)
        i = starts[j]
        while i < stop:
            if i + 4 <= stop:
                a = u(entries[symbols[i]])
                b = u(entries[symbols[i + 1]])
                c = u(entries[symbols[i + 2]])
                d = u(entries[symbols[i + 3]])
                first = ((a >> four) << (b & fifteen)) | (b >> four)
                second = ((c >> four) << (d & fifteen)) | (d >> four)
                second_length = (c & fifteen) + (d & fifteen)
                chunk = (first << second_length) | second
                length = (a & fifteen) + (b & fifteen) + second_length
                i += 4
            else:
                a = u(entries[symbols[i]])
                chunk, length = a >> four, a & fifteen
                i += 1
            word |= (chunk << (sixtyfour - length)) >> used
            words[at] = word
            used += length
            at += np.int64(used >> u(6))
            # Of a chunk that filled the word, the last `used - 64` bits go into the next one.
            word = (chunk << (u(127) - used)) << one if used >= sixtyfour else word
            used &= u(63)
        words[at] = word
        bits[j] = (at - begins[j]) * 64 + np.int64(used)


def encode(
    symbols: NDArray[np.unsignedinteger], table: CodeTable, parts: list[tuple[int, int]]
) -> list[memoryview]:
    """Return the four streams of [n] uint8 or uint16 symbols, `parts` being their (start, stop)."""
    entries = np.zeros(1 << 8 * symbols.itemsize, np.uint32)
    entries[table.symbols] = table.codes() << 4 | table.lengths
    starts, stops = (np.array(side, np.int64) for side in zip(*parts))
    capacity = int((stops - starts).max()) * table.longest // 64 + 2
    begins = np.arange(4, dtype=np.int64) * capacity
    words = np.empty(4 * capacity, np.uint64)
    bits = np.zeros(4, np.int64)
    _encode(symbols, entries, starts, stops, words, begins, bits)
    streams = []
    for begin, size in zip(begins.tolist(), bits.tolist()):
        filled = words[begin : begin + (size + 63) // 64].astype(">u8").view(np.uint8)
        streams.append(filled.data[: (size + 7) // 8])
    return streams


@_Kernel
def _decode(data, begins, sizes, entries, table_bits, stops, out, at, ends):  # type: ignore[no-untyped-def]
    # entries[next bits] = total length (5 bits) | symbols (2) | first length (5) | first | second symbol.
    # `at` holds the next symbol of each stream and `ends` its next bit; both are moved on.
    u = np.uint64
    three, five, twelve = u(3), u(5), u(12)
    low3, low5, low7 = u(3), u(31), u(7)
    drop, second = u(64 - table_bits), u(12 + 8 * out.itemsize)

    def window(data, begin, bit):  # type: ignore[no-untyped-def]
        # Eight byte loads, which the compiler turns into one load and a byte swap.
        b = begin + (bit >> three)
        high = (u(data[b]) << u(56)) | (u(data[b + u(1)]) << u(48))
        high |= (u(data[b + u(2)]) << u(40)) | (u(data[b + u(3)]) << u(32))
        low = (u(data[b + u(4)]) << u(24)) | (u(data[b + u(5)]) << u(16))
        low |= (u(data[b + u(6)]) << u(8)) | u(data[b + u(7)])
        return (high | low) << (bit & low7)

    k0, k1, k2, k3 = at[0], at[1], at[2], at[3]
    p0, p1, p2, p3 = u(ends[0]), u(ends[1]), u(ends[2]), u(ends[3])
    b0, b1, b2, b3 = u(begins[0]), u(begins[1]), u(begins[2]), u(begins[3])
    rounds = 1
    while rounds > 0:
        # A round takes at most 56 bits and 8 symbols of a stream and reads 8 bytes: with this bound no
        # check is needed inside.
        room = min(min(stops[0] - k0, stops[1] - k1), min(stops[2] - k2, stops[3] - k3)) // 8
        left = min(
            min(sizes[0] - np.int64(p0), sizes[1] - np.int64(p1)),
            min(sizes[2] - np.int64(p2), sizes[3] - np.int64(p3)),
        )
        rounds = min(room, (left - 64) // 56)
        for _ in range(rounds):
            w0, w1 = window(data, b0, p0), window(data, b1, p1)
            w2, w3 = window(data, b2, p2), window(data, b3, p3)
            for _ in range(4):
                e0, e1 = u(entries[w0 >> drop]), u(entries[w1 >> drop])
                e2, e3 = u(entries[w2 >> drop]), u(entries[w3 >> drop])
                out[k0], out[k0 + 1] = e0 >> twelve, e0 >> second
                out[k1], out[k1 + 1] = e1 >> twelve, e1 >> second
                out[k2], out[k2 + 1] = e2 >> twelve, e2 >> second
                out[k3], out[k3 + 1] = e3 >> twelve, e3 >> second
                n0, n1, n2, n3 = e0 & low5, e1 & low5, e2 & low5, e3 & low5
                w0, w1, w2, w3 = w0 << n0, w1 << n1, w2 << n2, w3 << n3
                p0, p1, p2, p3 = p0 + n0, p1 + n1, p2 + n2, p3 + n3
                k0 += np.int64((e0 >> five) & low3)
                k1 += np.int64((e1 >> five) & low3)
                k2 += np.int64((e2 >> five) & low3)
                k3 += np.int64((e3 >> five) & low3)
    at[0], at[1], at[2], at[3] = k0, k1, k2, k3
    ends[0], ends[1], ends[2], ends[3] = p0, p1, p2, p3


@_Kernel
def _finish(data, begins, sizes, entries, table_bits, stops, out, at, ends):  # type: ignore[no-untyped-def]
    # Symbol by symbol and byte by byte, never past a stream's end.
    for j in range(4):
        symbol, bit = at[j], ends[j]
        while symbol < stops[j] and bit < sizes[j]:
            window = 0
            for i in range(3):
                byte = (bit >> 3) + i
                window = window << 8 | (np.int64(data[begins[j] + byte]) if byte * 8 < sizes[j] else 0)
            entry = np.int64(entries[(window >> (24 - table_bits - (bit & 7))) & ((1 << table_bits) - 1)])
            out[symbol] = entry >> 12
            bit += (entry >> 7) & 31
            symbol += 1
        at[j], ends[j] = symbol, bit


def decode(
    data: memoryview, sizes: list[int], table: CodeTable, parts: list[tuple[int, int]], out: NDArray
) -> list[int]:
    """Fill [n] uint8 or uint16 `out` from four streams; return the bit after each stream's last symbol.

    `data` holds the streams back to back, `sizes` bytes each. A stream that ends early gives -1.
    """
    entries, table_bits = _pair_entries(table, out.dtype)
    raw = np.frombuffer(data, np.uint8)
    begins = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    starts, stops = (np.array(side, np.int64) for side in zip(*parts))
    bits = 8 * np.array(sizes, np.int64)
    at, ends = starts.copy(), np.zeros(4, np.int64)
    for kernel in (_decode, _finish):
        kernel(raw, begins, bits, entries, table_bits, stops, out, at, ends)
    return [end if done else -1 for end, done in zip(ends.tolist(), (at == stops).tolist())]


def _pair_entries(table: CodeTable, dtype: np.dtype) -> tuple[NDArray[np.unsignedinteger], int]:
    """Return ([2**bits] look-up entries holding one or two symbols each, bits)."""
    bits = max(table.longest, FAST_LENGTH)
    symbols, lengths = lookup(table, bits)
    following = (np.arange(1 << bits) << lengths) & ((1 << bits) - 1)
    both = lengths + lengths[following]
    pair = both <= bits
    entries = np.where(pair, both, lengths) | (1 + pair) << 5 | lengths << 7
    entries |= symbols << 12 | symbols[following] << (12 + 8 * dtype.itemsize)
    return entries.astype(np.uint32 if dtype.itemsize == 1 else np.uint64), bits
