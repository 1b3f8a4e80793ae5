"""Where the bytes of a packed file go, tensor by tensor; the rows add up to the file exactly."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tersor.errors import BadInput
from tersor.export.codec.container import MAX_BYTES, POOL, SECTION_NAMES, SKELETON
from tersor.export.codec.onnx_spans import Span
from tersor.export.codec.packed_model import PieceRecord, Unpacked, unpack_fully
from tersor.export.codec.prefix_codes import MAX_ALPHABET, choose_table
from tersor.export.codec.value_coding import pattern_dtype


@dataclass(frozen=True)
class LedgerRow:
    """One part of a packed file.

    `name`: tensor name, "(skeleton)", "(blob)" or "(header)". `form`: how it is stored. `bits_per_weight`:
    packed bits per element. `entropy_bits`: order-0 entropy of all elements, zeros included, in bits per
    element. `nonzero_entropy_bits` and `average_code_bits`: of the elements that are not zero, their entropy
    and the mean word of the length-limited Huffman code for them (None where values are too many for a
    code). The last seven are None for parts that are no tensors. Zero means all bits zero: -0.0 is a value.
    """

    name: str
    form: str
    original_bytes: int
    packed_bytes: int
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    bits_per_weight: float | None = None
    nonzeros: int | None = None
    distinct: int | None = None
    entropy_bits: float | None = None
    nonzero_entropy_bits: float | None = None
    average_code_bits: float | None = None


def inspect(tsr_path: str | Path, *, max_bytes: int = MAX_BYTES) -> list[LedgerRow]:
    """Return the ledger of a packed file: header, skeleton (or blob), then every tensor.

    The rows' packed_bytes add up to the file's size, their original_bytes to the original's.

    Raises:
        BadInput: no such file. FormatError (a BadInput): a damaged file.
    """
    try:
        data = Path(tsr_path).read_bytes()
    except OSError as error:
        raise BadInput("cannot read the file", got=error.strerror or error, where=tsr_path) from None
    return ledger(len(data), unpack_fully(data, max_bytes=max_bytes))


def ledger(packed_bytes: int, unpacked: Unpacked) -> list[LedgerRow]:
    """Return the rows of `inspect` for a decoded file of `packed_bytes` bytes."""
    sections = unpacked.container.sections
    header = LedgerRow("(header)", "header", 0, packed_bytes - sum(len(s) for s in sections.values()))
    size = len(unpacked.data)
    if unpacked.layout is None:
        (number,) = sections
        return [header, LedgerRow("(blob)", SECTION_NAMES[number].lower(), size, len(sections[number]))]
    spans = unpacked.layout.spans
    skeleton = LedgerRow("(skeleton)", "skeleton", size - sum(s.size for s in spans), len(sections[SKELETON]))
    pooled = _share(len(sections.get(POOL, b"")), [r.pooled for r in unpacked.records])
    rows = [header, skeleton]
    for number, span in enumerate(spans):
        pieces = [(r, p) for r, p in zip(unpacked.records, pooled) if r.span == number]
        rows.append(_tensor_row(unpacked.data, span, [r for r, _ in pieces], sum(p for _, p in pieces)))
    return rows


def _share(total: int, weights: list[int]) -> list[int]:
    """Return integers in proportion to the weights that add up to `total` (to 0 without weights)."""
    if not sum(weights):
        return [0] * len(weights)
    ends = (np.cumsum(weights, dtype=np.float64) * total / sum(weights)).round().astype(np.int64)
    return np.diff(ends, prepend=0).tolist()


def _tensor_row(data: bytes, span: Span, records: list[PieceRecord], pooled_bytes: int) -> LedgerRow:
    values = np.frombuffer(data, pattern_dtype(span.width), span.size // span.width, span.start)
    packed = sum(r.packed_bytes for r in records) + pooled_bytes
    patterns, counts = np.unique(values, return_counts=True)
    return LedgerRow(
        name=span.name,
        form=" + ".join(dict.fromkeys(r.form for r in records)),
        original_bytes=span.size,
        packed_bytes=packed,
        dtype=span.dtype,
        shape=span.dims,
        bits_per_weight=8 * packed / len(values),
        nonzeros=int(counts[patterns != 0].sum()),
        distinct=len(patterns),
        entropy_bits=_entropy_bits(counts),
        nonzero_entropy_bits=_entropy_bits(counts[patterns != 0]),
        average_code_bits=_average_code_bits(counts[patterns != 0]),
    )


def _entropy_bits(counts: NDArray[np.integer]) -> float:
    """Return the order-0 entropy of [k] counts in bits (Shannon 1948), 0 without counts."""
    shares = counts / counts.sum() if len(counts) else np.ones(1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _average_code_bits(counts: NDArray[np.integer]) -> float | None:
    """Return the mean word length of the code for [k] counts; None for too many or none."""
    if not 0 < len(counts) <= MAX_ALPHABET:
        return None
    return float((choose_table(counts).lengths * counts).sum() / counts.sum())
