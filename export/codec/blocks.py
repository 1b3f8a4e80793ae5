"""Blocks of symbols, the ground of all forms: by Huffman, or by the static coder where that is smaller.

Both share the head that says which symbols occur; a first code length that no prefix code has
marks a static block.
"""

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec import huffman, static
from tersor.export.codec.bits import BitReader, BitWriter, ByteReader
from tersor.export.codec.prefix_codes import (
    CodeTable,
    choose_table,
    put_symbols,
    take_lengths,
    take_symbols,
    write_table,
)
from tersor.export.codec.state_codes import StateTable, choose_states, put_states, take_states

STATIC_MARK = 15
"""Part of the format, from version 2 on: in place of the first code length, which is 1..14."""


def encode(symbols: NDArray[np.unsignedinteger], *, with_static: bool = False) -> bytes:
    """Return one block of [n >= 1] uint8 or uint16 symbols, at most 2**14 distinct; n is not stored.

    Args:
        symbols: what to code.
        with_static: take the static coder where it is smaller.
    """
    if not with_static:
        return huffman.encode(symbols)
    symbols = np.ascontiguousarray(symbols)
    counts = huffman.histogram(symbols)
    table, states = choose_table(counts), choose_states(counts)
    head = write_table(table)
    if states is not None and states[1] < 8 * len(head) + int((counts[table.symbols] * table.lengths).sum()):
        return _write_static(states[0]) + static.encode(symbols, states[0])
    return head + huffman.encode_streams(symbols, table)


def decode(source: ByteReader, count: int, alphabet: int) -> NDArray[np.unsignedinteger]:
    """Return the [count >= 1] symbols of one block, all below `alphabet`: uint8 up to 256, else uint16.

    Raises:
        FormatError: a wrong table, a stream that is too short or too long, a static block in version 1.
    """
    dtype = np.dtype(np.uint8 if alphabet <= 256 else np.uint16)
    table = read_table(source, alphabet)
    if isinstance(table, StateTable):
        return static.decode(source, count, table, dtype)
    return huffman.decode_streams(source, count, table, dtype)


def _write_static(table: StateTable) -> bytes:
    bits = BitWriter()
    put_symbols(bits, table.symbols)
    bits.put(STATIC_MARK, 5)
    put_states(bits, table)
    return bits.to_bytes()


def read_table(source: ByteReader, alphabet: int) -> CodeTable | StateTable:
    """Read the table of a block, of either coder."""
    bits = BitReader(source)
    symbols = take_symbols(bits, alphabet, source)
    table: CodeTable | StateTable = CodeTable(symbols, np.zeros(1, np.int64))
    if len(symbols) > 1:
        order, first = bits.take(1), bits.take(4)
        if (order, first) == (0, STATIC_MARK) and source.version >= 2:
            table = take_states(bits, symbols, source)
        else:
            table = CodeTable(symbols, take_lengths(bits, len(symbols), source, (order, first)))
    bits.finish()
    return table
