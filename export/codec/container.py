"""The packed file `.tsr`: magic, version, digest, sizes, and sections, with strict limits.

    3 bytes   "TSR"
    1 byte    format version, 1 or 2: the least that has all that the file needs
    32 bytes  SHA-256 over all other bytes of the file (the 4 before it, then everything behind it)
    varint    size of the original file in bytes
    4 bytes   CRC-32 of the original file, little-endian
    sections  in ascending order of their number: 1 byte number, varint size, payload

docs/format.md is the full description.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

from tersor.errors import FormatError
from tersor.export.codec.bits import VERSION, ByteReader, write_varint
from tersor.export.codec.byte_coding import check_size

MAGIC = b"TSR"
MAX_BYTES = 1 << 30
"""Default limit for the declared output: 1 GiB."""

BLOB, SKELETON, TENSORS, POOL = 1, 2, 3, 4
SECTION_NAMES = {BLOB: "BLOB", SKELETON: "SKELETON", TENSORS: "TENSORS", POOL: "POOL"}
_ALLOWED = ({BLOB}, {SKELETON}, {SKELETON, TENSORS}, {SKELETON, TENSORS, POOL})
_DIGEST_END = 36
_CRC_BYTES = 4
_MOST = 1 << 62


@dataclass(frozen=True)
class Container:
    """What a packed file says: size and CRC-32 of the original, its sections (not copied), its version."""

    original_bytes: int
    crc32: int
    sections: Mapping[int, memoryview]
    version: int = VERSION


def write_container(
    original_bytes: int, crc32: int, sections: Mapping[int, list[bytes]], version: int = VERSION
) -> bytes:
    """Return the bytes of the packed file.

    Args:
        original_bytes, crc32: size and CRC-32 of the original.
        sections: each section's payload in parts. The lists are emptied while the file is put together, so
            that a large model is not held twice.
        version: of the format.

    Raises:
        ValueError: a set of sections that no reader accepts.
    """
    if set(sections) not in _ALLOWED:
        raise ValueError(f"sections {sorted(sections)} do not make a file")
    head = MAGIC + bytes([version])
    sizes = write_varint(original_bytes) + crc32.to_bytes(_CRC_BYTES, "little")
    heads = {n: bytes([n]) + write_varint(sum(map(len, sections[n]))) for n in sorted(sections)}
    parts = (part for n, start in heads.items() for part in (start, *sections[n]))
    out = io.BytesIO()
    out.write(head + _digest(head, sizes, *parts) + sizes)
    for number, start in heads.items():
        out.write(start)
        sections[number].reverse()
        while sections[number]:
            out.write(sections[number].pop())
    return out.getvalue()


def read_container(data: bytes | memoryview, max_bytes: int = MAX_BYTES) -> Container:
    """Check and split the bytes of a packed file.

    Raises:
        FormatError: not a packed file, another version, truncated or changed, more output declared than
            `max_bytes`, or unknown, duplicate, misplaced or missing sections.
    """
    view = memoryview(data)
    if bytes(view[:3]) != MAGIC:
        raise FormatError("this is no packed file", got=bytes(view[:3]), wanted=MAGIC, where="byte 0")
    if len(view) <= _DIGEST_END:
        raise FormatError("the packed file ends too early", got=f"{len(view)} bytes", where="header")
    if not 1 <= view[3] <= VERSION:
        raise FormatError(
            "unknown version of the packed format", got=view[3], wanted=f"1..{VERSION}", where="byte 3"
        )
    if _digest(view[:4], view[_DIGEST_END:]) != view[4:_DIGEST_END]:
        raise FormatError(
            "the packed file is damaged: its SHA-256 does not match",
            where="header, byte 4",
            todo="Get the file again",
        )
    source = ByteReader(view, "header")
    source.take(_DIGEST_END)
    size = source.varint(_MOST)
    check_size(size, max_bytes, f"header, byte {_DIGEST_END}")
    crc32 = int.from_bytes(source.take(_CRC_BYTES), "little")
    return Container(size, crc32, _read_sections(source), view[3])


def _read_sections(source: ByteReader) -> dict[int, memoryview]:
    sections: dict[int, memoryview] = {}
    while source.remaining:
        number = source.byte()
        if number not in SECTION_NAMES:
            raise source.error("unknown section", number, f"one of {sorted(SECTION_NAMES)}")
        if number in sections:
            raise source.error("duplicate section", SECTION_NAMES[number])
        if sections and number < max(sections):
            raise source.error("section out of order", SECTION_NAMES[number])
        sections[number] = source.take(source.varint(_MOST))
    if set(sections) not in _ALLOWED:
        names = [SECTION_NAMES[n] for n in sections] or "none"
        raise source.error("missing or contradicting sections", names, "BLOB, or SKELETON [TENSORS [POOL]]")
    return sections


def _digest(*parts: bytes | memoryview) -> bytes:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.digest()
