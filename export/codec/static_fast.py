"""The numba engine of static.py: the same bytes, much faster on long arrays. Little-endian only.

Imported only when it is used: importing numba takes longer than packing a small model.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.huffman_fast import Kernel
from tersor.export.codec.state_codes import MAX_BITS, StateTable

_LOOKUPS = 4
"""Look-ups per load of a 64-bit window: 57 bits of it are valid, and 4 steps take at most 56."""
assert _LOOKUPS * MAX_BITS <= 57


@Kernel
def _encode(symbols, begins, stops, entries, places, size, words, positions, used, states):  # type: ignore[no-untyped-def]
    # Each stream from its last symbol to its first, bits from the end of its row of `words` to the start.
    # entries[symbol] holds, as in FSE, (width << 16) - (frequency << width), so that (state + it) >> 16 is
    # how many bits the state gives away, and where the symbol's states begin minus its frequency; both may
    # be negative, which wraps around. A symbol must wait for the state that the one before left: four streams
    # at once hide that. All is unsigned: numba asks of every signed index whether it counts from the end.
    u = np.uint64
    one, six, low6 = u(1), u(6), u(63)

    def put(row, position, word, used, chunk, width):  # type: ignore[no-untyped-def]
        """Put at most 63 bits before those that are there; returns position, word and used after them."""
        word |= chunk << used
        row[position] = word
        used += width
        full, rest = used >> six, used & low6
        # Of a chunk that filled the word, the highest `rest` bits go into the one before it.
        return position - full, (chunk >> (width - rest)) if full else word, rest

    def step(symbol, entries, places, size, state, chunk, used):  # type: ignore[no-untyped-def]
        """Put a symbol's bits before those of a chunk; returns chunk, bits in it and state after it."""
        width = (state + entries[symbol, 0]) >> u(16)
        chunk |= (state & ((one << width) - one)) << used
        return chunk, used + width, size + u(places[entries[symbol, 1] + (state >> width)])

    w0 = w1 = w2 = w3 = u(0)
    u0 = u1 = u2 = u3 = u(0)
    s0 = s1 = s2 = s3 = u(size)
    p0 = p1 = p2 = p3 = u(words.shape[1] - 1)
    fours = u(0)
    if len(begins) == 4:
        fours = u((stops[3] - begins[3]) // 4)  # no other is shorter
        r0, r1, r2, r3 = words[0], words[1], words[2], words[3]
        e0, e1, e2, e3 = u(stops[0] - 1), u(stops[1] - 1), u(stops[2] - 1), u(stops[3] - 1)
        for _ in range(fours):
            c0 = c1 = c2 = c3 = n0 = n1 = n2 = n3 = u(0)
            for _ in range(4):  # 4 symbols take at most 56 bits
                c0, n0, s0 = step(symbols[e0], entries, places, u(size), s0, c0, n0)
                c1, n1, s1 = step(symbols[e1], entries, places, u(size), s1, c1, n1)
                c2, n2, s2 = step(symbols[e2], entries, places, u(size), s2, c2, n2)
                c3, n3, s3 = step(symbols[e3], entries, places, u(size), s3, c3, n3)
                e0, e1, e2, e3 = e0 - one, e1 - one, e2 - one, e3 - one
            p0, w0, u0 = put(r0, p0, w0, u0, c0, n0)
            p1, w1, u1 = put(r1, p1, w1, u1, c1, n1)
            p2, w2, u2 = put(r2, p2, w2, u2, c2, n2)
            p3, w3, u3 = put(r3, p3, w3, u3, c3, n3)
    for k in range(len(begins)):
        if k == 1:
            p0, w0, u0, s0 = p1, w1, u1, s1
        elif k == 2:
            p0, w0, u0, s0 = p2, w2, u2, s2
        elif k == 3:
            p0, w0, u0, s0 = p3, w3, u3, s3
        for i in range(stops[k] - np.int64(u(4) * fours) - 1, begins[k] - 1, -1):
            c0, n0, s0 = step(symbols[i], entries, places, u(size), s0, u(0), u(0))
            p0, w0, u0 = put(words[k], p0, w0, u0, c0, n0)
        words[k, p0] = w0
        positions[k], used[k], states[k] = p0, u0, s0 - u(size)


def encode(
    symbols: NDArray[np.unsignedinteger], table: StateTable, parts: Sequence[tuple[int, int]]
) -> list[bytes]:
    """Return a stream for each part of [n] uint8 or uint16 symbols: one, or four, the last the shortest."""
    places, starts = table.grouped()
    size, count = 1 << table.bits, len(parts)
    entries = np.zeros((int(table.symbols[-1]) + 1, 2), np.uint64)
    entries[table.symbols, 0] = _limits(table.frequencies, table.bits).view(np.uint64)
    entries[table.symbols, 1] = (starts - table.frequencies).view(np.uint64)
    begins, stops = np.array(parts, np.int64).T.copy()
    words = np.zeros((count, int((stops - begins).max()) * table.bits // 64 + 3), np.uint64)
    positions, states = np.zeros(count, np.int64), np.zeros(count, np.int64)
    used = np.zeros(count, np.uint64)
    _encode(symbols, begins, stops, entries, places, size, words, positions, used, states)
    ends = zip(words, positions.tolist(), used.tolist(), states.tolist())
    return [_stream(row, position, bits, size | state, table.bits) for row, position, bits, state in ends]


def _stream(words: NDArray[np.uint64], position: int, used: int, state: int, bits: int) -> bytes:
    """The bytes of a stream: its final state, the `used` bits of words[position], the words after it."""
    head = (state << used) | int(words[position]) if used else state
    whole = words[position + 1 :].byteswap().tobytes()
    return head.to_bytes((bits + 1 + used + 7) // 8, "big") + whole


def _limits(frequencies: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return [u] numbers of which (state + number) >> 16 is how many bits a state gives away."""
    most = bits + 1 - np.frexp(frequencies.astype(np.float64))[1].astype(np.int64)
    # A state from frequency << most on gives away `most` bits, one below that gives one fewer.
    return (most << 16) - (frequencies << most)


@Kernel
def _decode(data, begins, sizes, entries, stops, out, positions, ends, states):  # type: ignore[no-untyped-def]
    # `positions` holds the next output byte of each stream, `ends` its next bit, `states` its state.
    u = np.uint64
    one, three, seven, low4, last = u(1), u(3), u(7), u(15), u(63)

    def window(data, begin, bit):  # type: ignore[no-untyped-def]
        """The 64 bits from `bit` on, the first one highest; the last seven may be missing."""
        b = begin + (bit >> three)
        high = (u(data[b]) << u(56)) | (u(data[b + u(1)]) << u(48))
        high |= (u(data[b + u(2)]) << u(40)) | (u(data[b + u(3)]) << u(32))
        low = (u(data[b + u(4)]) << u(24)) | (u(data[b + u(5)]) << u(16))
        low |= (u(data[b + u(6)]) << u(8)) | u(data[b + u(7)])
        return (high | low) << (bit & seven)

    def store(out, k, entry):  # type: ignore[no-untyped-def]
        """Write the symbols of a table entry to `out[k:]`; bytes too many are written over later."""
        out[k], out[k + u(1)] = entry >> u(32), entry >> u(40)
        out[k + u(2)], out[k + u(3)] = entry >> u(48), entry >> u(56)

    k0, k1, k2, k3 = u(positions[0]), u(positions[1]), u(positions[2]), u(positions[3])
    p0, p1, p2, p3 = u(ends[0]), u(ends[1]), u(ends[2]), u(ends[3])
    b0, b1, b2, b3 = u(begins[0]), u(begins[1]), u(begins[2]), u(begins[3])
    s0, s1, s2, s3 = u(states[0]), u(states[1]), u(states[2]), u(states[3])
    rounds = 1
    while rounds > 0:
        # A round takes at most 56 bits of a stream, puts out at most 16 bytes and looks at 8 bytes.
        room = min(stops[0] - np.int64(k0), stops[1] - np.int64(k1))
        room = min(room, min(stops[2] - np.int64(k2), stops[3] - np.int64(k3)))
        left = min(sizes[0] - np.int64(p0), sizes[1] - np.int64(p1))
        left = min(left, min(sizes[2] - np.int64(p2), sizes[3] - np.int64(p3)))
        rounds = min(room // 16, (left - 64) // 56)
        for _ in range(rounds):
            w0, w1 = window(data, b0, p0), window(data, b1, p1)
            w2, w3 = window(data, b2, p2), window(data, b3, p3)
            for _ in range(4):
                e0, e1, e2, e3 = entries[s0], entries[s1], entries[s2], entries[s3]
                store(out, k0, e0)
                store(out, k1, e1)
                store(out, k2, e2)
                store(out, k3, e3)
                n0, n1, n2, n3 = e0 & low4, e1 & low4, e2 & low4, e3 & low4
                s0 = ((e0 >> u(8)) & u(0x3FFF)) + ((w0 >> one) >> (last - n0))
                s1 = ((e1 >> u(8)) & u(0x3FFF)) + ((w1 >> one) >> (last - n1))
                s2 = ((e2 >> u(8)) & u(0x3FFF)) + ((w2 >> one) >> (last - n2))
                s3 = ((e3 >> u(8)) & u(0x3FFF)) + ((w3 >> one) >> (last - n3))
                w0, w1, w2, w3 = w0 << n0, w1 << n1, w2 << n2, w3 << n3
                p0, p1, p2, p3 = p0 + n0, p1 + n1, p2 + n2, p3 + n3
                k0, k1 = k0 + ((e0 >> u(4)) & seven), k1 + ((e1 >> u(4)) & seven)
                k2, k3 = k2 + ((e2 >> u(4)) & seven), k3 + ((e3 >> u(4)) & seven)
    positions[0], positions[1], positions[2], positions[3] = k0, k1, k2, k3
    ends[0], ends[1], ends[2], ends[3] = p0, p1, p2, p3
    states[0], states[1], states[2], states[3] = s0, s1, s2, s3


@Kernel
def _finish(data, begins, sizes, symbols, widths, bases, stops, out, positions, ends, states):  # type: ignore[no-untyped-def]
    # Symbol by symbol and byte by byte, never past a stream's end.
    for j in range(len(begins)):
        item, bit, state = positions[j], ends[j], states[j]
        while item < stops[j]:
            width = widths[state]
            if bit + width > sizes[j]:
                bit = sizes[j] + 1
                break
            window = np.int64(0)
            for i in range(3):
                place = (bit >> 3) + i
                window = window << 8 | (np.int64(data[begins[j] + place]) if place * 8 < sizes[j] else 0)
            out[item] = symbols[state]
            state = bases[state] + ((window >> (24 - width - (bit & 7))) & ((1 << width) - 1))
            bit += width
            item += 1
        ends[j], states[j] = bit, state


def decode(
    data: memoryview,
    sizes: list[int],
    first: list[int],
    table: StateTable,
    parts: list[tuple[int, int]],
    out: NDArray[np.unsignedinteger],
) -> list[tuple[int, int]]:
    """Fill [n] uint8 or uint16 `out` from one or four streams; return (end bit, state) of each.

    `data` holds the streams back to back, `sizes` bytes each; `first` is the bit where each one's state
    stands.
    A stream that ends early is said to end behind its end.
    """
    states, widths, bases = table.transitions()
    symbols = table.symbols[states]
    raw, width = np.frombuffer(data, np.uint8), out.itemsize
    begins = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    positions, stops = (np.array(side, np.int64) for side in zip(*parts))
    bits, ends = 8 * np.array(sizes, np.int64), np.array(first, np.int64) + table.bits
    now = np.array([_state(raw[b : b + s], f, table.bits) for b, s, f in zip(begins, sizes, first)], np.int64)
    if len(parts) == 4:
        at = positions * width
        _decode(
            raw,
            begins,
            bits,
            _entries(symbols, widths, bases, width),
            stops * width,
            out.view(np.uint8),
            at,
            ends,
            now,
        )
        positions = at // width
    _finish(raw, begins, bits, symbols, widths, bases, stops, out, positions, ends, now)
    return list(zip(ends.tolist(), now.tolist()))


def _state(stream: NDArray[np.uint8], bit: int, bits: int) -> int:
    head = int.from_bytes(stream[:4].tobytes().ljust(4, b"\0"), "big")
    return (head >> (32 - bits - bit)) & ((1 << bits) - 1)


def _entries(
    symbols: NDArray[np.int64], widths: NDArray[np.int64], bases: NDArray[np.int64], width: int
) -> NDArray[np.uint64]:
    """Return [2**bits] look-up entries: the symbol of a state, and those that follow without a bit.

    An entry is: bits to read after the last of them (4 bits), bytes they fill (4), the state before
    those bits
    are added (24), and from bit 32 on the symbols, `width` bytes each.
    """
    taken, base, count, output = widths, bases, np.ones_like(symbols), symbols.astype(np.uint64)
    for i in range(1, 4 // width):
        more = (count == i) & (taken == 0)
        at = np.where(more, base, 0)
        output = output | np.where(more, symbols[at], 0).astype(np.uint64) << np.uint64(8 * width * i)
        taken, base = np.where(more, widths[at], taken), np.where(more, bases[at], base)
        count = count + more
    low = (taken | count * width << 4 | base << 8).astype(np.uint64)
    return low | output << np.uint64(32)
