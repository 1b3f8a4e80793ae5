"""int8 as QuantizeLinear and DequantizeLinear around fp32 operators (QDQ), by ONNX Runtime's quantizer."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from tersor.errors import BadInput
from tersor.export.forms import graph as graphs
from tersor.export.forms.int8_grids import LayerGrid, overrides
from tersor.export.forms.int8_input import InputLayout, with_layout
from tersor.export.forms.int8_operators import (
    OperatorSet,
    calls_of,
    left_out,
    placed,
    smooth_activations,
    types_of,
)
from tersor.export.forms.quantizer import check_finite, quietly
from tersor.machine import cpu_features

CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Calibrated:
    """An fp32 model and the extremes that its tensors reach: measured once, for every int8 file made of it.

    ranges: ONNX Runtime's `TensorsData`. images: how many were seen. where: the file.
    """

    model: ModelProto
    ranges: Any
    images: int
    where: Path


def calibrated(folded_onnx: Path, images: np.ndarray) -> Calibrated:
    """Run a model on calibration images and keep the extremes of every tensor.

    Args:
        folded_onnx: an fp32 file with BatchNorm folded. Means over height and width become
            GlobalAveragePool, which has an integer kernel.
        images: preprocessed, float32 (N, C, H, W).

    Raises:
        BadInput: no or non-finite images, NaN weights, a file that is damaged or that does not run.
    """
    model = graphs.read_model(folded_onnx)
    check_finite(model, folded_onnx)
    _check_calibration(model, images)
    graphs.pool_globally(model)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"unnamed_{index}"  # nodes are left out by name
    with _telling(folded_onnx), tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        from onnxruntime import quantization

        source = Path(folder, "in.onnx")
        source.write_bytes(model.SerializeToString(deterministic=True))
        calibrator = quantization.create_calibrator(
            source, types_of("all"), augmented_model_path=str(Path(folder, "all.onnx"))
        )
        calibrator.collect_data(_Batches(model.graph.input[0].name, images))
        return Calibrated(model, calibrator.compute_data(), len(images), folded_onnx)


def to_int8(
    folded: Path | Calibrated,
    path: Path,
    calibration: np.ndarray | None = None,
    *,
    reduce_range: bool | None = None,
    keep_float: Sequence[str] = (),
    grids: Mapping[str, LayerGrid] | None = None,
    operators: OperatorSet = "weighted",
    layout: InputLayout = "plain",
) -> dict[str, Any]:
    """Write a statically quantized copy: QDQ, uint8 activations, int8 weights per output channel.

    Activations are uint8 because ONNX Runtime's CPU kernels multiply u8 by s8; with its default of
    int8 activations, layers stay in float and the file is slower than fp32.

    Args:
        folded: an fp32 file with BatchNorm folded, or what `calibrated` made of it.
        path: the file to write.
        calibration: images, as for `calibrated`; a `Calibrated` needs none.
        reduce_range: weights in 7 bits, which keeps processors without VNNI from saturating the
            16-bit sums of u8 x s8 products. None: decided by this machine's processor.
        keep_float: layers (`conv1`, as in `conv1.weight`; each of its calls) or nodes to leave in fp32.
        grids: layer -> the grids it was trained with, kept exactly unless it stays in float: the weight's
            integers where they fit (64 at most with `reduce_range`) and belong to the folded weight; the
            input's grid, of several layers that read one tensor the widest.
        operators: which ones are computed in integers.
        layout: of the first layer; one that does not fit it leaves it plain.

    Returns:
        `reduce_range`, `operators`, `layout` as used, `calibration_images`; layers `quantized`, `kept_float`
        (of a layer called several times, some in float, those nodes), `kept_integers`;
        `integer_operators`, `float_operators` (operator -> nodes), `smooth_activations` (the same, of
        activations without an integer kernel).

    Raises:
        BadInput: no or non-finite calibration images, NaN weights, unknown names in `keep_float`,
            a file that is damaged or that ONNX Runtime cannot quantize.
        Unavailable: the file cannot be written.
    """
    source = folded if isinstance(folded, Calibrated) else calibrated(folded, _needed(calibration))
    graph = source.model.graph
    if reduce_range is None:
        reduce_range = cpu_features()["vnni"] is False
    calls = calls_of(graph)
    excluded = [*_nodes_called(source, keep_float, calls), *left_out(graph, operators)]
    used = {k: v for k, v in (grids or {}).items() if k in calls and calls[k][0].name not in excluded}
    kept_integers, told = overrides(graph, calls, used, 64 if reduce_range else 127)
    quantized = _quantize(source, types_of(operators), excluded, reduce_range, told)
    _free_outputs(quantized)
    laid_out = with_layout(quantized, layout)
    counts = dict(zip(("integer_operators", "float_operators"), placed(quantized.graph), strict=True))
    integer, floating = _done(quantized, calls)
    quantized = laid_out or quantized
    graphs.tidy(quantized)
    _drop_unused_opsets(quantized)
    graphs.set_metadata(quantized, graphs.metadata(source.model) | {"precision": "int8"})
    graphs.write_model(quantized, path)
    return {
        "reduce_range": reduce_range,
        "operators": operators,
        "layout": layout if laid_out is not None else "plain",
        "calibration_images": source.images,
        "quantized": integer,
        "kept_float": floating,
        "kept_integers": kept_integers,
        "smooth_activations": smooth_activations(graph),
        **counts,
    }


def _needed(calibration: np.ndarray | None) -> np.ndarray:
    return np.zeros(0, np.float32) if calibration is None else calibration


def _done(model: ModelProto, calls: Mapping[str, Sequence[NodeProto]]) -> tuple[list[str], list[str]]:
    """Layers in integers and in float, as the file has them, whatever was asked for."""
    by_name = {node.name: node for node in model.graph.node}
    backs = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    integer, floating = list[str](), list[str]()
    for layer, nodes in calls.items():
        rest = [n.name for n in nodes if by_name[n.name].input[1] not in backs]
        if len(rest) < len(nodes):
            integer.append(layer)
        floating += [layer] if len(rest) == len(nodes) else rest
    return integer, floating


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


def _nodes_called(
    source: Calibrated, names: Sequence[str], calls: Mapping[str, Sequence[NodeProto]]
) -> list[str]:
    nodes = {node.name for node in source.model.graph.node}
    unknown = [name for name in names if name not in nodes and name not in calls]
    if unknown:
        raise BadInput(
            "no such layer to keep in float",
            got=", ".join(unknown),
            wanted=f"some of {', '.join(calls)}",
            where=source.where,
        )
    return [node for name in names for node in ([n.name for n in calls[name]] if name in calls else [name])]


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


@contextlib.contextmanager
def _telling(where: Path) -> Iterator[None]:
    """Silence, and the converter's errors in words."""
    try:
        with quietly():
            yield
    except (OSError, BadInput):
        raise  # a full disk is no fault of the network
    except Exception as error:
        raise BadInput(
            "the model cannot be quantized to int8",
            got=f"{type(error).__name__}: {error}",
            where=where,
            todo="Ship it as fp32, or keep the layer named in float",
        ) from error


def _quantize(
    source: Calibrated,
    types: list[str],
    excluded: list[str],
    reduce_range: bool,
    told: Mapping[str, list[dict[str, Any]]],
) -> ModelProto:
    with _telling(source.where):
        from onnxruntime.quantization import QDQQuantizer, QuantType

        quantizer = QDQQuantizer(
            ModelProto.FromString(source.model.SerializeToString()),
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=source.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=excluded,
            op_types_to_quantize=types,
            extra_options={"TensorQuantOverrides": dict(told)},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return ModelProto.FromString(quantizer.model.model.SerializeToString())


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
