"""Where a model runs: which targets are there, why one is not, and sessions that do not fall back."""

import contextlib
import difflib
import functools
import importlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from tersor.errors import BadInput, Unavailable
from tersor.export.forms.graph import read_model

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TARGETS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""target of a recipe -> ONNX Runtime's execution provider."""

GPU_TARGETS = tuple(target for target in TARGETS if target != "cpu")

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cpu": {},
    "cuda": {"device_id": "0", "use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"},
    "tensorrt": {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
    },
}
"""target -> options of its provider that decide its speed, stated even where they are the defaults.

TF32 is on, as in a session that is opened without options: what is timed is what a user gets. Without
caches an engine is built anew each time and nothing is written. See `provider_options`.
"""

GRAPH_OPTION = {"cuda": "enable_cuda_graph", "tensorrt": "trt_cuda_graph_enable"}

LOG_FATAL_ONLY = 4
"""What ONNX Runtime would log it also raises; the log would only print it twice."""

LOGGED = (
    re.compile(r"Failed to load library \S+ with error: ([^\n]+)"),
    re.compile(r"(Failed to create \w+\. Require [^\n]*?)\. Please"),
)
"""Why a provider is not there: ONNX Runtime says it in its log alone, and goes on without it."""

REMEDIES = {
    "libcuda.so": "it comes with NVIDIA's driver",
    "libnvinfer": "pip install 'tensorrt==10.*'",
    "libnvonnxparser": "pip install 'tensorrt==10.*'",
    "lib": "pip install nvidia-cublas 'onnxruntime-gpu[cuda,cudnn]', or torch for CUDA",
    "cuDNN": "pip install 'onnxruntime-gpu[cudnn]'",
}
"""How a missing library begins -> where to get it."""
GET_A_GPU = {
    "cuda": "install the gpu extra on a machine with an NVIDIA GPU",
    "tensorrt": "install the gpu extra and TensorRT 10 on a machine with an NVIDIA GPU",
}


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
        return f"onnxruntime here has no {provider} (installed: {', '.join(installed)}); {GET_A_GPU[target]}"
    return None if target == "cpu" else _probe(target)


def check_any(targets: Sequence[str], where: str) -> None:
    """Check that something can run on one of the targets here; that there are none at all is fine.

    Raises:
        BadInput: there is no target of such a name.
        Unavailable: nothing can run on any of them.
    """
    reasons = {target: why_not(target) for target in targets}
    if reasons and all(reasons.values()):
        raise Unavailable(
            f"nothing can be timed here, {' and '.join(map(repr, reasons))} not being available",
            got="; ".join(f"{target}: {reason}" for target, reason in reasons.items()),
            where=where,
            todo="Add 'cpu', or run on a machine that has the target",
        )


def tf32(provider: str) -> bool | None:
    """Whether products of float32 are of TF32 numbers there; None where there are none, as on the CPU.

    TensorRT has no option of it in ONNX Runtime: its builder's default is on.
    """
    if provider == TARGETS["tensorrt"]:
        return True
    told = {TARGETS[target]: options.get("use_tf32") for target, options in OPTIONS.items()}.get(provider)
    return None if told is None else told == "1"


def provider_options(target: str, *, graph: bool = False, half: bool = False) -> dict[str, str]:
    """The options that a session on `target` is opened with, besides ONNX Runtime's defaults.

    Args:
        target: a key of `TARGETS`.
        graph: capture a CUDA graph at the first run and replay it.
        half: the file holds half-precision weights: TensorRT may then compute in half, otherwise never.
    """
    options = dict(OPTIONS[target])
    if target == "tensorrt" and half:
        options["trt_fp16_enable"] = "1"
    if graph and target in GRAPH_OPTION:
        options[GRAPH_OPTION[target]] = "1"
    return options


def open_session(
    model: Path | bytes,
    target: str,
    *,
    threads: int = 1,
    profile: Path | None = None,
    graph: bool = False,
) -> "InferenceSession":
    """A session whose every node runs on `target`, and that never changes to another when a run fails.

    Args:
        model: a self-contained ONNX file, or its bytes.
        target: a key of `TARGETS`.
        threads: intra-op threads, at least 1. With more than one, idle workers sleep instead of
            spinning: spinning workers of one session take the cores from another.
        profile: where ONNX Runtime's profiler writes, as the beginning of a file name; None: it is off.
        graph: capture a CUDA graph at the first run. Such a session is run by `device.bind` only, whose
            arrays keep their addresses; see `device.open_bound`. On the CPU it changes nothing.

    Raises:
        BadInput: unknown target, no threads, a missing or damaged model, or one with external data.
        Unavailable: the target is not there, some node would run elsewhere, or the model allows no graph.
    """
    reason = why_not(target)
    if reason is not None:
        raise Unavailable(f"target {target!r} is not available", got=reason)
    if threads < 1:
        raise BadInput("a session needs at least one thread", got=threads, where="threads")
    where = model if isinstance(model, Path) else "model in memory"
    parsed = read_model(model)  # refuses external data, which ONNX Runtime would follow out of the folder
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in parsed.graph.initializer)
    data = model.read_bytes() if isinstance(model, Path) else model
    options = provider_options(target, graph=graph, half=half)
    with contextlib.nullcontext() if target == "cpu" else quiet_stderr([]):
        session = _session(data, target, threads, where, profile, options)
    _check_placement(session, target, where)
    return session


def short(error: Exception) -> str:
    """What ONNX Runtime says, without error code, C++ signature, this machine's name, paths of its build."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"\s*;\s*(GPU|hostname|file|line|expr)=[^;]*", "", text)
    text = re.sub(r"^.*(?=CUDA failure)", "", text)
    text = re.sub(r"^\S+\.(cc|h):\d+ .*\) (?=[A-Z])", "", text)
    return re.sub(r"(/\S+/)+", "", text).strip().rstrip(".; ")[:300]


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
    data: bytes,
    target: str,
    threads: int,
    where: object,
    profile: Path | None,
    provider_options: Mapping[str, str],
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
    # a node that goes to another provider is not refused here: `_check_placement` says which one it is
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if target != "cpu":
        _find_libraries(target)
    chosen = [(TARGETS[target], dict(provider_options))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # without `enable_fallback=0` a failure is printed, and the session tried again on other providers
            return onnxruntime.InferenceSession(data, options, providers=chosen, enable_fallback=0)
    except Exception as error:  # ONNX Runtime has no common base class below Exception
        if target != "cpu":
            raise Unavailable(
                f"ONNX Runtime opens no session on {target!r}", got=short(error), where=where
            ) from error
        raise BadInput(
            "ONNX Runtime cannot load the model", got=short(error), wanted="a valid ONNX model", where=where
        ) from error


def _find_libraries(target: str) -> None:
    """Load a GPU's libraries that came as Python packages; without them the system's are found later."""
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        onnxruntime.preload_dlls()
    if target == "tensorrt":
        with contextlib.suppress(Exception):
            importlib.import_module("tensorrt")


@contextlib.contextmanager
def quiet_stderr(said: list[str]) -> Iterator[None]:
    """Take what C++ code writes to stderr: it is appended to `said` and not shown.

    ONNX Runtime logs there what it does not raise, and TensorRT how it builds an engine.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


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
    """Run a convolution on `target`: neither a provider that is compiled in nor one that opens makes a GPU.

    cuDNN is looked for when the first convolution runs, not when the session opens.
    """
    said: list[str] = []
    try:
        with quiet_stderr(said):
            session = _session(_convolution(), target, 1, "a one-node probe", None, OPTIONS[target])
            _check_placement(session, target, "a one-node probe")
            session.run(None, {"x": np.ones((1, 1, 3, 3), np.float32)})
    except Exception as error:  # ONNX Runtime has no common base class below Exception
        logged = next(filter(None, (pattern.search("".join(said)) for pattern in LOGGED)), None)
        why = logged[1].strip() if logged else short(error)
        remedy = next(
            (words for start, words in REMEDIES.items() if why.startswith(start)), GET_A_GPU[target]
        )
        return f"{why}; {remedy}"
    return None


def _convolution() -> bytes:
    """A one-node model, x and y float32 (1, 1, 3, 3)."""
    from onnx import helper

    shape = [1, 1, 3, 3]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "probe", values[:1], values[1:], [weight])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
