"""Packed files of versions 1 and 2 that every later version must decode to the same bytes."""

import hashlib
from pathlib import Path

import pytest

from tersor.export.codec import blocks, huffman
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.grid_form import FIELDS, decode_grid
from tersor.export.codec.pack import unpack_bytes
from tersor.export.codec.prefix_codes import write_table

HERE = Path(__file__).parent


def symbols():
    """32,960 bytes with an uneven choice of values: long enough for four streams, too random for strings."""
    digests = (hashlib.sha256(i.to_bytes(4, "little")).digest() for i in range(1030))
    return bytes(byte % 16 & byte // 16 for digest in digests for byte in digest)


@pytest.mark.parametrize("name", ["convnet", "kinds", "scaled", "version2", "streams2"])
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


@pytest.mark.parametrize(
    ("name", "version"), [("convnet", 1), ("scaled", 1), ("version2", 2), ("streams2", 2)]
)
def test_each_version_has_files(name, version):
    assert (HERE / f"{name}.tsr").read_bytes()[3] == version


def test_the_static_example_of_the_format_page():
    source = ByteReader(bytes.fromhex("B7 AA C1 00 02 2F 39"), "docs/format.md")
    assert blocks.decode(source, 8, 3).tolist() == [0, 0, 1, 0, 0, 2, 0, 0]
    source.finish()


def test_the_grid_example_of_the_format_page():
    source = ByteReader(bytes.fromhex("7D 03 03 A1 3E"), "docs/format.md")
    assert decode_grid(source, 5, FIELDS).view("<f4").tolist() == [0.75, -0.5, 0, 0.25, 1.25]
    source.finish()
