"""Other precisions of an ONNX file, all in standard operators: int8 QDQ, fp16, packed codebooks."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tersor.export import graph as graphs
from tersor.export.lowbit import LowbitReport, LowbitTensor, to_lowbit
from tersor.export.providers import cpu_features
from tersor.models.errors import BadInput

__all__ = ["LowbitReport", "LowbitTensor", "to_fp16", "to_int8", "to_lowbit"]

CALIBRATION_BATCH = 64
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_int8(
    folded_onnx: Path,
    path: Path,
    calibration: np.ndarray,
    *,
    reduce_range: bool | None = None,
    keep_float: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a statically quantized copy: QDQ, uint8 activations, int8 weights per output channel.

    Activations are uint8 because ONNX Runtime's CPU kernels multiply u8 by s8; with its default of
    int8 activations, layers stay in float and the file is slower than fp32.

    Args:
        folded_onnx: an fp32 file with BatchNorm folded.
        path: the file to write.
        calibration: preprocessed images, float32 (N, C, H, W); their smallest and largest
            activations set the scales.
        reduce_range: weights in 7 bits, which keeps processors without VNNI from saturating the
            16-bit sums of u8 x s8 products. None: decided by this machine's processor.
        keep_float: layers (`conv1`, as in `conv1.weight`) or nodes to leave in fp32.

    Returns:
        `reduce_range` as used, `calibration_images`, `quantized` and `kept_float` (layers).

    Raises:
        BadInput: no or non-finite calibration images, NaN weights, unknown names in `keep_float`,
            a file that is damaged or that ONNX Runtime cannot quantize.
        Unavailable: the file cannot be written.
    """
    model = graphs.read_model(folded_onnx)
    _check_finite(model, folded_onnx)
    _check_calibration(model, calibration)
    if reduce_range is None:
        reduce_range = cpu_features()["vnni"] is False
    layers = {_layer(node): node for node in model.graph.node if node.op_type in WEIGHTED}
    excluded = _nodes_called(model, keep_float, layers, folded_onnx)
    quantized = _quantize(model, calibration, reduce_range, excluded, folded_onnx)
    _free_outputs(quantized)
    graphs.tidy(quantized)
    _drop_unused_opsets(quantized)
    graphs.set_metadata(quantized, graphs.metadata(model) | {"precision": "int8"})
    graphs.write_model(quantized, path)
    return {
        "reduce_range": reduce_range,
        "calibration_images": len(calibration),
        "quantized": [name for name, node in layers.items() if node.name not in excluded],
        "kept_float": [name for name, node in layers.items() if node.name in excluded],
    }


def to_fp16(onnx_path: Path, path: Path) -> None:
    """Write a half-precision copy for GPUs; input and output stay float32.

    Weights beyond 65,504 are clipped to it. On a CPU such a file is slower than fp32.

    Raises:
        BadInput: NaN weights, a damaged file, or a graph that ONNX Runtime's converter refuses.
        Unavailable: the file cannot be written.
    """
    model = graphs.read_model(onnx_path)
    _check_finite(model, onnx_path)
    entries = graphs.metadata(model)
    try:
        with _quiet():
            from onnxruntime.transformers.float16 import convert_float_to_float16

            half = convert_float_to_float16(model, keep_io_types=True)
    except Exception as error:
        raise BadInput(
            "the model cannot be converted to fp16", got=f"{type(error).__name__}: {error}", where=onnx_path
        ) from error
    graphs.sort_nodes(half)
    graphs.tidy(half)
    graphs.set_metadata(half, entries | {"precision": "fp16"})
    graphs.write_model(half, path)


def _check_finite(model: ModelProto, where: Path) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        bad = int(np.count_nonzero(~np.isfinite(numpy_helper.to_array(tensor))))
        if bad:
            raise BadInput(
                f"weight {tensor.name!r} holds NaN or infinity",
                got=f"{bad} such values",
                wanted="finite weights",
                where=where,
                todo="Train again with a lower learning rate",
            )


def _check_calibration(model: ModelProto, calibration: np.ndarray) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    wanted = tuple(d.dim_value for d in dims[1:])
    if len(calibration) == 0 or calibration.shape[1:] != wanted:
        raise BadInput(
            "int8 needs calibration images that fit the model, at least one",
            got=f"an array of shape {calibration.shape}",
            wanted=f"(N, {', '.join(map(str, wanted))}), N of 100 or more",
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


def _quantize(
    model: ModelProto, calibration: np.ndarray, reduce_range: bool, excluded: Sequence[str], where: Path
) -> ModelProto:
    # the quantizer writes files beside its input, so it works on a copy in a folder of its own
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="tersor-") as folder:
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
                reduce_range=reduce_range,
                op_types_to_quantize=sorted(QDQRegistry),
                nodes_to_exclude=list(excluded),
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
    kept = [(o.domain, o.version) for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    for domain, version in kept:
        model.opset_import.add(domain=domain, version=version)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer, which warns through the root logger and prints."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
