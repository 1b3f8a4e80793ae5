"""Where a model runs: which targets are there, why one is not, and sessions that do not fall back."""

import contextlib
import difflib
import functools
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.errors import BadInput, Unavailable
from tersor.export.forms.graph import read_model

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TARGETS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""target of a recipe -> ONNX Runtime's execution provider."""

LOG_FATAL_ONLY = 4
"""What ONNX Runtime would log it also raises; the log would only print it twice."""


def why_not(target: str) -> str | None:
    """Why nothing can run on `target` here; None when it can.

    Raises:
        BadInput: there is no target of this name.
    """
    provider = _provider(target)
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed; install tersor with the extra `cpu` or `gpu`"
    installed = onnxruntime.get_available_providers()
    if provider not in installed:
        return (
            f"onnxruntime here has no {provider} (installed: {', '.join(installed)}); "
            "install the gpu extra on a machine with an NVIDIA GPU"
        )
    return None if target == "cpu" else _probe(target)


def open_session(
    model: Path | bytes, target: str, *, threads: int = 1, profile: Path | None = None
) -> "InferenceSession":
    """A session whose every node runs on `target`.

    Args:
        model: a self-contained ONNX file, or its bytes.
        target: a key of `TARGETS`.
        threads: intra-op threads, at least 1. With more than one, idle workers sleep instead of
            spinning: spinning workers of one session take the cores from another.
        profile: where ONNX Runtime's profiler writes, as the beginning of a file name; None: it is off.

    Raises:
        BadInput: unknown target, no threads, a missing or damaged model, or one with external data.
        Unavailable: the target is not there, or some node would run elsewhere.
    """
    reason = why_not(target)
    if reason is not None:
        raise Unavailable(f"target {target!r} is not available", got=reason)
    if threads < 1:
        raise BadInput("a session needs at least one thread", got=threads, where="threads")
    where = model if isinstance(model, Path) else "model in memory"
    read_model(model)  # refuses external data, which ONNX Runtime would follow out of the folder
    data = model.read_bytes() if isinstance(model, Path) else model
    session = _session(data, target, threads, where, profile)
    _check_placement(session, target, where)
    return session


def _provider(target: str) -> str:
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, 1)
        raise BadInput(
            f"there is no target called {target!r}",
            wanted=f"one of {', '.join(TARGETS)}",
            where="setting `targets`",
            todo=f"Did you mean {near[0]!r}?" if near else None,
        )
    return TARGETS[target]


def _session(
    data: bytes, target: str, threads: int, where: object, profile: Path | None = None
) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL_ONLY
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if target != "cpu":
        # without it ONNX Runtime quietly gives a CPU session when the GPU's libraries do not load
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with contextlib.suppress(Exception):
            onnxruntime.preload_dlls()  # finds the CUDA libraries that came as Python packages
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return onnxruntime.InferenceSession(data, options, providers=[TARGETS[target]])
    except Exception as error:  # ONNX Runtime has no common base class below Exception
        if target != "cpu":
            raise Unavailable(
                f"ONNX Runtime opens no session on {target!r}", got=_short(error), where=where
            ) from error
        raise BadInput(
            "ONNX Runtime cannot load the model", got=_short(error), wanted="a valid ONNX model", where=where
        ) from error


def _check_placement(session: "InferenceSession", target: str, where: object) -> None:
    provider = TARGETS[target]
    elsewhere = [
        f"{node.name or '?'} ({node.op_type}, on {part.ep_name})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    ]
    if provider in session.get_providers() and not elsewhere:
        return
    raise Unavailable(
        f"the model would not run wholly on {target!r}",
        got=f"nodes elsewhere: {', '.join(elsewhere[:5]) or 'all'}",
        wanted=f"every node on {provider}",
        where=where,
        todo=f"Leave {target!r} out of the targets, or ship this model without these operators",
    )


@functools.cache
def _probe(target: str) -> str | None:
    """Open a one-node session on `target`: that a provider is compiled in does not make a GPU."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    try:
        session = _session(model.SerializeToString(), target, 1, "a one-node probe")
        _check_placement(session, target, "a one-node probe")
    except Unavailable as error:
        return str(error)
    return None


def _short(error: Exception) -> str:
    """What ONNX Runtime says, without error code, C++ signature and paths of its build."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"^\S+\.(cc|h):\d+ .*\) (?=[A-Z])", "", text)
    return re.sub(r"(/\S+/)+", "", text).strip().rstrip(".")[:300]
