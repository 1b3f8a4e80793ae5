"""int8 as QuantizeLinear and DequantizeLinear around fp32 operators (QDQ), by ONNX Runtime's quantizer."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from tersor.errors import BadInput
from tersor.export.forms import graph as graphs
from tersor.export.forms.quantizer import check_finite, quietly
from tersor.machine import cpu_features

CALIBRATION_BATCH = 64
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SAME_RANGE = ("Flatten", "Reshape", "MaxPool", "Squeeze", "Unsqueeze", "Transpose")
"""Operators whose output the quantizer gives the grid of their input."""


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


def to_int8(
    folded_onnx: Path,
    path: Path,
    calibration: np.ndarray,
    *,
    reduce_range: bool | None = None,
    keep_float: Sequence[str] = (),
    grids: Mapping[str, LayerGrid] | None = None,
) -> dict[str, Any]:
    """Write a statically quantized copy: QDQ, uint8 activations, int8 weights per output channel.

    Activations are uint8 because ONNX Runtime's CPU kernels multiply u8 by s8; with its default of
    int8 activations, layers stay in float and the file is slower than fp32.

    Args:
        folded_onnx: an fp32 file with BatchNorm folded.
        path: the file to write.
        calibration: preprocessed images, float32 (N, C, H, W); the extremes they reach set other scales.
        reduce_range: weights in 7 bits, which keeps processors without VNNI from saturating the
            16-bit sums of u8 x s8 products. None: decided by this machine's processor.
        keep_float: layers (`conv1`, as in `conv1.weight`) or nodes to leave in fp32.
        grids: layer -> the grids it was trained with, kept exactly unless it stays in float: the weight's
            integers where they fit (64 at most with `reduce_range`) and belong to the folded weight; the
            input's grid, of several layers that read one tensor the widest.

    Returns:
        `reduce_range` as used, `calibration_images`; layers `quantized`, `kept_float`, `kept_integers`.

    Raises:
        BadInput: no or non-finite calibration images, NaN weights, unknown names in `keep_float`,
            a file that is damaged or that ONNX Runtime cannot quantize.
        Unavailable: the file cannot be written.
    """
    model = graphs.read_model(folded_onnx)
    check_finite(model, folded_onnx)
    _check_calibration(model, calibration)
    if reduce_range is None:
        reduce_range = cpu_features()["vnni"] is False
    layers = {_layer(node): node for node in model.graph.node if node.op_type in WEIGHTED}
    excluded = _nodes_called(model, keep_float, layers, folded_onnx)
    in_float = [name for name, node in layers.items() if node.name in excluded]
    used = {k: v for k, v in (grids or {}).items() if k in layers and k not in in_float}
    kept_integers, overrides = _overrides(model, layers, used, 64 if reduce_range else 127)
    options = {
        "reduce_range": reduce_range,
        "nodes_to_exclude": excluded,
        "extra_options": {"TensorQuantOverrides": overrides},
    }
    quantized = _quantize(model, calibration, options, folded_onnx)
    _free_outputs(quantized)
    graphs.tidy(quantized)
    _drop_unused_opsets(quantized)
    graphs.set_metadata(quantized, graphs.metadata(model) | {"precision": "int8"})
    graphs.write_model(quantized, path)
    return {
        "reduce_range": reduce_range,
        "calibration_images": len(calibration),
        "quantized": [name for name in layers if name not in in_float],
        "kept_float": in_float,
        "kept_integers": kept_integers,
    }


def _check_calibration(model: ModelProto, calibration: np.ndarray) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    image_shape = tuple(d.dim_value for d in dims[1:])
    if len(calibration) == 0 or calibration.shape[1:] != image_shape:
        raise BadInput(
            "int8 needs calibration images that fit the model, at least one",
            got=f"an array of shape {calibration.shape}",
            wanted=f"(N, {', '.join(map(str, image_shape))}), N of 100 or more",
            todo="Give images of the training split",
        )
    if not np.isfinite(calibration).all():
        raise BadInput("the calibration images hold NaN or infinity", wanted="finite pixels")


def _layer(node: NodeProto) -> str:
    return node.input[1].removesuffix(".weight")


def _nodes_called(
    model: ModelProto, names: Sequence[str], layers: dict[str, NodeProto], where: Path
) -> list[str]:
    nodes = {node.name for node in model.graph.node}
    unknown = [name for name in names if name not in nodes and name not in layers]
    if unknown:
        raise BadInput(
            "no such layer to keep in float",
            got=", ".join(unknown),
            wanted=f"some of {', '.join(layers)}",
            where=where,
        )
    return [layers[name].name if name in layers else name for name in names]


class _Batches:
    """Calibration batches in the shape that onnxruntime.quantization asks for."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        starts = range(0, len(images), CALIBRATION_BATCH)
        self._feeds = iter(
            [{name: np.ascontiguousarray(images[i : i + CALIBRATION_BATCH], np.float32)} for i in starts]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        return next(self._feeds, None)


def _overrides(
    model: ModelProto, layers: Mapping[str, NodeProto], grids: Mapping[str, LayerGrid], most: int
) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Layers whose integers are kept; tensor -> what the quantizer is told about it."""
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    kept_integers, overrides = list[str](), dict[str, list[dict[str, Any]]]()
    for name, grid in grids.items():
        node = layers[name]
        scales = _folded_scales(weights.get(node.input[1]), grid.integers, most)
        if scales is not None:
            zero = np.array(0, np.int8)
            overrides[node.input[1]] = [
                {"axis": 0, "scale": np.array(s, np.float32), "zero_point": zero} for s in scales
            ]
            kept_integers.append(name)
        tensor = node.input[0]
        while grid.scale is not None and tensor:
            before = overrides.get(tensor)
            if before is None or float(before[0]["scale"]) < grid.scale:
                scale, zero = np.array(grid.scale, np.float32), np.array(grid.zero_point, np.uint8)
                overrides[tensor] = [{"scale": scale, "zero_point": zero}]
            above = made_by.get(tensor)
            tensor = above.input[0] if above is not None and above.op_type in SAME_RANGE else ""
    return kept_integers, overrides


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


def _quantize(
    model: ModelProto, calibration: np.ndarray, options: Mapping[str, Any], where: Path
) -> ModelProto:
    # the quantizer writes files beside its input, so it works on a copy in a folder of its own
    try:
        with quietly(), tempfile.TemporaryDirectory(prefix="tersor-") as folder:
            from onnxruntime import quantization
            from onnxruntime.quantization.registry import QDQRegistry

            source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
            source.write_bytes(model.SerializeToString(deterministic=True))
            quantization.quantize_static(
                source,
                target,
                _Batches(model.graph.input[0].name, calibration),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=sorted(QDQRegistry),
                **options,
            )
            return graphs.read_model(target)
    except OSError:
        raise  # a full disk is no fault of the network
    except Exception as error:
        raise BadInput(
            "the model cannot be quantized to int8",
            got=f"{type(error).__name__}: {error}",
            where=where,
            todo="Ship it as fp32, or keep the layer named in float",
        ) from error


def _free_outputs(model: ModelProto) -> None:
    """Let the last Gemm or MatMul give its float result as it is.

    The quantizer rounds the logits to 256 steps between the calibration's extremes only to turn
    them back into floats. That clips the clearest cases, and can make equal what was not.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        back = made_by.get(value.name)
        rounding = (
            made_by.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        )
        layer = made_by.get(rounding.input[0]) if rounding is not None else None
        if back is None or rounding is None or layer is None or layer.op_type not in ("Gemm", "MatMul"):
            continue
        readers = [n for n in graph.node if rounding.input[0] in n.input or rounding.output[0] in n.input]
        if rounding.op_type == "QuantizeLinear" and len(readers) == 2:
            layer.output[0] = value.name
            graph.node.remove(back)
            graph.node.remove(rounding)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def _drop_unused_opsets(model: ModelProto) -> None:
    used = {node.domain for node in model.graph.node}
    opsets = [(o.domain, o.version) for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    for domain, version in opsets:
        model.opset_import.add(domain=domain, version=version)
