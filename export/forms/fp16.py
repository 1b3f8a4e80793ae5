"""Half precision for GPUs, in standard operators."""

from pathlib import Path

from tersor.errors import BadInput
from tersor.export.forms import graph as graphs
from tersor.export.forms.quantizer import check_finite, quietly

HALF_INPUTS = "model.fp16io.onnx"
"""A bundle's file that takes and gives float16; its other files take and give float32."""


def to_fp16(onnx_path: Path, path: Path, half_inputs: bool = False) -> None:
    """Write a half-precision copy for GPUs.

    Weights beyond 65,504 are clipped to it. On a CPU such a file is slower than fp32.

    Args:
        onnx_path: an fp32 file.
        path: the file to write.
        half_inputs: inputs and outputs are float16 too, so that a caller who has halves copies half the
            bytes; otherwise they stay float32 and are cast inside.

    Raises:
        BadInput: NaN weights, a damaged file, or a graph that ONNX Runtime's converter refuses.
        Unavailable: the file cannot be written.
    """
    model = graphs.read_model(onnx_path)
    check_finite(model, onnx_path)
    entries = graphs.metadata(model)
    try:
        with quietly():
            from onnxruntime.transformers.float16 import convert_float_to_float16

            half = convert_float_to_float16(model, keep_io_types=not half_inputs)
    except Exception as error:
        raise BadInput(
            "the model cannot be converted to fp16", got=f"{type(error).__name__}: {error}", where=onnx_path
        ) from error
    graphs.sort_nodes(half)
    graphs.tidy(half)
    graphs.set_metadata(half, entries | {"precision": "fp16"})
    graphs.write_model(half, path)
