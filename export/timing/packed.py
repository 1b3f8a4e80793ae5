"""Run a packed file: unpacked in memory, handed to ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.errors import FormatError, Unavailable
from tersor.export.codec.pack import read_packed
from tersor.export.codec.packed_model import unpack_fully

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def load(
    tsr_path: str | Path, *, providers: list[Any] | None = None, session_options: Any = None
) -> "InferenceSession":
    """Return an ONNX Runtime session on a packed model; nothing is written to disk.

    Args:
        tsr_path: the packed ONNX file.
        providers: as for InferenceSession; the CPU when left out.
        session_options: an onnxruntime.SessionOptions.

    Raises:
        BadInput: no such file. FormatError: it is damaged, holds no ONNX model, or a model whose weights
            lie in other files. Unavailable: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise Unavailable("onnxruntime is not installed", todo="pip install 'tersor[cpu]'") from None
    unpacked = unpack_fully(read_packed(tsr_path))
    if unpacked.layout is None:
        raise FormatError("the packed file holds no ONNX model", where=tsr_path)
    if unpacked.layout.external:
        raise FormatError(
            "the model keeps weights in other files, which a packed file cannot hold",
            where=tsr_path,
            todo="Save the model with its weights inside (external_data=False) and pack it again",
        )
    try:
        return onnxruntime.InferenceSession(
            unpacked.data, sess_options=session_options, providers=providers or ["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises many types, none of them public
        raise FormatError("ONNX Runtime refuses the packed model", got=error, where=tsr_path) from error
