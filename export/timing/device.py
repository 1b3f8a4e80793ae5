"""Run a session with its inputs and outputs on the device: what the device takes, and what a call costs.

On a GPU `session.run` with numpy arrays is mostly copies and launches. Two times are told apart here. *End to
end*: arrays are copied to the device, the model runs, its outputs are copied back. *On the device*: inputs
and outputs stay there (IO binding), and a run waits until the device has finished. Where ONNX Runtime
allows it the launches are recorded once as a CUDA graph and replayed as one launch.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.errors import BadInput, Unavailable
from tersor.export.timing.feeds import element_type
from tersor.export.timing.providers import (
    GRAPH_OPTION,
    TARGETS,
    open_session,
    quiet_stderr,
    short,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue

DEVICES = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda"}
"""target -> ONNX Runtime's name of the device that its arrays lie on."""

NO_GRAPHS = "graphs are a GPU's"
NOT_ASKED = "the session was opened without one"


@dataclass(frozen=True)
class Bound:
    """A session with its inputs and outputs in fixed places on the device; made by `bind`, already run once.

    A captured graph belongs to the thread that captured it: make and run a Bound on one thread.

    feed: the inputs, contiguous and of the session's element types, on the host.
    inputs: the same on the device.
    graph: whether runs replay a CUDA graph; why_no_graph: why not, None where they do.
    """

    session: "InferenceSession"
    target: str
    feed: Mapping[str, np.ndarray]
    inputs: Mapping[str, "OrtValue"]
    binding: "IOBinding"
    queued: Any
    """Run options under which a run returns as soon as it is queued."""
    graph: bool
    why_no_graph: str | None

    def end_to_end(self) -> list[np.ndarray]:
        """One call as a caller has it: inputs copied to the device, run, outputs copied back.

        On the CPU nothing is copied: this is `session.run`.
        """
        if DEVICES[self.target] == "cpu":
            return list(self.session.run(None, dict(self.feed)))
        self.update(self.feed)
        self.on_device()
        return self.results()

    def on_device(self) -> None:
        """One run on the arrays that lie on the device; returns when the device has finished."""
        self.session.run_with_iobinding(self.binding)

    def device_ms(self, runs: int) -> float:
        """Milliseconds of a run when `runs` of them, at least one, are queued and waited for once.

        The clock is the host's. ONNX Runtime shows no CUDA events, and what its profiler tells excludes
        graphs; but a device that always has the next run waiting is never idle between the first launch and
        the end of the last run, so that the time elapsed is the device's, plus one launch and one wait shared
        by all runs. It is never less than the device's own. It is more where launches take longer than
        kernels (small networks without a graph): then the launches are what limits, here and in use.

        All runs but the last are told not to wait (`disable_synchronize_execution_providers`); the last one
        waits, and so for those before it: they are on one stream. On the CPU every run waits.
        """
        run, binding, queued = self.session.run_with_iobinding, self.binding, self.queued
        began = time.perf_counter_ns()
        for _ in range(runs - 1):
            run(binding, queued)
        run(binding)
        return (time.perf_counter_ns() - began) / runs / 1e6

    def update(self, feed: Mapping[str, np.ndarray]) -> None:
        """Copy other inputs of the same shapes and types into the places of the first ones.

        They must give outputs of the same shapes too.
        """
        for name, array in feed.items():
            self.inputs[name].update_inplace(array)

    def results(self) -> list[np.ndarray]:
        """The outputs of the last run, copied from the device."""
        return list(self.binding.copy_outputs_to_cpu())


Feed = Mapping[str, np.ndarray] | Callable[["InferenceSession"], Mapping[str, np.ndarray]]
"""Input name -> array, as for `session.run`; or what makes them for a session."""


def open_bound(model: Path | bytes, feed: Feed, target: str, *, threads: int = 1) -> Bound:
    """Open a session and bind it: with a CUDA graph where every node allows one, else without, saying why.

    ONNX Runtime refuses a graph for models with control flow or with nodes (copies too) on the CPU; one
    graph stands for one shape of the inputs, so there is a Bound for each.

    Args:
        model: a self-contained ONNX file, or its bytes.
        feed: as for `bind`.
        target: a key of `TARGETS`.
        threads: intra-op threads.

    Raises:
        BadInput: unknown target, a damaged model, inputs that do not fit.
        Unavailable: the target is not there, or does not run every node.
    """
    if target not in GRAPH_OPTION:
        return bind(open_session(model, target, threads=threads), feed, target)
    try:
        return bind(open_session(model, target, threads=threads, graph=True), feed, target)
    except Unavailable as refusal:
        why = str(refusal.got)
    # if the target itself is what lacks, this raises again
    return bind(open_session(model, target, threads=threads), feed, target, why_no_graph=why)


def bind(
    session: "InferenceSession",
    feed: Feed,
    target: str,
    *,
    why_no_graph: str = NOT_ASKED,
) -> Bound:
    """Put inputs and outputs onto the device and run once: memory is found, a graph or engine made.

    Args:
        session: of `open_session`, for `target`. With `graph=True` it must not have been run before.
        feed: the inputs; floats are cast to the session's floats.
        target: a key of `TARGETS`.
        why_no_graph: what is told of a session that was opened without a graph.

    Raises:
        BadInput: an input is missing, or does not fit the model.
        Unavailable: the device refuses the run, or no graph can be captured.
    """
    import onnxruntime

    graph, feed = _captures(session, target), feed(session) if callable(feed) else feed
    device, binding = DEVICES[target], session.io_binding()
    arrays = {entry.name: _array(feed, entry) for entry in session.get_inputs()}
    inputs = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)
        for name, array in arrays.items()
    }
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    unknown = _bind_outputs(session, binding, arrays, device)
    if graph and unknown is not None:
        raise Unavailable(
            "no CUDA graph can be captured", got=f"the shape of output {unknown!r} is known only after a run"
        )
    _first_run(session, binding, target, arrays)
    queued = onnxruntime.RunOptions()
    queued.add_run_config_entry("disable_synchronize_execution_providers", "1")
    why = None if graph else NO_GRAPHS if target == "cpu" else why_no_graph
    return Bound(session, target, arrays, inputs, binding, queued, graph, why)


def _captures(session: "InferenceSession", target: str) -> bool:
    """Whether the session was opened with a graph."""
    options = session.get_provider_options().get(TARGETS[target], {})
    return str(options.get(GRAPH_OPTION.get(target, ""))).lower() in ("1", "true")


def _array(feed: Mapping[str, np.ndarray], entry: Any) -> np.ndarray:
    if entry.name not in feed:
        raise BadInput("an input is missing", got=", ".join(feed) or "none", wanted=entry.name)
    array, wanted = np.asarray(feed[entry.name]), element_type(entry)
    castable = issubclass(wanted, np.floating) and np.issubdtype(array.dtype, np.floating)
    return np.array(array, wanted if castable else array.dtype, order="C")


def _bind_outputs(
    session: "InferenceSession", binding: "IOBinding", arrays: Mapping[str, np.ndarray], device: str
) -> str | None:
    """Give every output a fixed place; returns the first whose shape the inputs do not tell, or None."""
    import onnxruntime

    sizes = {
        dimension: size
        for entry in session.get_inputs()
        for dimension, size in zip(entry.shape, arrays[entry.name].shape)
        if isinstance(dimension, str)
    }
    unknown = None
    for entry in session.get_outputs():
        shape = [sizes.get(d) if isinstance(d, str) else d for d in entry.shape]
        if all(isinstance(size, int) for size in shape):
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element_type(entry), device, 0)
            binding.bind_ortvalue_output(entry.name, value)
        else:
            binding.bind_output(entry.name, device, 0)
            unknown = unknown or entry.name
    return unknown


def _first_run(
    session: "InferenceSession", binding: "IOBinding", target: str, arrays: Mapping[str, np.ndarray]
) -> None:
    """Run once, in words where it fails; TensorRT tells of its engine on stderr, which is not shown."""
    try:
        with contextlib.nullcontext() if target == "cpu" else quiet_stderr([]):
            session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime has no common base class below Exception
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        if target == "cpu" or type(error).__name__ == "InvalidArgument":
            wanted = ", ".join(f"{e.name} {e.type} {e.shape}" for e in session.get_inputs())
            raise BadInput("the inputs do not fit the model", got=shapes, wanted=wanted) from error
        raise Unavailable(f"{target!r} does not run the model", got=short(error), where=shapes) from error
