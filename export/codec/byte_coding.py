"""Coding of plain bytes: byte arrays by Huffman or raw, whole sections by the best general compressor."""

import bz2
import lzma
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tersor.errors import FormatError
from tersor.export.codec import blocks, huffman
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.onnx_dictionary import DICTIONARY

RAW, HUFFMAN, DEFLATE, LZMA, BZIP2 = range(5)
METHODS = ("raw", "huffman", "deflate", "lzma", "bzip2")

_THOROUGH_BYTES = 1 << 22
"""Larger sections are not given to the slow compressors (about 2 MB/s)."""

_MAX_WINDOW = 1 << 23


def encode_bytes(values: NDArray[np.uint8], *, with_static: bool = False) -> tuple[bool, bytes]:
    """Return (is a block, coded bytes) of [n] bytes, the smaller of a block and the bytes."""
    if not len(values):
        return False, b""
    block = blocks.encode(values, with_static=with_static)
    return (True, block) if len(block) < len(values) else (False, values.tobytes())


def decode_bytes(source: ByteReader, count: int, is_block: bool) -> NDArray[np.uint8]:
    """Return the [count] bytes that `encode_bytes` coded; FormatError when they are damaged."""
    if is_block and count:
        return blocks.decode(source, count, 256)
    return np.frombuffer(source.take(count), np.uint8)


def compress(data: bytes | memoryview) -> bytes:
    """Return a method byte and the data in the smallest of the methods (docs/format.md, "Byte strings")."""
    options = [bytes([RAW]) + data]
    if len(data):
        options.append(bytes([HUFFMAN]) + encode_bytes(np.frombuffer(data, np.uint8))[1])
        options[1:] = [o for o in options[1:] if len(o) < len(options[0])]
        options += [bytes([DEFLATE]) + _deflate(data)]
    if 0 < len(data) <= _THOROUGH_BYTES:
        options += [bytes([LZMA, props]) + _lzma(data, props) for props in (_props(3), _props(4), _props(0))]
        options += [bytes([BZIP2]) + bz2.compress(data, 9)]
    return min(options, key=len)


def decompress(packed: bytes | memoryview, size: int, where: str) -> bytes:
    """Return the `size` bytes that `compress` coded; the inverse of `compress`.

    Raises:
        FormatError: an unknown method, damaged data, or another size.
    """
    source = ByteReader(packed, where)
    method = source.byte()
    if method == RAW:
        data = bytes(source.take(size))
    elif method == HUFFMAN:
        data = huffman.decode(source, size, 256)[0].tobytes() if size else b""
    elif method in (DEFLATE, LZMA, BZIP2):
        data = _inflate(source, method, size)
    else:
        raise source.error("unknown method of compression", method, f"0..{len(METHODS) - 1}")
    source.finish()
    if len(data) != size:
        raise source.error("the decoded bytes have the wrong size", len(data), size)
    return data


def _inflate(source: ByteReader, method: int, size: int) -> bytes:
    """Run a library decompressor over the rest of `source`, asking for `size` bytes and no more."""
    decompress_some, at_end = _decompressor(source, method, size)
    payload = source.take(source.remaining)
    try:
        # One byte more than wanted: the end mark may be read only when there is room after the last byte.
        data = decompress_some(payload, size + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise source.error(f"the {METHODS[method]} data is damaged", str(error)) from None
    if len(data) != size or not at_end():
        raise source.error(f"the {METHODS[method]} data has the wrong size", len(data), size)
    return data


def _decompressor(
    source: ByteReader, method: int, size: int
) -> tuple[Callable[[memoryview, int], bytes], Callable[[], bool]]:
    if method == DEFLATE:
        inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
        return inflate.decompress, lambda: inflate.eof and not inflate.unused_data
    if method == BZIP2:
        bunzip = bz2.BZ2Decompressor()
        return bunzip.decompress, lambda: bunzip.eof and not bunzip.unused_data
    props = source.byte()
    if props >= 9 * 5 * 5 or props % 9 + props // 9 % 5 > 4:
        raise source.error("impossible LZMA properties", props)
    unlzma = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(size, props))
    return unlzma.decompress, lambda: unlzma.eof and not unlzma.unused_data


def _deflate(data: bytes | memoryview) -> bytes:
    packer = zlib.compressobj(
        9 if len(data) <= _THOROUGH_BYTES else 6, zlib.DEFLATED, -15, 9, zdict=DICTIONARY
    )
    return packer.compress(data) + packer.flush()


def _props(literal_context: int, literal_position: int = 0, position: int = 0) -> int:
    """Return LZMA's property byte: (pb * 5 + lp) * 9 + lc."""
    return (position * 5 + literal_position) * 9 + literal_context


def _lzma(data: bytes | memoryview, props: int) -> bytes:
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=_filters(len(data), props, preset=9))
    return packer.compress(data) + packer.flush()


def _filters(size: int, props: int, preset: int = 6) -> list[dict[str, int]]:
    """Return the raw LZMA1 filter; its window is the size rounded up to a power of two, 4 KiB to 8 MiB."""
    window = min(max(1 << max(size - 1, 1).bit_length(), 4096), _MAX_WINDOW)
    lc, lp, pb = props % 9, props // 9 % 5, props // 45
    return [{"id": lzma.FILTER_LZMA1, "preset": preset, "dict_size": window, "lc": lc, "lp": lp, "pb": pb}]


def check_size(size: int, limit: int, where: str) -> None:
    """FormatError when a declared size is over `limit`; called before anything is allocated."""
    if size > limit:
        raise FormatError(
            "the file declares more output than allowed",
            got=f"{size} bytes",
            wanted=f"at most {limit} bytes",
            where=where,
            todo="Raise max_bytes if you trust the file",
        )
