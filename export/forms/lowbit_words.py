"""Integers of few bits as arrays that ONNX can hold: bit planes, small-integer tensors, codebooks.

See lowbit.py for what becomes of them.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

SMALLEST = 256
"""Tensors of fewer values cost more in nodes than they save."""

SHIFT_SHAPES = {1: (2, 2, 2), 2: (2, 2, 1), 4: (2, 1, 1)}
"""Bits of a plane -> shape of its shift amounts."""


def planes(bits: int) -> Sequence[int]:
    """The powers of two that sum to `bits`, largest first: 7 -> 4, 2, 1."""
    return [plane for plane in (8, 4, 2, 1) if bits & plane]


def words_of(values: np.ndarray, plane: int) -> np.ndarray:
    """Pack uint8 values of `plane` bits: (R, then the plane's cube shape), uint8."""
    padded = np.zeros(-(-values.size // 8) * 8, np.uint8)
    padded[: values.size] = values
    cube = padded.reshape(-1, 2, 2, 2)
    if plane == 8:
        return cube
    axes = tuple(i + 1 for i, side in enumerate(SHIFT_SHAPES[plane]) if side == 2)
    return np.bitwise_or.reduce(cube << shifts_of(plane), axis=axes, keepdims=True)


def shifts_of(plane: int) -> np.ndarray:
    """The amounts by which a word is shifted to show its values, uint8, shaped to broadcast."""
    shape = SHIFT_SHAPES[plane]
    return (np.arange(np.prod(shape)) * plane).astype(np.uint8).reshape(shape)


def small_integers(
    name: str, indices: np.ndarray, bits: int, shape: tuple[int, ...], kind: int
) -> TensorProto:
    """The indices as a tensor of 4-bit or 2-bit integers: the first value in the lowest bits of a byte."""
    each = 8 // bits
    padded = np.zeros(-(-indices.size // each) * each, np.uint8)
    padded[: indices.size] = indices
    shifts = (np.arange(each) * bits).astype(np.uint8)
    packed = np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1).astype(np.uint8)
    return TensorProto(name=name, data_type=kind, dims=shape, raw_data=packed.tobytes())


def integers_of(values: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    """The float32 integers of which `values` are exact multiples by `scale`; None if they are not."""
    scale = np.asarray(scale, np.float32)
    with np.errstate(all="ignore"):
        integers = np.rint(values / scale) + np.float32(0)  # no -0.0
        same = (integers * scale + np.float32(0)).tobytes() == np.ascontiguousarray(values).tobytes()
    return integers if same and np.abs(integers).max(initial=0) < 2**15 else None


def codebook_of(values: np.ndarray, max_bits: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(distinct float32 values, uint8 index of each element), or None if too many or too small."""
    patterns = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    if patterns.size < SMALLEST or np.unique(patterns[:8192]).size > 1 << max_bits:
        return None
    distinct, indices = np.unique(patterns, return_inverse=True)
    if distinct.size > 1 << max_bits:
        return None
    return distinct.view(np.float32), indices.astype(np.uint8)
