"""Tables of the static coder: how often each symbol occurs, as numbers that add up to a power of two.

A table of asymmetric numeral systems (tANS; Duda 2013, arXiv:1311.2540) has 2**R states, frequencies[s] of
them for symbol s. A symbol then costs R - log2(frequency) bits, fractions included, where a prefix code pays
whole bits.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.bits import BitReader, BitWriter, ByteReader

MIN_BITS, MAX_BITS = 5, 14
"""Part of the format: a table has 2**R states, R in this range."""

USUAL_BITS = 12
"""Larger tables do not stay in the first-level cache; they are taken only where they save more than 0.2 %."""

_WORTH_LARGER = 0.998


@dataclass(frozen=True)
class StateTable:
    """`symbols`: [u >= 2] int64, ascending. `frequencies`: [u] int64, each at least 1, their sum 2**bits."""

    symbols: NDArray[np.int64]
    frequencies: NDArray[np.int64]
    bits: int

    def spread(self) -> NDArray[np.int64]:
        """Return [2**bits] the index into `symbols` of every state, equal ones far apart."""
        size = 1 << self.bits
        step = (size >> 1) + (size >> 3) + 3
        places = (np.arange(size) * step) & (size - 1)
        states = np.empty(size, np.int64)
        states[places] = np.repeat(np.arange(len(self.symbols)), self.frequencies)
        return states

    def transitions(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return (index of the symbol, bits to read, state before they are added), each [2**bits]."""
        states = self.spread()
        order = np.argsort(states, kind="stable")
        starts = np.cumsum(self.frequencies) - self.frequencies
        rank = np.empty(len(states), np.int64)
        rank[order] = np.arange(len(states)) - starts[states[order]]
        following = self.frequencies[states] + rank
        taken = self.bits + 1 - np.frexp(following.astype(np.float64))[1].astype(np.int64)
        return states, taken, (following << taken) - len(states)

    def grouped(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (states [2**bits] grouped by symbol, where each symbol's [u] begin): an encoder's tables."""
        return np.argsort(self.spread(), kind="stable"), np.cumsum(self.frequencies) - self.frequencies


def choose_states(histogram: NDArray[np.integer]) -> tuple[StateTable, float] | None:
    """Return the table for counts per symbol and about how many bits table and symbols take.

    Args:
        histogram: [a] counts. None when fewer than 2 or more than 2**13 of them are not zero.
    """
    symbols = np.flatnonzero(histogram)
    counts = np.asarray(histogram, np.int64)[symbols]
    if not 2 <= len(symbols) <= 1 << (MAX_BITS - 1):
        return None
    best: tuple[StateTable, float] | None = None
    for bits in range(max(MIN_BITS, (len(symbols) - 1).bit_length()), MAX_BITS + 1):
        table = StateTable(symbols, frequencies_of(counts, bits), bits)
        cost = float((counts * (bits - np.log2(table.frequencies))).sum()) + table_bits(table)
        least = np.inf if best is None else best[1]
        if cost < least * (1 if bits <= USUAL_BITS else _WORTH_LARGER):
            best = (table, cost)
        elif cost > 1.05 * least:
            break  # from here on only the table grows
    return best


def frequencies_of(counts: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return [u] numbers >= 1 in proportion to [u] positive counts, u <= 2**bits, that add up to 2**bits.

    What is over goes where it saves most, or comes from where it costs least: by count**2 / (f (f + 1)), the
    rule of Huntington and Hill.
    """
    size, total = 1 << bits, int(counts.sum())
    shares = np.maximum(counts * size // total, 1)
    left = size - int(shares.sum())
    weights, found = counts.astype(np.float64) ** 2, shares.astype(np.float64)
    step = 1 if left > 0 else -1
    with np.errstate(divide="ignore"):
        keys = -weights / (found * (found + 1)) if left > 0 else weights / ((found - 1) * found)
    heap = [(float(key), i) for i, key in enumerate(keys)]
    heapq.heapify(heap)
    for _ in range(abs(left)):
        _, i = heap[0]
        shares[i] += step
        f, w = int(shares[i]), float(weights[i])
        key = -w / (f * (f + 1)) if left > 0 else (w / ((f - 1) * f) if f > 1 else np.inf)
        heapq.heapreplace(heap, (key, i))
    return shares


def table_bits(table: StateTable) -> int:
    """Return about how many bits `put_states` takes."""
    lengths = np.frexp(table.frequencies[:-1].astype(np.float64))[1]
    return int((lengths - 1).sum() + 2 * np.abs(np.diff(lengths)).sum()) + len(lengths) + 12


def put_states(out: BitWriter, table: StateTable) -> None:
    """Append R and the frequencies but the last: the length of each as a difference, then its lower bits."""
    out.put(table.bits, 4)
    before = 0
    for f in table.frequencies[:-1].tolist():
        length = f.bit_length()
        if before:
            step = length - before
            out.exp_golomb(-2 * step - 1 if step < 0 else 2 * step)
        else:
            out.put(length, 4)
        out.put(f - (1 << (length - 1)), length - 1)
        before = length


def take_states(bits: BitReader, symbols: NDArray[np.int64], source: ByteReader) -> StateTable:
    """Read the frequencies of [u >= 2] symbols; the inverse of `put_states`.

    Raises:
        FormatError: R out of range, or frequencies that do not add up to 2**R.
    """
    size_bits = bits.take(4)
    if not MIN_BITS <= size_bits <= MAX_BITS:
        raise source.error("a table of states has a wrong size", size_bits, f"{MIN_BITS}..{MAX_BITS} bits")
    left, length, frequencies = 1 << size_bits, 0, []
    for _ in range(len(symbols) - 1):
        if length:
            z = bits.exp_golomb(2 * MAX_BITS)
            length += -(z + 1) // 2 if z & 1 else z // 2
        else:
            length = bits.take(4)
        if not 1 <= length <= size_bits:
            raise source.error("a frequency is out of range", f"{length} bits", f"1..{size_bits}")
        frequencies.append(1 << (length - 1) | bits.take(length - 1))
        left -= frequencies[-1]
        if left < 1:
            raise source.error("the frequencies add up to too much", wanted=f"2**{size_bits}")
    return StateTable(symbols, np.array([*frequencies, left], np.int64), size_bits)
