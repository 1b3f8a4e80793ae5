"""OpenVINO's own runtime on an ONNX file: on the CPU, one stream, as many threads as asked for, no bf16."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tersor.errors import Unavailable
from tersor.export.timing.peers import Peer

DEVICE = "CPU"
NO_WORK = frozenset({"Const", "Input", "Output", "Parameter", "Result"})
"""Nodes of OpenVINO's graph that compute nothing."""


def why_not() -> str | None:
    """Why OpenVINO cannot be used here; None when it can."""
    # `import openvino` would report itself to its makers where their telemetry package is installed, too
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return f"openvino is not installed ({error})"
    return None


def openvino_peer(model: bytes, inputs: Mapping[str, np.ndarray], threads: int, where: object = None) -> Peer:
    """OpenVINO on a model, compiled for the shapes of these inputs.

    Float layers run in fp32, where OpenVINO by itself would take bf16 on processors that have it; layers that
    are int8 in the file run in int8.

    Args:
        model: a self-contained ONNX model.
        inputs: name -> array; what every run is fed.
        threads: of one run.
        where: the file, for errors.

    Raises:
        Unavailable: OpenVINO is not installed, does not take the model, or would run elsewhere than asked.
    """
    reason = why_not()
    if reason is not None:
        raise Unavailable("OpenVINO is not available", got=reason, todo="pip install 'tersor[peers]'")
    asked = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # as ONNX Runtime's threads: the system places them
    }
    compiled = _compiled(model, inputs, asked, where)
    proof = {**_placement(compiled, threads, where), "layers": _layers(compiled)}
    request, feed = compiled.create_infer_request(), dict(inputs)

    def run() -> Sequence[np.ndarray]:
        """One run; arrays are neither copied in nor out."""
        return list(request.infer(feed, share_inputs=True, share_outputs=True).values())

    return Peer("openvino", f"OpenVINO {DEVICE}", run, proof)


def _compiled(model: bytes, inputs: Mapping[str, np.ndarray], asked: Mapping[str, Any], where: object) -> Any:
    import openvino

    try:
        core = openvino.Core()
        read = core.read_model(model=model)
        read.reshape({name: list(array.shape) for name, array in inputs.items()})
        return core.compile_model(read, DEVICE, dict(asked))
    except Exception as error:  # its errors are RuntimeErrors with the places of its build in them
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
        raise Unavailable(
            "OpenVINO does not take the model", got=(lines or [type(error).__name__])[-1][:200], where=where
        ) from error


def _placement(compiled: Any, threads: int, where: object) -> dict[str, Any]:
    """What OpenVINO says it runs on.

    Raises:
        Unavailable: on something else than was asked for.
    """
    told = {
        "devices": list(compiled.get_property("EXECUTION_DEVICES")),
        "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
        "streams": compiled.get_property("NUM_STREAMS"),
        "float": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
    }
    wanted = {"devices": [DEVICE], "threads": threads, "streams": 1, "float": "f32"}
    if told != wanted:
        raise Unavailable("OpenVINO would not run as it was asked to", got=told, wanted=wanted, where=where)
    return told


def _layers(compiled: Any) -> dict[str, int]:
    """How many layers of the graph that runs are of which kind and type: "Convolution u8" -> 19."""
    told = (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    layers = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in told]
    counted = Counter(f"{kind} {precision}" for kind, precision in layers if kind not in NO_WORK)
    return dict(sorted(counted.items()))
