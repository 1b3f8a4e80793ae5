"""The numba engine of huffman.py: the same bytes, much faster on long arrays. Little-endian only.

Imported only when it is used: importing numba takes longer than packing a small model.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.prefix_codes import FAST_LENGTH, MAX_LENGTH, CodeTable, lookup

_LOOKUPS = 4
"""Look-ups per load of a 64-bit window: 57 bits of it are valid, and 4 words take at most 56."""
assert _LOOKUPS * MAX_LENGTH <= 57


class Kernel:
    """A compiled function, cached on disk where the folder allows it and compiled in memory elsewhere."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        try:
            self._compiled = numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # no writable place for the cache: a read-only install without a home
            self._compiled = numba.njit(nogil=True)(function)

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        try:
            return self._compiled(*arguments)
        except OSError:  # the cache could not be read or written (full disk, changed rights)
            self._compiled = numba.njit(nogil=True)(self._function)
            return self._compiled(*arguments)


@Kernel
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


@Kernel
def _encode(symbols, entries, starts, stops, words, begins, bits):  # type: ignore[no-untyped-def]
    # entries[symbol] = code << 4 | length. Four symbols make one chunk of at most 56 bits. The word is
    # stored after every chunk and the position moves on when it is full, so there is no branch. Unsigned
    # indices, because numba looks after negative ones.
    u = np.uint64
    four, fifteen = u(4), u(15)

    def put(words, position, word, used, chunk, length):  # type: ignore[no-untyped-def]
        """Append `length` bits to the word under way; returns where it stands then."""
        word |= (chunk << (u(64) - length)) >> used
        words[position] = word
        used += length
        # Of a chunk that filled the word, the last `used - 64` bits go into the next one.
        rest = (chunk << (u(127) - used)) << u(1) if used >= u(64) else word
        return position + (used >> u(6)), rest, used & u(63)

    for j in range(4):
        i, stop, position = u(starts[j]), u(stops[j]), u(begins[j])
        whole = i + (stop - i) // four * four
        word, used = u(0), u(0)
        while i < whole:
            a, b = u(entries[symbols[i]]), u(entries[symbols[i + u(1)]])
            c, d = u(entries[symbols[i + u(2)]]), u(entries[symbols[i + u(3)]])
            first = ((a >> four) << (b & fifteen)) | (b >> four)
            second = ((c >> four) << (d & fifteen)) | (d >> four)
            length = (c & fifteen) + (d & fifteen)
            chunk = (first << length) | second
            length += (a & fifteen) + (b & fifteen)
            position, word, used = put(words, position, word, used, chunk, length)
            i += four
        while i < stop:
            a = u(entries[symbols[i]])
            position, word, used = put(words, position, word, used, a >> four, a & fifteen)
            i += u(1)
        words[position] = word
        bits[j] = (np.int64(position) - begins[j]) * 64 + np.int64(used)


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
        filled = words[begin : begin + (size + 63) // 64].byteswap(inplace=True).view(np.uint8)
        streams.append(filled.data[: (size + 7) // 8])
    return streams


@Kernel
def _decode(data, begins, sizes, entries, table_bits, stops, out, positions, ends):  # type: ignore[no-untyped-def]
    # `positions` holds the next output byte of each stream and `ends` its next bit; both are moved on.
    u = np.uint64
    three, five, seven, low5 = u(3), u(5), u(7), u(31)
    drop = u(64 - table_bits)

    def window(data, begin, bit):  # type: ignore[no-untyped-def]
        """The 64 bits from `bit` on, the first one highest; the last seven may be missing."""
        # Eight byte loads, which the compiler turns into one load and a byte swap.
        b = begin + (bit >> three)
        high = (u(data[b]) << u(56)) | (u(data[b + u(1)]) << u(48))
        high |= (u(data[b + u(2)]) << u(40)) | (u(data[b + u(3)]) << u(32))
        low = (u(data[b + u(4)]) << u(24)) | (u(data[b + u(5)]) << u(16))
        low |= (u(data[b + u(6)]) << u(8)) | u(data[b + u(7)])
        return (high | low) << (bit & seven)

    def store(out, k, entry):  # type: ignore[no-untyped-def]
        """Write the symbols of a table entry to `out[k:]`."""
        # Four byte stores, which the compiler turns into one; bytes too many are written over later.
        out[k], out[k + u(1)] = entry >> u(12), entry >> u(20)
        out[k + u(2)], out[k + u(3)] = entry >> u(28), entry >> u(36)

    k0, k1, k2, k3 = u(positions[0]), u(positions[1]), u(positions[2]), u(positions[3])
    p0, p1, p2, p3 = u(ends[0]), u(ends[1]), u(ends[2]), u(ends[3])
    b0, b1, b2, b3 = u(begins[0]), u(begins[1]), u(begins[2]), u(begins[3])
    rounds = 1
    while rounds > 0:
        # A round takes at most 56 bits of a stream, puts out at most 16 bytes and looks at 8 bytes: with
        # this bound no check is needed inside.
        room = min(stops[0] - np.int64(k0), stops[1] - np.int64(k1))
        room = min(room, min(stops[2] - np.int64(k2), stops[3] - np.int64(k3)))
        left = min(sizes[0] - np.int64(p0), sizes[1] - np.int64(p1))
        left = min(left, min(sizes[2] - np.int64(p2), sizes[3] - np.int64(p3)))
        rounds = min(room // 16, (left - 64) // 56)
        for _ in range(rounds):
            w0, w1 = window(data, b0, p0), window(data, b1, p1)
            w2, w3 = window(data, b2, p2), window(data, b3, p3)
            for _ in range(4):
                e0, e1 = entries[w0 >> drop], entries[w1 >> drop]
                e2, e3 = entries[w2 >> drop], entries[w3 >> drop]
                store(out, k0, e0)
                store(out, k1, e1)
                store(out, k2, e2)
                store(out, k3, e3)
                n0, n1, n2, n3 = e0 & low5, e1 & low5, e2 & low5, e3 & low5
                w0, w1, w2, w3 = w0 << n0, w1 << n1, w2 << n2, w3 << n3
                p0, p1, p2, p3 = p0 + n0, p1 + n1, p2 + n2, p3 + n3
                k0, k1 = k0 + ((e0 >> five) & seven), k1 + ((e1 >> five) & seven)
                k2, k3 = k2 + ((e2 >> five) & seven), k3 + ((e3 >> five) & seven)
    positions[0], positions[1], positions[2], positions[3] = k0, k1, k2, k3
    ends[0], ends[1], ends[2], ends[3] = p0, p1, p2, p3


@Kernel
def _finish(data, begins, sizes, entries, table_bits, stops, out, positions, ends, width):  # type: ignore[no-untyped-def]
    # Symbol by symbol and byte by byte, never past a stream's end.
    for j in range(4):
        byte, bit = positions[j], ends[j]
        while byte < stops[j] and bit < sizes[j]:
            window: int | np.int64 = 0
            for i in range(3):
                place = (bit >> 3) + i
                window = window << 8 | (np.int64(data[begins[j] + place]) if place * 8 < sizes[j] else 0)
            entry = np.int64(entries[(window >> (24 - table_bits - (bit & 7))) & ((1 << table_bits) - 1)])
            for i in range(width):
                out[byte + i] = entry >> (12 + 8 * i)
            bit += (entry >> 8) & 15
            byte += width
        positions[j], ends[j] = byte, bit


def decode(
    data: memoryview,
    sizes: list[int],
    table: CodeTable,
    parts: list[tuple[int, int]],
    out: NDArray[np.unsignedinteger],
) -> list[int]:
    """Fill [n] uint8 or uint16 `out` from four streams; return the bit after each stream's last symbol.

    `data` holds the streams back to back, `sizes` bytes each. A stream that ends early gives -1.
    """
    entries, table_bits = _entries(table, out.itemsize)
    raw, target = np.frombuffer(data, np.uint8), out.view(np.uint8)
    begins = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    positions, stops = (np.array(side, np.int64) * out.itemsize for side in zip(*parts))
    bits, ends = 8 * np.array(sizes, np.int64), np.zeros(4, np.int64)
    _decode(raw, begins, bits, entries, table_bits, stops, target, positions, ends)
    _finish(raw, begins, bits, entries, table_bits, stops, target, positions, ends, out.itemsize)
    return [end if done else -1 for end, done in zip(ends.tolist(), (positions == stops).tolist())]


def _entries(table: CodeTable, width: int) -> tuple[NDArray[np.uint64], int]:
    """Return ([2**bits] look-up entries, bits): all symbols in the next bits that fill up to four bytes.

    An entry is: bits they take together (5 bits), bytes they fill (3), bits of the first one (4), and from
    bit 12 on the symbols, `width` bytes each.
    """
    bits = max(table.longest, FAST_LENGTH)
    symbols, lengths = lookup(table, bits)
    index = np.arange(1 << bits)
    taken, count, output = lengths, np.ones_like(lengths), symbols
    for i in range(1, 4 // width):
        following = (index << taken) & ((1 << bits) - 1)
        fits = (count == i) & (taken + lengths[following] <= bits)
        output = output | np.where(fits, symbols[following], 0) << 8 * width * i
        taken, count = np.where(fits, taken + lengths[following], taken), count + fits
    return (taken | count * width << 5 | lengths << 8 | output << 12).astype(np.uint64), bits
