"""Canonical length-limited prefix codes: lengths, codes, and how a table of lengths is stored.

A code is known by the length of each symbol's code word alone. Shorter words come first and equal lengths
go in symbol order (canonical code, Schwartz and Kallick 1964); docs/format.md works an example.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec.bits import BitReader, BitWriter, ByteReader

MAX_LENGTH = 14
"""Longest code word the format allows, in bits."""

FAST_LENGTH = 12
"""Longest word normally used: a 2**12-entry look-up table stays in the first-level cache."""

MAX_ALPHABET = 1 << MAX_LENGTH
"""A complete code with words of at most 14 bits has at most 2**14 symbols."""

_FEW = 64
"""Alphabets whose code is found with Python's own numbers."""

_WORTH_LONGER = 0.9995
"""Words over FAST_LENGTH are used only where they save more than 0.05 %."""


@dataclass(frozen=True)
class CodeTable:
    """A complete canonical prefix code over the symbols that occur.

    `symbols`: [u] int64, ascending. `lengths`: [u] int64, bits of each symbol's word, 1..14; a lone symbol
    has length 0, because there is nothing to tell. sum(2**-lengths) is exactly 1.
    """

    symbols: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def longest(self) -> int:
        """Longest word in bits, 0 for a lone symbol."""
        return int(self.lengths.max())

    def codes(self) -> NDArray[np.int64]:
        """Return [u] canonical code words (the low `lengths` bits), in the order of `symbols`."""
        order = np.argsort(self.lengths, kind="stable")
        steps = np.int64(1) << (self.longest - self.lengths[order])
        codes = np.empty(len(order), np.int64)
        codes[order] = (np.cumsum(steps) - steps) >> (self.longest - self.lengths[order])
        return codes

    def sorted_by_code(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (symbols, lengths), both [u], in ascending order of their code words."""
        order = np.argsort(self.lengths, kind="stable")
        return self.symbols[order], self.lengths[order]


def code_lengths(weights: NDArray[np.integer], limit: int) -> NDArray[np.int64]:
    """Return the word lengths of an optimal prefix code with words of at most `limit` bits.

    Package-merge (Larmore and Hirschberg 1990): at each of `limit` levels pair the cheapest items of the
    level below into packages and merge them with the symbols; the 2u - 2 cheapest items of the last level
    hold every symbol as often as its word is long.

    Args:
        weights: [u] positive counts, their sum times limit below 2**62.
        limit: longest word in bits, 1..62, with 2**limit >= u.

    Returns:
        [u] int64; [0] for one symbol.

    Raises:
        ValueError: no code exists (no symbols, a weight below 1, or too many symbols for the limit).
    """
    counts = np.asarray(weights, np.int64)
    count = len(counts)
    if count == 0 or counts.min() < 1 or (limit < 62 and count > 1 << limit):
        raise ValueError(f"no code of at most {limit} bits for {count} symbols with positive weights")
    if count == 1:
        return np.zeros(1, np.int64)
    order = np.argsort(counts, kind="stable")
    if count <= _FEW:
        lengths = np.zeros(count, np.int64)
        lengths[order] = _few_lengths(counts[order].tolist(), limit)
        return lengths
    levels = _merge_levels(counts[order], limit)
    lengths = np.zeros(count, np.int64)
    taken = 2 * count - 2
    for is_leaf in reversed(levels):
        from_leaves = int(is_leaf[:taken].sum())
        lengths[order[:from_leaves]] += 1
        taken = 2 * (taken - from_leaves)
    return lengths


def _few_lengths(leaves: list[int], limit: int) -> list[int]:
    """Return the word lengths of [2..64] ascending weights; numpy takes longer than lists for so few."""
    symbols = [weight << 1 for weight in leaves]  # the lowest bit says "a package": symbols go first
    levels = [symbols]
    for _ in range(limit - 1):
        below = levels[-1]
        packages = [((a >> 1) + (b >> 1)) << 1 | 1 for a, b in zip(below[::2], below[1::2])]
        items = sorted(symbols + packages)
        if items == below:
            break
        levels.append(items)
    levels += [levels[-1]] * (limit - len(levels))
    lengths, taken = [0] * len(leaves), 2 * len(leaves) - 2
    for items in reversed(levels):
        packed = sum(item & 1 for item in items[:taken])
        for i in range(taken - packed):
            lengths[i] += 1
        taken = 2 * packed
    return lengths


def _merge_levels(leaves: NDArray[np.int64], limit: int) -> list[NDArray[np.bool_]]:
    """Return for each level which items of its sorted list are symbols (the others are packages)."""
    items = leaves
    levels = [np.ones(len(leaves), np.bool_)]
    for _ in range(limit - 1):
        paired = items[: len(items) // 2 * 2]
        packages = paired[0::2] + paired[1::2]
        # Equal weights: symbols before packages, so that ties always give the same (shorter-maximum) code.
        positions = np.searchsorted(leaves, packages, side="right") + np.arange(len(packages))
        is_leaf = np.ones(len(leaves) + len(packages), np.bool_)
        is_leaf[positions] = False
        items = np.empty(len(is_leaf), np.int64)
        items[positions] = packages
        items[is_leaf] = leaves
        levels.append(is_leaf)
    return levels


def choose_table(histogram: NDArray[np.integer]) -> CodeTable:
    """Return the code for counts per symbol: words of at most 12 bits, up to 14 where that pays.

    Args:
        histogram: [a] counts, a <= 65536, at least one and at most 2**14 of them not zero.

    Raises:
        ValueError: no symbol occurs, or more than 2**14 do.
    """
    symbols = np.flatnonzero(histogram)
    weights = np.asarray(histogram, np.int64)[symbols]
    unlimited_enough = code_lengths(weights, MAX_LENGTH)
    if len(symbols) > 1 << FAST_LENGTH or unlimited_enough.max(initial=0) <= FAST_LENGTH:
        return CodeTable(symbols, unlimited_enough)
    short = code_lengths(weights, FAST_LENGTH)
    pays = (unlimited_enough * weights).sum() < _WORTH_LONGER * (short * weights).sum()
    return CodeTable(symbols, unlimited_enough if pays else short)


def write_table(table: CodeTable) -> bytes:
    """Return the stored form of a table: which symbols occur, then their lengths (docs/format.md)."""
    bits = BitWriter()
    put_symbols(bits, table.symbols)
    if len(table.symbols) > 1:
        _write_lengths(bits, table.lengths)
    return bits.to_bytes()


def put_symbols(bits: BitWriter, symbols: NDArray[np.int64]) -> None:
    """Append which symbols occur, [u >= 1] ascending."""
    used = len(symbols)
    dense = int(symbols[-1]) == used - 1
    bits.put(dense, 1)
    bits.exp_golomb(used - 1)
    if not dense:
        _write_runs(bits, symbols)


def _write_runs(bits: BitWriter, symbols: NDArray[np.int64]) -> None:
    """Append the occurring symbols as pairs of runs: how many are absent, how many are present."""
    breaks = np.flatnonzero(np.diff(symbols) > 1) + 1
    next_symbol = 0
    for run in np.split(symbols, breaks):
        # Every run after the first is preceded by at least one absent symbol.
        bits.exp_golomb(int(run[0]) - next_symbol - (next_symbol > 0))
        bits.exp_golomb(len(run) - 1)
        next_symbol = int(run[-1]) + 1


def _write_lengths(bits: BitWriter, lengths: NDArray[np.int64]) -> None:
    """Append the first length in 4 bits, then zigzag differences in Exp-Golomb order 0 or 1, the shorter."""
    steps = np.diff(lengths)
    zigzag = np.where(steps < 0, -2 * steps - 1, 2 * steps).tolist()
    costs = [sum(2 * ((z + (1 << k)).bit_length() - 1) + 1 - k for z in zigzag) for k in (0, 1)]
    order = int(costs[1] < costs[0])
    bits.put(order, 1)
    bits.put(int(lengths[0]), 4)
    for z in zigzag:
        bits.exp_golomb(z, order)


def read_table(source: ByteReader, alphabet: int) -> CodeTable:
    """Read a table of lengths; the inverse of `write_table`.

    Args:
        source: where the table starts; left at the byte after it.
        alphabet: number of symbols there can be: every symbol must be below it.

    Raises:
        FormatError: a symbol outside the alphabet, a length outside 1..14, or lengths that are no complete
            prefix code (sum of 2**-length not exactly 1).
    """
    bits = BitReader(source)
    symbols = take_symbols(bits, alphabet, source)
    lengths = take_lengths(bits, len(symbols), source) if len(symbols) > 1 else np.zeros(1, np.int64)
    bits.finish()
    return CodeTable(symbols, lengths)


def take_symbols(bits: BitReader, alphabet: int, source: ByteReader) -> NDArray[np.int64]:
    """Read which symbols occur, [u >= 1] ascending, all below `alphabet`; the inverse of `put_symbols`."""
    dense = bits.take(1)
    used = bits.exp_golomb(min(alphabet, MAX_ALPHABET) - 1) + 1
    return np.arange(used) if dense else _read_runs(bits, used, alphabet, source)


def _read_runs(bits: BitReader, used: int, alphabet: int, source: ByteReader) -> NDArray[np.int64]:
    runs: list[NDArray[np.int64]] = []
    next_symbol = count = 0
    while count < used:
        start = next_symbol + bits.exp_golomb(alphabet) + (next_symbol > 0)
        length = bits.exp_golomb(used - count - 1) + 1
        if start + length > alphabet:
            raise source.error("a symbol is outside the alphabet", start + length - 1, f"below {alphabet}")
        runs.append(np.arange(start, start + length))
        next_symbol, count = start + length, count + length
    return np.concatenate(runs)


def take_lengths(
    bits: BitReader, used: int, source: ByteReader, head: tuple[int, int] | None = None
) -> NDArray[np.int64]:
    """Read the lengths of `used` >= 2 symbols; `head`: Exp-Golomb order and first length if already read.

    Raises:
        FormatError: a length outside 1..14, or lengths that are no complete prefix code.
    """
    order, first = head or (bits.take(1), bits.take(4))
    lengths = [first]
    for _ in range(used - 1):
        z = bits.exp_golomb(2 * MAX_LENGTH, order)
        lengths.append(lengths[-1] + (-(z + 1) // 2 if z & 1 else z // 2))
    if min(lengths) < 1 or max(lengths) > MAX_LENGTH:
        raise source.error("a code length is out of range", (min(lengths), max(lengths)), f"1..{MAX_LENGTH}")
    if sum(1 << (MAX_LENGTH - n) for n in lengths) != 1 << MAX_LENGTH:
        raise source.error("the code lengths are no complete prefix code", lengths[:16])
    return np.array(lengths, np.int64)


def lookup(table: CodeTable, bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (symbol, length), each [2**bits], for every value of the next `bits` >= longest bits."""
    symbols, lengths = table.sorted_by_code()
    spread = np.int64(1) << (bits - lengths)
    return np.repeat(symbols, spread), np.repeat(lengths, spread)
