"""Coding of numbers as bit patterns: by a codebook of the distinct ones, or byte plane by byte plane."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tersor.export.codec import blocks
from tersor.export.codec.bits import BitReader, BitWriter, ByteReader, write_varint
from tersor.export.codec.byte_coding import decode_bytes, encode_bytes

Patterns = NDArray[np.unsignedinteger]
"""Bit patterns of numbers, [n] uint8, uint16, uint32 or uint64."""

MAX_CODEBOOK = 4096
"""Most distinct values a codebook holds."""


def pattern_dtype(width: int) -> np.dtype:
    """Return the unsigned type of `width` in {1, 2, 4, 8} bytes, little-endian as in ONNX."""
    return np.dtype(f"<u{width}")


def encode_values(
    values: Patterns, codebook: Patterns | None, is_float: bool, *, with_static: bool = False
) -> bytes:
    """Return [n >= 1] patterns coded with the codebook, or byte plane by byte plane (codebook None).

    Args:
        values: [n] patterns.
        codebook: [k <= 4096] the distinct patterns among them, ascending, or None.
        is_float: whether the numbers are IEEE floats (the planes then keep exponent bits together).
        with_static: take the static coder where it is smaller.
    """
    if codebook is None:
        return write_varint(0) + encode_planes(values, is_float, with_static=with_static)
    head = write_varint(len(codebook)) + write_codebook(codebook)
    if len(codebook) == 1:
        return head
    index = np.searchsorted(codebook, values)
    narrow: Patterns = index.astype(np.uint8 if len(codebook) <= 256 else np.uint16)
    return head + blocks.encode(narrow, with_static=with_static)


def decode_values(source: ByteReader, count: int, width: int, is_float: bool) -> tuple[Patterns, bool]:
    """Return ([count >= 1] patterns of `width` bytes, whether a codebook was used).

    Raises:
        FormatError: the bytes at `source` are damaged.
    """
    size = source.varint(MAX_CODEBOOK)
    if size == 0:
        return decode_planes(source, count, width, is_float), False
    codebook = read_codebook(source, size, width)
    if size == 1:
        return np.full(count, codebook[0]), True
    return codebook[blocks.decode(source, count, size)], True


def write_codebook(codebook: Patterns) -> bytes:
    """Return ascending patterns: trailing zero bits once, the first in full, then coded differences."""
    bits = 8 * codebook.itemsize
    patterns = codebook.tolist()
    together = int(np.bitwise_or.reduce(codebook))
    shift = (together & -together).bit_length() - 1 if together else bits - 1
    out = BitWriter()
    out.put(shift, _field(bits))
    out.put(patterns[0] >> shift, bits - shift)
    for before, here in zip(patterns, patterns[1:]):
        step = (here - before) >> shift
        width = step.bit_length() - 1
        out.put(width, _field(bits))
        out.put(step - (1 << width), width)
    return out.to_bytes()


def read_codebook(source: ByteReader, size: int, width: int) -> Patterns:
    """Read `size` >= 1 ascending patterns; the inverse of `write_codebook`."""
    total = 8 * width
    bits = BitReader(source)
    shift = bits.take(_field(total))
    patterns = [bits.take(total - shift)]
    for _ in range(size - 1):
        step = bits.take(_field(total))
        patterns.append(patterns[-1] + (1 << step | bits.take(step)))
        if patterns[-1] >> (total - shift):
            raise source.error("a codebook value is out of range", hex(patterns[-1]), f"{total - shift} bits")
    bits.finish()
    return np.array([p << shift for p in patterns], pattern_dtype(width))


def _field(bits: int) -> int:
    """Return how many bits hold a number 0..bits-1, `bits` being 8, 16, 32 or 64."""
    return bits.bit_length() - 1


def encode_planes(values: Patterns, is_float: bool, *, with_static: bool = False) -> bytes:
    """Return a byte that tells which planes are blocks, then the planes, most significant first.

    Args:
        values: [n] patterns.
        is_float: rotate each pattern left by one bit first, so that the whole exponent lies in one byte.
        with_static: take the static coder where it is smaller.
    """
    return encode_plane_list(split_planes(values, is_float), with_static=with_static)


def decode_planes(source: ByteReader, count: int, width: int, is_float: bool) -> Patterns:
    """Return [count] patterns of `width` bytes; the inverse of `encode_planes`."""
    return join_planes(list(decode_plane_list(source, [count] * width)), is_float)


def split_planes(values: Patterns, is_float: bool) -> list[NDArray[np.uint8]]:
    """Return `width` arrays [n]: byte 0 of every (rotated) pattern is the most significant one."""
    if is_float:
        values = values << values.dtype.type(1) | values >> values.dtype.type(8 * values.itemsize - 1)
    columns = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize)
    return [np.ascontiguousarray(columns[:, i]) for i in reversed(range(values.itemsize))]


def join_planes(planes: list[NDArray[np.uint8]], is_float: bool) -> Patterns:
    """Return [n] patterns of len(planes) bytes; the inverse of `split_planes`."""
    width = len(planes)
    columns = np.empty((len(planes[0]), width), np.uint8)
    for i, plane in enumerate(planes):
        columns[:, width - 1 - i] = plane
    values = columns.reshape(-1).view(pattern_dtype(width))
    return rotated_back(values) if is_float else values


def rotated_back(values: Patterns) -> Patterns:
    """Return float patterns [n] whose sign bit was moved to the end by `split_planes`."""
    return values >> values.dtype.type(1) | values << values.dtype.type(8 * values.itemsize - 1)


def encode_plane_list(planes: Iterable[NDArray[np.uint8]], *, with_static: bool = False) -> bytes:
    """Return the planes' flags (bit i: plane i is a block) in a byte, then each plane, a block or raw.

    One plane is taken after the other: of a large file not all need be held at once.
    """
    coded = [encode_bytes(plane, with_static=with_static) for plane in planes]
    flags = sum(is_block << i for i, (is_block, _) in enumerate(coded))
    return bytes([flags]) + b"".join(block for _, block in coded)


def decode_plane_list(source: ByteReader, counts: list[int]) -> Iterator[NDArray[np.uint8]]:
    """One [counts[i]] byte array per plane, one after the other; the inverse of `encode_plane_list`."""
    flags = source.byte()
    if flags >> len(counts):
        raise source.error("flags for planes that do not exist", bin(flags), f"{len(counts)} planes")
    for i, count in enumerate(counts):
        yield decode_bytes(source, count, bool(flags >> i & 1))
