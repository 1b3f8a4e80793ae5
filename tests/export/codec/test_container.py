"""The packed file: every changed bit and every truncation is noticed, limits hold, errors name the place."""

import hashlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tersor.errors import FormatError
from tersor.export.codec.bits import write_varint
from tersor.export.codec.byte_coding import compress, decompress
from tersor.export.codec.container import (
    BLOB,
    MAGIC,
    POOL,
    SKELETON,
    TENSORS,
    read_container,
    write_container,
)
from tersor.export.codec.pack import pack_bytes, unpack_bytes


def small_model():
    """A few tensors in different forms: sparse, codebook, pooled."""
    rng = np.random.default_rng(0)
    tensors = {
        "sparse": np.where(rng.random((20, 30)) < 0.1, rng.choice([0.5, -1, 2], (20, 30)), 0).astype(
            np.float32
        ),
        "dense": rng.choice(np.float32([1, 2, 3]), 90),
        "bias": rng.normal(0, 1, 24).astype(np.float32),
        "bytes": rng.integers(0, 6, 200).astype(np.int8),
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", ["bias"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [24])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


DATA = small_model()
PACKED = pack_bytes(DATA)


def repaired(packed):
    """Return the file with a digest that matches again, so that the parser behind it is reached."""
    head, rest = bytes(packed[:4]), bytes(packed[36:])
    return head + hashlib.sha256(head + rest).digest() + rest


def file_of(sections, size=0, crc32=0):
    body = write_varint(size) + crc32.to_bytes(4, "little")
    body += b"".join(bytes([n]) + write_varint(len(p)) + p for n, p in sections)
    return repaired(MAGIC + b"\x01" + bytes(32) + body)


def test_every_changed_bit_is_noticed():
    for byte in range(len(PACKED)):
        for bit in range(8):
            changed = bytearray(PACKED)
            changed[byte] ^= 1 << bit
            with pytest.raises(FormatError, match="damaged|no packed file|unknown version"):
                unpack_bytes(bytes(changed))


def test_every_truncation_is_noticed():
    for size in range(len(PACKED)):
        with pytest.raises(FormatError, match="damaged|no packed file|ends too early"):
            unpack_bytes(PACKED[:size])
        if size > 36:
            with pytest.raises(FormatError, match="Where: "):
                unpack_bytes(repaired(PACKED[:size]))


def told_or_harmless(changed):
    """Whether a FormatError names the place; otherwise the file must decode to the original exactly."""
    try:
        data = unpack_bytes(repaired(changed), max_bytes=1 << 20)
    except FormatError as error:
        return "Where: " in str(error)
    assert data == DATA
    return False


def test_every_changed_bit_behind_a_repaired_digest_is_told_or_harmless():
    reported = 0
    for byte in range(36, len(PACKED)):
        for bit in range(8):
            changed = bytearray(PACKED)
            changed[byte] ^= 1 << bit
            reported += told_or_harmless(changed)
    # Only the unused bits after the end of the deflate stream may change nothing.
    assert reported >= 8 * (len(PACKED) - 36) - 7


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(36, len(PACKED) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutations_behind_a_repaired_digest_are_told_or_harmless(changes):
    changed = bytearray(PACKED)
    for place, value in changes:
        changed[place] = value
    assert told_or_harmless(changed) or unpack_bytes(repaired(changed)) == DATA


def test_other_versions_and_files_are_refused():
    with pytest.raises(
        FormatError, match="unknown version of the packed format. Got 3. Wanted 1..2. Where: byte 3"
    ):
        read_container(PACKED[:3] + b"\x03" + PACKED[4:])
    with pytest.raises(FormatError, match="this is no packed file. Got b'PK"):
        read_container(b"PK\x03\x04" + bytes(100))
    with pytest.raises(
        FormatError, match="SHA-256 does not match. Where: header, byte 4. Get the file again"
    ):
        read_container(PACKED[:-1])


def test_declared_output_is_limited_before_anything_is_allocated():
    bomb = file_of([(BLOB, compress(b""))], size=(1 << 30) + 1)
    with pytest.raises(
        FormatError, match=r"more output than allowed. Got 1073741825 bytes. Wanted at most 1073741824"
    ):
        unpack_bytes(bomb)
    with pytest.raises(FormatError, match="number is out of range"):
        unpack_bytes(file_of([], size=(1 << 62) + 5))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([(SKELETON, b""), (SKELETON, b"")], "duplicate section. Got SKELETON. Where: header, byte"),
        ([(TENSORS, b""), (SKELETON, b"")], "section out of order. Got SKELETON"),
        ([(TENSORS, b"")], r"missing or contradicting sections. Got \['TENSORS'\]"),
        ([(SKELETON, b""), (POOL, b"")], "missing or contradicting sections"),
        ([(BLOB, b""), (SKELETON, b"")], "missing or contradicting sections"),
        ([], "missing or contradicting sections. Got none"),
        ([(9, b"")], "unknown section. Got 9"),
        ([(BLOB, b"")], "ends too early. Got 0 bytes. Wanted 1 bytes. Where: section BLOB, byte 0"),
        ([(BLOB, b"\x09")], "unknown method of compression. Got 9"),
        ([(BLOB, b"\x00x")], "bytes are left over. Got 1 bytes"),
        ([(SKELETON, b"\x00\x00"), (TENSORS, b"x")], "bytes are left over. Got 1 bytes.*section TENSORS"),
        ([(SKELETON, b"\x00\x00"), (TENSORS, b""), (POOL, b"")], "pool does not go with the tensors"),
        (
            [(SKELETON, b"\x05\x00")],
            "number is out of range. Got 5. Wanted at most 0. Where: section SKELETON",
        ),
    ],
)
def test_wrong_sections_are_told(sections, message):
    with pytest.raises(FormatError, match=message):
        unpack_bytes(file_of(sections))


def test_oversized_section_is_told():
    head = MAGIC + b"\x01" + bytes(32) + b"\x00" + bytes(4) + bytes([BLOB]) + write_varint(1 << 40)
    with pytest.raises(
        FormatError, match=f"ends too early. Got 0 bytes. Wanted {1 << 40} bytes. Where: header"
    ):
        unpack_bytes(repaired(head))


def test_wrong_content_is_told_by_its_checksum():
    good = file_of([(BLOB, b"\x00abc")], size=3, crc32=zlib.crc32(b"abc"))
    assert unpack_bytes(good) == b"abc"
    with pytest.raises(FormatError, match="CRC-32 does not match"):
        unpack_bytes(file_of([(BLOB, b"\x00abd")], size=3, crc32=zlib.crc32(b"abc")))


def test_a_bomb_in_a_section_gives_no_more_than_declared():
    for method in (2, 3, 4):
        packed = next(o for o in _all_methods(bytes(3_000_000)) if o[0] == method)
        with pytest.raises(FormatError, match="has the wrong size|damaged"):
            decompress(packed, 1000, "section X")
        with pytest.raises(FormatError, match="has the wrong size|damaged"):
            decompress(packed, 4_000_000, "section X")
        assert decompress(packed, 3_000_000, "section X") == bytes(3_000_000)


def _all_methods(data):
    from tersor.export.codec import byte_coding

    yield bytes([2]) + byte_coding._deflate(data)
    yield bytes([3, 3]) + byte_coding._lzma(data, 3)
    import bz2

    yield bytes([4]) + bz2.compress(data)


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_byte_strings_come_back(data):
    packed = compress(data)
    assert decompress(packed, len(data), "test") == data
    assert len(packed) <= len(data) + 1


def test_a_writer_refuses_what_no_reader_takes():
    with pytest.raises(ValueError, match=r"sections \[3\] do not make a file"):
        write_container(0, 0, {TENSORS: [b""]})
