"""The contents of a packed file, bytes to bytes: skeleton, tensors and pool of an ONNX file, or one blob."""

import io
import zlib
from collections.abc import Mapping
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
from tersor.export.codec.tensor_coding import POOLED, Piece, decode_piece, split_pieces
from tersor.export.codec.value_coding import (
    Patterns,
    decode_plane_list,
    encode_plane_list,
    join_planes,
    pattern_dtype,
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
    view = memoryview(data)
    try:
        sections = encode_model(view, find_spans(view), coder)
    except NotOnnx:
        sections = {BLOB: [compress(view)]}
    return write_container(len(data), zlib.crc32(data), sections)


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
        out, records = decode_model(sections, size, skeleton, layout)
        original = out.getvalue()
    if zlib.crc32(original) != container.crc32:
        raise FormatError(
            "the decoded file is wrong: its CRC-32 does not match",
            got=f"{zlib.crc32(original):08x}",
            wanted=f"{container.crc32:08x}",
            where="header",
        )
    return Unpacked(original, container, layout, tuple(records))


def encode_model(data: memoryview, layout: Layout, coder: Coder) -> dict[int, list[bytes]]:
    """Return the sections, each in parts, of an ONNX file whose spans are known."""
    skeleton, coded = bytearray(), list[bytes]()
    pool: dict[int, list[list[NDArray[np.uint8]]]] = {width: [] for width in _WIDTHS}
    end = 0
    for span in layout.spans:
        skeleton += data[end : span.start]
        end = span.start + span.size
        for start, piece in _pieces(span):
            values = _patterns(data, start, piece)
            block = encode_piece(piece, values, coder)
            if block[0] & 15 == POOLED:
                pool[piece.width].append(split_planes(values, True)[: piece.width - (block[0] >> 4)])
            coded.append(block)
    skeleton += data[end:]
    sections = {SKELETON: [write_varint(len(skeleton)), compress(bytes(skeleton))]}
    if coded:
        sections[TENSORS] = coded
    if any(pool.values()):
        sections[POOL] = [_encode_pool(pool[width], width) for width in _WIDTHS if pool[width]]
    return sections


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


def _encode_pool(pieces: list[list[NDArray[np.uint8]]], width: int) -> bytes:
    """Return the planes of all pooled pieces of one width, plane by plane over all pieces."""
    return encode_plane_list(
        [
            np.concatenate([np.zeros(0, np.uint8), *(planes[i] for planes in pieces if i < len(planes))])
            for i in range(width)
        ]
    )


def decode_model(
    sections: Mapping[int, memoryview], original_bytes: int, skeleton: bytes, layout: Layout
) -> tuple[io.BytesIO, list[PieceRecord]]:
    """Return (the original file, how each piece was stored).

    Args:
        sections: SKELETON, TENSORS and POOL as present.
        original_bytes: size of the original file.
        skeleton: the decoded skeleton.
        layout: its spans, from `find_cuts`.

    Raises:
        FormatError: damaged tensors; the message names the tensor.
    """
    out = _filled(skeleton, original_bytes, layout)
    records: list[PieceRecord] = []
    pooled: list[_Pooled] = []
    source = ByteReader(sections.get(TENSORS, b""), "section TENSORS")
    with out.getbuffer() as target:
        for number, span in enumerate(layout.spans):
            source.where = f"section TENSORS, tensor {span.name!r}"
            for start, piece in _pieces(span):
                before = source.position
                values, form, dropped = decode_piece(source, piece)
                if values is None:
                    pooled.append(_Pooled(start, piece, dropped))
                else:
                    _store(target, start, values)
                planes = 0 if values is not None else piece.count * (piece.width - dropped)
                records.append(PieceRecord(number, form, source.position - before, planes))
        source.finish()
        _decode_pool(sections, pooled, target)
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


def _decode_pool(sections: Mapping[int, memoryview], pooled: list[_Pooled], target: memoryview) -> None:
    """Decode POOL and store its pieces; FormatError unless there is a pool exactly when it is needed."""
    if (POOL in sections) != bool(pooled):
        raise FormatError(
            "the pool does not go with the tensors",
            got=f"{len(pooled)} pooled tensors, {'a' if POOL in sections else 'no'} pool",
            where="section POOL",
        )
    source = ByteReader(sections.get(POOL, b""), "section POOL")
    for width in _WIDTHS:
        pieces = [p for p in pooled if p.piece.width == width]
        if pieces:
            _decode_pool_width(source, width, pieces, target)
    source.finish()


def _decode_pool_width(source: ByteReader, width: int, pieces: list[_Pooled], target: memoryview) -> None:
    counts = [sum(p.piece.count for p in pieces if i < width - p.dropped) for i in range(width)]
    planes = decode_plane_list(source, counts)
    taken = [0] * width
    for p in pieces:
        piece_planes = []
        for i in range(width):
            stored = p.piece.count if i < width - p.dropped else 0
            piece_planes.append(
                planes[i][taken[i] : taken[i] + stored] if stored else np.zeros(p.piece.count, np.uint8)
            )
            taken[i] += stored
        _store(target, p.start, join_planes(piece_planes, True))
