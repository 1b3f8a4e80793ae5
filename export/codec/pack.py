"""ONNX file <-> packed file `.tsr`, byte for byte.

Everything here works without torch. The format is described in docs/format.md.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tersor.errors import BadInput, TersorError, Unavailable
from tersor.export.codec.container import MAX_BYTES, write_container
from tersor.export.codec.form_choice import Coder
from tersor.export.codec.ledger import LedgerRow, inspect
from tersor.export.codec.packed_model import encode_fully, encode_parts, unpack_fully
from tersor.files import write_whole

__all__ = ["LedgerRow", "PackReport", "inspect", "pack", "pack_bytes", "unpack", "unpack_bytes"]

CODERS = get_args(Coder)


@dataclass(frozen=True)
class PackReport:
    """What `pack` did: sizes in bytes, and the SHA-256 (hex) of the original and of the packed file."""

    original_bytes: int
    packed_bytes: int
    original_sha256: str
    packed_sha256: str

    @property
    def ratio(self) -> float:
        """Original bytes over packed bytes."""
        return self.original_bytes / self.packed_bytes


def pack(onnx_path: str | Path, tsr_path: str | Path, *, coder: Coder = "huffman") -> PackReport:
    """Pack a file without loss; any file will do, an ONNX file gets small.

    Args:
        onnx_path: the file to pack.
        tsr_path: the packed file, replaced in one step once it is complete.
        coder: "huffman"; "static", tANS, smaller where one value abounds; "adaptive", context-adaptive range
            coding, smaller and slower to decode; "auto": the smallest for each tensor.

    Raises:
        BadInput: no such file, or an unknown coder.
        Unavailable: the packed file cannot be written; an older one is left as it was.
    """
    _check_coder(coder)
    data = read_packed(onnx_path)
    size, sha256 = len(data), hashlib.sha256(data).hexdigest()
    parts = encode_parts(data, coder)
    del data  # a large model is not held while the file is put together and unpacked again
    packed = write_container(*parts)
    del parts
    _check_lossless(packed, size, sha256)
    _write(tsr_path, packed)
    return PackReport(size, len(packed), sha256, hashlib.sha256(packed).hexdigest())


def unpack(tsr_path: str | Path, onnx_path: str | Path, *, max_bytes: int = MAX_BYTES) -> int:
    """Write the original of a packed file, byte for byte; return its size in bytes.

    Raises:
        BadInput: no such file. FormatError (a BadInput): it is damaged, or its original is larger than
            `max_bytes`. Unavailable: the original cannot be written; an older file is left as it was.
    """
    data = unpack_bytes(read_packed(tsr_path), max_bytes=max_bytes)
    _write(onnx_path, data)
    return len(data)


def pack_bytes(data: bytes, *, coder: Coder = "huffman") -> bytes:
    """Return the packed file of `data`; checked by unpacking it again.

    Raises:
        BadInput: an unknown coder.
        TersorError: unpacking gives other bytes, a bug of ours.
    """
    _check_coder(coder)
    packed = encode_fully(data, coder)
    _check_lossless(packed, len(data), hashlib.sha256(data).hexdigest())
    return packed


def _check_coder(coder: str) -> None:
    if coder not in CODERS:
        raise BadInput("unknown coder", got=coder, wanted=" or ".join(CODERS), where="coder")


def _check_lossless(packed: bytes, size: int, sha256: str) -> None:
    if hashlib.sha256(unpack_bytes(packed, max_bytes=size)).hexdigest() != sha256:
        raise TersorError("packing lost something; the packed file was not written", todo="Report this")


def unpack_bytes(data: bytes, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the original of a packed file given as bytes; the inverse of `pack_bytes`.

    Raises:
        FormatError: a damaged file, or an original larger than `max_bytes`.
    """
    return unpack_fully(data, max_bytes=max_bytes).data


def read_packed(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        BadInput: it is not there or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput("cannot read the file", got=error.strerror or error, where=path) from None


def _write(path: str | Path, data: bytes) -> None:
    try:
        write_whole(Path(path), data)
    except OSError as error:
        raise Unavailable(
            "cannot write the file; nothing was changed",
            got=error.strerror or error,
            where=path,
            todo="Check that the folder exists, is writable, and has space left",
        ) from None
