"""The contents of a packed file, bytes to bytes: skeleton, tensors and pool of an ONNX file, or one blob."""

import io
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.errors import FormatError
from tersor.export.codec.bits import ByteReader, write_varint
from tersor.export.codec.byte_coding import compress, decompress
from tersor.export.codec.container import (
    BLOB,
    MAX_BYTES,
    POOL,
    SKELETON,
    TENSORS,
    Container,
    read_container,
    write_container,
)
from tersor.export.codec.form_choice import Coder, encode_piece
from tersor.export.codec.onnx_spans import Layout, NotOnnx, Span, find_cuts, find_spans
from tersor.export.codec.tensor_coding import (
    COPY,
    NAMES,
    POOLED,
    VERSION_OF,
    Piece,
    decode_piece,
    read_copy,
    split_pieces,
)
from tersor.export.codec.value_coding import (
    Patterns,
    decode_plane_list,
    encode_plane_list,
    pattern_dtype,
    rotated_back,
    split_planes,
)

_WIDTHS = (2, 4, 8)


@dataclass(frozen=True)
class PieceRecord:
    """How one piece was stored: the number of its span, its form, and its bytes in TENSORS.

    `pooled`: its bytes before the pool's coding, 0 for a piece that is not pooled.
    """

    span: int
    form: str
    packed_bytes: int
    pooled: int


@dataclass(frozen=True)
class _Pooled:
    """A piece whose planes lie in the pool: where its output starts, and how many planes are dropped."""

    start: int
    piece: Piece
    dropped: int


@dataclass(frozen=True)
class Unpacked:
    """A decoded file: its bytes, and how they were stored (layout None: packed as one opaque blob)."""

    data: bytes
    container: Container
    layout: Layout | None
    records: tuple[PieceRecord, ...]


def encode_fully(data: bytes, coder: Coder = "huffman") -> bytes:
    """Return the packed file of any bytes; bytes that do not parse as ONNX become one blob."""
    return write_container(*encode_parts(data, coder))


def encode_parts(data: bytes, coder: Coder) -> tuple[int, int, dict[int, list[bytes]], int]:
    """What `write_container` puts together; of a large file, the original need not be held meanwhile."""
    view = memoryview(data)
    try:
        sections, version = encode_model(view, find_spans(view), coder)
    except NotOnnx:
        sections, version = {BLOB: [compress(view)]}, 1
    return len(data), zlib.crc32(data), sections, version


def unpack_fully(data: bytes, *, max_bytes: int = MAX_BYTES) -> Unpacked:
    """Return the original and how it was stored; FormatError as `unpack_bytes`."""
    container = read_container(data, max_bytes)
    size, sections = container.original_bytes, container.sections
    layout: Layout | None = None
    if BLOB in sections:
        records: list[PieceRecord] = []
        original = decompress(sections[BLOB], size, "section BLOB")
    else:
        skeleton = _skeleton(sections[SKELETON], size)
        layout = find_cuts(skeleton, size)
        out, records = decode_model(container, skeleton, layout)
        original = out.getvalue()
    if zlib.crc32(original) != container.crc32:
        raise FormatError(
            "the decoded file is wrong: its CRC-32 does not match",
            got=f"{zlib.crc32(original):08x}",
            wanted=f"{container.crc32:08x}",
            where="header",
        )
    return Unpacked(original, container, layout, tuple(records))


def encode_model(data: memoryview, layout: Layout, coder: Coder) -> tuple[dict[int, list[bytes]], int]:
    """Return (the sections, each in parts, of an ONNX file whose spans are known; the version they need)."""
    skeleton, coded, earlier = bytearray(), list[bytes](), _Earlier(data)
    with_static = coder in ("static", "auto")
    pool: dict[int, list[list[NDArray[np.uint8]]]] = {width: [] for width in _WIDTHS}
    end, version = 0, 2 if with_static else 1
    for span in layout.spans:
        skeleton += data[end : span.start]
        end = span.start + span.size
        for start, piece in _pieces(span):
            if back := earlier.same(start, piece):
                coded.append(bytes([COPY]) + write_varint(back))
                version = max(version, VERSION_OF[COPY])
                continue
            values = _patterns(data, start, piece)
            block = encode_piece(piece, values, coder)
            if block[0] & 15 == POOLED:
                pool[piece.width].append(split_planes(values, True)[: piece.width - (block[0] >> 4)])
            version = max(version, VERSION_OF.get(block[0] & 15, 1))
            coded.append(block)
    skeleton += data[end:]
    sections = {SKELETON: [write_varint(len(skeleton)), compress(bytes(skeleton))]}
    if coded:
        sections[TENSORS] = coded
    if any(pool.values()):
        sections[POOL] = [_encode_pool(pool[w], w, with_static) for w in _WIDTHS if pool[w]]
    return sections, version


class _Earlier:
    """The pieces so far, to find those that come again."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._last: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._count = 0

    def same(self, start: int, piece: Piece) -> int:
        """Note the piece at byte `start`; return how many pieces ago an equal one was, 0 if none was."""
        payload = self._data[start : start + piece.count * piece.width]
        key = (len(payload), piece.width, zlib.crc32(payload))
        before, number = self._last.get(key), self._count
        self._last[key] = start, number
        self._count += 1
        if before is None or self._data[before[0] : before[0] + len(payload)] != payload:
            return 0
        return number - before[1]


def _pieces(span: Span) -> list[tuple[int, Piece]]:
    """Return (first byte in the file, piece) of a span's pieces."""
    start, pieces = span.start, []
    for piece in split_pieces(span.dims, span.width, span.is_float):
        pieces.append((start, piece))
        start += piece.count * piece.width
    return pieces


def _patterns(data: memoryview, start: int, piece: Piece) -> Patterns:
    # A copy, because payloads lie at any byte and numpy is slow on unaligned numbers.
    return np.frombuffer(data[start : start + piece.count * piece.width], pattern_dtype(piece.width)).copy()


def _encode_pool(pieces: list[list[NDArray[np.uint8]]], width: int, with_static: bool) -> bytes:
    """Return the planes of all pooled pieces of one width, plane by plane over all pieces."""

    def plane(index: int) -> NDArray[np.uint8]:
        """The planes of this index, joined; the pieces' own are let go."""
        own = [np.zeros(0, np.uint8)]
        for planes in pieces:
            if index < len(planes):
                own.append(planes[index])
                planes[index] = own[0]
        return np.concatenate(own)

    return encode_plane_list(map(plane, range(width)), with_static=with_static)


def decode_model(
    container: Container, skeleton: bytes, layout: Layout
) -> tuple[io.BytesIO, list[PieceRecord]]:
    """Return (the original file, how each piece was stored).

    Args:
        container: with SKELETON, TENSORS and POOL as present.
        skeleton: the decoded skeleton.
        layout: its spans, from `find_cuts`.

    Raises:
        FormatError: damaged tensors; the message names the tensor.
    """
    out = _filled(skeleton, container.original_bytes, layout)
    records: list[PieceRecord] = []
    pooled: list[_Pooled] = []
    places: list[tuple[int, int, int]] = []
    copies: list[tuple[int, int, int]] = []
    source = ByteReader(container.sections.get(TENSORS, b""), "section TENSORS", container.version)
    with out.getbuffer() as target:
        for number, span in enumerate(layout.spans):
            source.where = f"section TENSORS, tensor {span.name!r}"
            for start, piece in _pieces(span):
                before, size = source.position, piece.count * piece.width
                places.append((start, size, piece.width))
                original = read_copy(source, len(places) - 1)
                if original is not None:
                    if places[original][1:] != (size, piece.width):
                        raise source.error("a copy of a tensor of another size", places[original][1], size)
                    copies.append((places[original][0], start, size))
                    records.append(PieceRecord(number, NAMES[COPY], source.position - before, 0))
                    continue
                values, form, dropped = decode_piece(source, piece)
                if values is None:
                    pooled.append(_Pooled(start, piece, dropped))
                else:
                    _store(target, start, values)
                planes = 0 if values is not None else piece.count * (piece.width - dropped)
                records.append(PieceRecord(number, form, source.position - before, planes))
        source.finish()
        _decode_pool(container, pooled, target)
        for original, start, size in copies:  # in file order: a copy may be copied
            target[start : start + size] = target[original : original + size]
    return out, records


def _skeleton(payload: memoryview, original_bytes: int) -> bytes:
    """Return the decoded skeleton; its size comes first, as a varint."""
    source = ByteReader(payload, "section SKELETON")
    size = source.varint(original_bytes)
    return decompress(source.take(source.remaining), size, source.where)


def _filled(skeleton: bytes, original_bytes: int, layout: Layout) -> io.BytesIO:
    """Return the original file with zeros where the spans are."""
    out = io.BytesIO()
    if original_bytes:
        # Allocate the whole file at once; growing it would copy it.
        out.seek(original_bytes - 1)
        out.write(b"\0")
        out.seek(0)
    view, taken = memoryview(skeleton), 0
    for span in layout.spans:
        size = span.start - out.tell()
        out.write(view[taken : taken + size])
        out.seek(span.size, io.SEEK_CUR)
        taken += size
    out.write(view[taken:])
    return out


def _store(target: memoryview, start: int, values: Patterns) -> None:
    target[start : start + values.nbytes] = np.ascontiguousarray(values).view(np.uint8).data


def _decode_pool(container: Container, pooled: list[_Pooled], target: memoryview) -> None:
    """Decode POOL and store its pieces; FormatError unless there is a pool exactly when it is needed."""
    sections = container.sections
    if (POOL in sections) != bool(pooled):
        raise FormatError(
            "the pool does not go with the tensors",
            got=f"{len(pooled)} pooled tensors, {'a' if POOL in sections else 'no'} pool",
            where="section POOL",
        )
    source = ByteReader(sections.get(POOL, b""), "section POOL", container.version)
    for width in _WIDTHS:
        pieces = [p for p in pooled if p.piece.width == width]
        if pieces:
            _decode_pool_width(source, width, pieces, target)
    source.finish()


def _decode_pool_width(source: ByteReader, width: int, pieces: list[_Pooled], target: memoryview) -> None:
    counts = [sum(p.piece.count for p in pieces if i < width - p.dropped) for i in range(width)]
    # plane by plane into the file, whose bytes are zero so far: all planes at once are as large as it
    for i, plane in enumerate(decode_plane_list(source, counts)):
        taken = 0
        for p in (p for p in pieces if i < width - p.dropped):
            columns = np.frombuffer(target, np.uint8, p.piece.count * width, p.start).reshape(-1, width)
            columns[:, width - 1 - i] = plane[taken : taken + p.piece.count]
            taken += p.piece.count
    for p in pieces:
        _store(target, p.start, rotated_back(_patterns(target, p.start, p.piece)))
