"""Bits and bytes under the packed file: varints, bit fields, and readers that know where they are.

Bits are written most significant first: the first bit of a stream is bit 7 of its first byte.
"""

import numpy as np
from numpy.typing import NDArray

from tersor.errors import FormatError

MAX_FIELD_BITS = 56
"""Widest bit field: with up to 7 bits of offset it still fits one 64-bit window."""

VERSION = 2
"""Of the packed format; all earlier ones are read for ever."""

_CHUNK = 1 << 18


def write_varint(value: int) -> bytes:
    """Return `value` >= 0 as a little-endian base-128 number, 7 bits a byte, high bit = more follows."""
    if value < 0:
        raise ValueError(f"a varint cannot hold {value}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class ByteReader:
    """A position in bytes; every read is checked and every error names the place.

    Args:
        data: the bytes to read.
        where: what the bytes are, for messages ("section TENSORS").
        version: of the format: what only a later one has is refused.
    """

    def __init__(self, data: bytes | memoryview, where: str, version: int = VERSION) -> None:
        self.data = memoryview(data)
        self.version = version
        self.position = 0
        self.where = where

    @property
    def remaining(self) -> int:
        """Number of bytes not read yet."""
        return len(self.data) - self.position

    def error(self, what: str, got: object = None, wanted: object = None) -> FormatError:
        """Return a FormatError that names this reader's place."""
        return FormatError(what, got=got, wanted=wanted, where=f"{self.where}, byte {self.position}")

    def take(self, count: int) -> memoryview:
        """Return the next `count` bytes (no copy); FormatError when fewer are left."""
        if count > self.remaining:
            raise self.error("the packed file ends too early", f"{self.remaining} bytes", f"{count} bytes")
        self.position += count
        return self.data[self.position - count : self.position]

    def byte(self) -> int:
        """Return the next byte as 0..255."""
        return self.take(1)[0]

    def varint(self, limit: int) -> int:
        """Return the next varint; FormatError when over `limit` or written longer than needed."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise self.error("a number is too long", "more than 9 bytes")
        if byte == 0 and shift > 7:
            raise self.error("a number is written with needless zero bits")
        if value > limit:
            raise self.error("a number is out of range", value, f"at most {limit}")
        return value

    def finish(self) -> None:
        """FormatError when bytes are left over."""
        if self.remaining:
            raise self.error("bytes are left over", f"{self.remaining} bytes", "none")


class BitWriter:
    """Collects a few bit fields (a table, a codebook); for arrays use `pack_fields`."""

    def __init__(self) -> None:
        self._value = 0
        self._bits = 0

    def put(self, value: int, width: int) -> None:
        """Append the `width` low bits of `value`, 0 <= value < 2**width."""
        self._value = self._value << width | value
        self._bits += width

    def exp_golomb(self, value: int, k: int = 0) -> None:
        """Append `value` >= 0, Exp-Golomb order k (Teuhola 1978): z zeros, value + 2**k in z + k + 1 bits."""
        width = (value + (1 << k)).bit_length()
        self.put(0, width - 1 - k)
        self.put(value + (1 << k), width)

    def to_bytes(self) -> bytes:
        """Return the bits, filled up with zero bits to whole bytes."""
        size = (self._bits + 7) // 8
        return (self._value << (size * 8 - self._bits)).to_bytes(size, "big")


class BitReader:
    """Reads bit fields from a ByteReader; `finish` gives the rest of the last byte back as zero padding."""

    def __init__(self, source: ByteReader) -> None:
        self._source = source
        self._value = 0
        self._bits = 0

    def take(self, width: int) -> int:
        """Return the next `width` bits as a number."""
        while self._bits < width:
            self._value = self._value << 8 | self._source.byte()
            self._bits += 8
        self._bits -= width
        value = self._value >> self._bits
        self._value &= (1 << self._bits) - 1
        return value

    def exp_golomb(self, limit: int, k: int = 0) -> int:
        """Return the next Exp-Golomb number of order k; FormatError when over `limit`."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise self._source.error("a number in a table is too long")
        width = zeros + k
        value = (1 << width | self.take(width)) - (1 << k)
        if value > limit:
            raise self._source.error("a number in a table is out of range", value, f"at most {limit}")
        return value

    def finish(self) -> None:
        """FormatError unless the padding up to the next whole byte is zero."""
        if self._value:
            raise self._source.error("padding bits are not zero")
        self._bits = 0


def pack_fields(values: NDArray[np.integer], widths: NDArray[np.integer]) -> bytes:
    """Concatenate bit fields.

    Args:
        values: [n] unsigned, values[i] < 2**widths[i].
        widths: [n] bits per field, 0..56.

    Returns:
        ceil(sum(widths) / 8) bytes, the last one filled up with zero bits.
    """
    total = int(widths.sum(dtype=np.int64))
    words = np.zeros(total // 32 + 3, np.uint32)
    start = 0
    for i in range(0, len(values), _CHUNK):
        start = _scatter(words, start, values[i : i + _CHUNK], widths[i : i + _CHUNK])
    return words.astype(">u4").tobytes()[: (total + 7) // 8]


def _scatter(
    words: NDArray[np.uint32], start: int, values: NDArray[np.integer], widths: NDArray[np.integer]
) -> int:
    """Or the fields into 32-bit `words` from bit `start` on; return the bit after the last one."""
    wide = widths.astype(np.int64)
    ends = np.cumsum(wide) + start
    if not len(ends):
        return start
    begins = ends - wide
    first = int(begins[0]) >> 5
    word = (begins >> 5) - first
    # A field starts in word w and reaches at most word w + 2: place it left-aligned in 64 + 32 bits.
    offset = (begins & 31).astype(np.uint64)
    width = wide.astype(np.uint64)
    aligned = np.where(wide > 0, values.astype(np.uint64) << (np.uint64(64) - np.maximum(width, 1)), 0)
    high = aligned >> offset
    low = (aligned << (np.uint64(63) - offset)) << np.uint64(1)
    count = int(word[-1]) + 3
    parts = (high >> np.uint64(32), high & np.uint64(0xFFFFFFFF), low >> np.uint64(32))
    for step, part in enumerate(parts):
        # bincount sums in float64: exact, because bits of one word never overlap and stay below 2**32.
        summed = np.bincount(word + step, weights=part.astype(np.float64), minlength=count)
        words[first : first + count] |= summed.astype(np.uint32)[: len(words) - first]
    return int(ends[-1])


def unpack_fields(data: bytes | memoryview, widths: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Split bits into fields; the inverse of `pack_fields`.

    Args:
        data: at least ceil(sum(widths) / 8) bytes.
        widths: [n] bits per field, 0..56.

    Returns:
        [n] uint64.
    """
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    out = np.empty(len(widths), np.uint64)
    start = 0
    for i in range(0, len(widths), _CHUNK):
        wide = widths[i : i + _CHUNK].astype(np.int64)
        ends = np.cumsum(wide) + start
        begins = ends - wide
        window = windows(padded, begins)
        width = wide.astype(np.uint64)
        shifted = window >> (np.uint64(64) - np.maximum(width, 1))
        out[i : i + _CHUNK] = np.where(wide > 0, shifted, 0)
        start = int(ends[-1])
    return out


def windows(padded: NDArray[np.uint8], begins: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return [n] uint64 whose top bits are the stream from bit begins[i] on (57 of them are valid).

    Args:
        padded: the stream followed by at least 8 spare bytes.
        begins: [n] bit positions within the stream.
    """
    byte = begins >> 3
    window = np.zeros(len(begins), np.uint64)
    for i in range(8):
        window |= padded[byte + i].astype(np.uint64) << np.uint64(56 - 8 * i)
    return window << (begins & 7).astype(np.uint64)
