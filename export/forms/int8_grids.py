"""What int8 keeps of quantization-aware training: a layer's integers, and the grid of its input."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, numpy_helper

from tersor.export.forms.int8_operators import SAME_RANGE


@dataclass(frozen=True)
class LayerGrid:
    """What a layer was trained with, to be kept in the int8 file.

    integers: of its weight before BatchNorm was folded into it, shaped as the weight, -127 to 127; the
        file's scales follow from the folded weight. None: rounded anew.
    scale, zero_point: of its input, uint8. scale None: from calibration.
    """

    integers: np.ndarray | None = None
    scale: float | None = None
    zero_point: int = 0


def overrides(
    graph: GraphProto, calls: Mapping[str, Sequence[NodeProto]], grids: Mapping[str, LayerGrid], most: int
) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Layers whose integers are kept; tensor -> what the quantizer is told about it.

    Args:
        graph: with folded weights.
        calls: layer -> its nodes.
        grids: layer -> what it was trained with, of layers in `calls`.
        most: the largest integer that fits.
    """
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    kept_integers, told = list[str](), dict[str, list[dict[str, Any]]]()
    for name, grid in grids.items():
        weight = calls[name][0].input[1]
        scales = _folded_scales(weights.get(weight), grid.integers, most)
        if scales is not None:
            zero = np.array(0, np.int8)
            told[weight] = [{"axis": 0, "scale": np.array(s, np.float32), "zero_point": zero} for s in scales]
            kept_integers.append(name)
        if grid.scale is None:
            continue
        for node in calls[name]:
            for tensor in _one_grid(node.input[0], made_by):
                before = told.get(tensor)
                if before is None or float(before[0]["scale"]) < grid.scale:
                    scale, zero = np.array(grid.scale, np.float32), np.array(grid.zero_point, np.uint8)
                    told[tensor] = [{"scale": scale, "zero_point": zero}]
    return kept_integers, told


def _one_grid(tensor: str, made_by: Mapping[str, NodeProto]) -> Iterator[str]:
    """The tensor, and those before it that share its grid."""
    yield tensor
    above = made_by.get(tensor)
    while above is not None and above.op_type in SAME_RANGE:
        yield above.input[0]
        above = made_by.get(above.input[0])


def _folded_scales(weight: np.ndarray | None, integers: np.ndarray | None, most: int) -> np.ndarray | None:
    """The step of each output channel with which `weight` is `integers`, up to their sign; None if it is not.

    Folding multiplies a channel by a number, which may be negative: its step is the size of that number.
    """
    if weight is None or integers is None or weight.shape != integers.shape or np.abs(integers).max() > most:
        return None
    rows, whole = weight.reshape(len(weight), -1).astype(np.float64), integers.reshape(len(integers), -1)
    squares = np.maximum((whole.astype(np.float64) ** 2).sum(1), 1e-300)
    factor = (rows * whole).sum(1) / squares
    off = np.abs(rows - factor[:, None] * whole).max(1)
    if (off > 1e-3 * np.abs(factor) + 1e-30).any():
        return None
    return np.where(factor == 0, 1.0, np.abs(factor)).astype(np.float32)
