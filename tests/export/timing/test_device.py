"""Runs on the device give what plain runs give, graphs or not; a graph that is refused is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tersor.errors import BadInput, Unavailable
from tersor.export.forms.fp16 import to_fp16
from tersor.export.timing import device
from tersor.export.timing.device import Bound, bind, open_bound
from tersor.export.timing.providers import open_session

TARGETS = ["cpu", *(pytest.param(target, marks=pytest.mark.gpu) for target in ("cuda", "tensorrt"))]
TF32 = 2e-3
"""Largest relative error of a product of TF32 numbers, in parts of the logits' range."""


def model(nodes: list[Any], inputs: dict[str, tuple[int, list[Any]]], output: tuple[int, list[Any]]) -> bytes:
    values = [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()]
    made = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", *output)])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(made, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", [1, 7])
def test_runs_on_the_device_give_what_a_plain_run_gives_also_after_the_inputs_changed(
    target: str, batch: int, plain_onnx: Path, make_images: Callable[..., np.ndarray]
) -> None:
    first, second = make_images(count=batch), make_images(count=2 * batch)[batch:]
    bound = open_bound(plain_onnx, {"input": first}, target)
    for images in (first, second):
        wanted = open_session(plain_onnx, "cpu").run(None, {"input": images})[0]
        bound.update({"input": images})
        bound.on_device()
        reach = 1e-5 if target == "cpu" else TF32 * np.ptp(wanted)
        assert np.abs(bound.results()[0] - wanted).max() <= reach
        bound.device_ms(3)
        assert np.abs(bound.results()[0] - wanted).max() <= reach
    again = bound.end_to_end()[0]  # with the inputs that it was made with
    assert np.abs(again - open_session(plain_onnx, "cpu").run(None, {"input": first})[0]).max() <= reach


@pytest.mark.gpu
def test_a_network_of_convolutions_is_replayed_as_a_graph(
    plain_onnx: Path, make_images: Callable[..., np.ndarray]
) -> None:
    bound = open_bound(plain_onnx, {"input": make_images(count=4)}, "cuda")
    assert (bound.graph, bound.why_no_graph) == (True, None)


def test_a_cpu_has_no_graph_and_says_so(plain_onnx: Path, make_images: Callable[..., np.ndarray]) -> None:
    bound = open_bound(plain_onnx, {"input": make_images(count=1)}, "cpu")
    assert (bound.graph, bound.why_no_graph) == (False, "graphs are a GPU's")


def test_inputs_are_copied_so_that_the_callers_arrays_may_change(
    plain_onnx: Path, make_images: Callable[..., np.ndarray]
) -> None:
    images = make_images(count=2)
    bound = open_bound(plain_onnx, {"input": images}, "cpu")
    before = bound.results()[0].copy()
    images[:] = 0
    bound.on_device()
    assert np.array_equal(bound.results()[0], before)


def test_half_inputs_are_made_of_float_ones(
    plain_onnx: Path, tmp_path: Path, make_images: Callable[..., np.ndarray]
) -> None:
    to_fp16(plain_onnx, tmp_path / "half.onnx", half_inputs=True)
    bound = open_bound(tmp_path / "half.onnx", {"input": make_images(count=2)}, "cpu")
    assert bound.feed["input"].dtype == bound.results()[0].dtype == np.float16


def test_several_inputs_of_several_types_and_a_scalar_are_bound() -> None:
    data = model(
        [
            helper.make_node("Gather", ["x", "i"], ["g"], axis=0),
            helper.make_node("Mul", ["g", "s"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["n", 2]), "i": (TensorProto.INT64, ["k"]), "s": (TensorProto.FLOAT, [])},
        (TensorProto.FLOAT, ["k", 2]),
    )
    feed = {"x": np.arange(6.0).reshape(3, 2), "i": np.array([2, 0]), "s": np.array(10.0)}
    assert np.array_equal(open_bound(data, feed, "cpu").results()[0], [[40, 50], [0, 10]])


def test_an_output_whose_shape_only_a_run_tells_is_bound_too() -> None:
    data = model(
        [helper.make_node("NonZero", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n"])},
        (TensorProto.INT64, [1, "found"]),
    )
    bound = open_bound(data, {"x": np.array([0.0, 3.0, 4.0])}, "cpu")
    assert np.array_equal(bound.results()[0], [[1, 2]])
    bound.on_device()
    assert np.array_equal(bound.results()[0], [[1, 2]])


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({}, "an input is missing. Got none. Wanted input"),
        ({"input": np.zeros((1, 1, 9, 9), np.float32)}, r"do not fit.*\(1, 1, 9, 9\).*'batch', 1, 8, 8"),
        ({"input": np.zeros((1, 1, 8, 8), np.int64)}, r"do not fit.*int64"),
    ],
)
def test_inputs_that_do_not_fit_are_told(feed: Any, words: str, plain_onnx: Path) -> None:
    with pytest.raises(BadInput, match=words):
        bind(open_session(plain_onnx, "cpu"), feed, "cpu")


class Recorder:
    """A session that writes down how it is run."""

    def __init__(self) -> None:
        self.runs: list[object] = []

    def run_with_iobinding(self, binding: object, options: object = "waits") -> None:
        self.runs.append(options)


def test_of_queued_runs_the_last_one_waits() -> None:
    session = Recorder()
    bound = Bound(session, "cuda", {}, {}, None, "queued", True, None)  # type: ignore[arg-type]
    assert bound.device_ms(4) > 0
    assert session.runs == ["queued", "queued", "queued", "waits"]


def test_a_graph_that_is_refused_is_told_and_the_model_runs_without(
    plain_onnx: Path, make_images: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "This session cannot use the graph capture feature as the model has control flow nodes"

    def opening(path: Path, target: str, *, threads: int, graph: bool = False) -> Any:
        if graph:
            raise Unavailable("ONNX Runtime opens no session on 'cuda'", got=refusal)
        return open_session(path, "cpu", threads=threads)

    monkeypatch.setattr(device, "open_session", opening)
    monkeypatch.setitem(device.DEVICES, "cuda", "cpu")
    bound = open_bound(plain_onnx, {"input": make_images(count=1)}, "cuda")
    assert (bound.graph, bound.why_no_graph) == (False, refusal)


def test_no_graph_is_captured_of_a_model_whose_outputs_have_no_fixed_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = model(
        [helper.make_node("NonZero", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n"])},
        (TensorProto.INT64, [1, "found"]),
    )
    monkeypatch.setattr(device, "_captures", lambda *_: True)
    with pytest.raises(Unavailable, match="shape of output 'y' is known only after a run"):
        bind(open_session(data, "cpu"), {"x": np.ones(3)}, "cpu")
