"""Packed files of version 1 that every later version must decode to the same bytes."""

import hashlib
from pathlib import Path

import pytest

from tersor.export.codec import huffman
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.pack import unpack_bytes
from tersor.export.codec.prefix_codes import write_table

HERE = Path(__file__).parent


def symbols():
    """32,960 bytes with an uneven choice of values: long enough for four streams, too random for strings."""
    digests = (hashlib.sha256(i.to_bytes(4, "little")).digest() for i in range(1030))
    return bytes(byte % 16 & byte // 16 for digest in digests for byte in digest)


@pytest.mark.parametrize("name", ["convnet", "kinds", "scaled"])
def test_models_decode_to_the_committed_bytes(name):
    assert unpack_bytes((HERE / f"{name}.tsr").read_bytes()) == (HERE / f"{name}.onnx").read_bytes()


def test_four_streams_decode():
    packed = (HERE / "symbols.tsr").read_bytes()
    assert len(packed) < 0.5 * len(symbols())
    assert unpack_bytes(packed) == symbols()


def test_the_worked_example_of_the_format_page():
    block = bytes.fromhex("92 5B 40 5C")
    decoded, table = huffman.decode(ByteReader(block, "docs/format.md"), 4, 4)
    assert decoded.tolist() == [1, 0, 3, 1]
    assert table.lengths.tolist() == [2, 1, 3, 3]
    assert write_table(table) == block[:3]
