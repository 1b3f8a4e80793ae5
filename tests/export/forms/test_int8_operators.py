"""Each set has its operators in integers, layouts of the first layer are exact, the report is of the file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tersor.export.forms import graph as graphs
from tersor.export.forms.int8 import to_int8
from tersor.export.forms.int8_input import first_layer_alone
from tersor.export.forms.int8_operators import smooth_activations
from tersor.export.timing.parity import outputs
from tersor.export.timing.providers import open_session

SIZE = 16


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def residual(path: Path, *, stride: int = 1, kernel: int = 3, twice: bool = False, keepdims: int = 0) -> Path:
    """conv, conv (or the same one again), a residual sum, a mean over the image, a linear layer."""
    rng = np.random.default_rng(1)
    shapes = {"stem": (16, 3, kernel, kernel), "body": (16, 16, 3, 3), "fc": (4, 16)}
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 5, f"{name}.weight")
        for name, shape in shapes.items()
    ]
    tensors.append(numpy_helper.from_array(np.array([-1, -2], np.int64), "axes"))
    half = {"kernel_shape": [3, 3], "pads": [1] * 4}
    stem = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
    nodes = [
        helper.make_node("Conv", ["input", "stem.weight"], ["a"], name="stem_1", **stem),
        helper.make_node("Conv", ["a", "body.weight"], ["b"], name="body_1", **half),
        helper.make_node("Conv", ["b", "body.weight"], ["c"], name="body_2", **half),
        helper.make_node("Add", ["a", "c" if twice else "b"], ["d"], name="sum"),
        helper.make_node("ReduceMean", ["d", "axes"], ["e"], name="mean", keepdims=keepdims),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc.weight"], ["logits"], name="fc_1", transB=1),
    ]
    if not twice:
        del nodes[2]
    values = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("operators", "integer", "kept"),
    [
        ("weighted", {"Conv": 2, "Gemm": 1}, []),
        ("most", {"Add": 1, "Conv": 1, "GlobalAveragePool": 1}, ["stem", "fc"]),
        ("all", {"Add": 1, "Conv": 2, "Gemm": 1, "GlobalAveragePool": 1}, []),
    ],
)
def test_each_set_has_its_operators_in_integers(operators, integer, kept, tmp_path):
    source = residual(tmp_path / "f.onnx")
    info = to_int8(source, tmp_path / "q.onnx", images(), operators=operators, reduce_range=False)
    found = {k: v for k, v in info["integer_operators"].items() if k != "Flatten"}
    assert found == integer
    assert info["kept_float"] == kept


@pytest.mark.parametrize(
    ("layout", "stride", "kernel"), [("padded", 1, 3), ("padded", 2, 7), ("blocks", 2, 7), ("blocks", 2, 3)]
)
def test_a_layout_of_the_first_layer_changes_no_bit(layout, stride, kernel, tmp_path):
    source = residual(tmp_path / "f.onnx", stride=stride, kernel=kernel)
    for name in ("plain", layout):
        info = to_int8(source, tmp_path / f"{name}.onnx", images(), layout=name, reduce_range=False)
        assert info["layout"] == name
    plain, other = (
        outputs(open_session(tmp_path / f"{name}.onnx", "cpu"), images(3)) for name in ("plain", layout)
    )
    assert np.array_equal(plain, other)
    alone = first_layer_alone(graphs.read_model(tmp_path / f"{layout}.onnx"))
    assert alone is not None
    first = open_session(alone.SerializeToString(), "cpu").run(None, {"input": images(3)})[0]
    assert first.shape == (3, 16, SIZE // stride, SIZE // stride)


def test_a_layout_that_does_not_fit_leaves_the_layer_plain(tmp_path):
    source = residual(tmp_path / "f.onnx", stride=1)
    info = to_int8(source, tmp_path / "q.onnx", images(), layout="blocks", reduce_range=False)
    assert info["layout"] == "plain"
    kept = to_int8(
        source, tmp_path / "q.onnx", images(), layout="padded", keep_float=["stem"], reduce_range=False
    )
    assert kept["layout"] == "plain"


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_the_image_becomes_the_same_pooling(keepdims, tmp_path):
    source = residual(tmp_path / "f.onnx", keepdims=keepdims)
    model = graphs.read_model(source)
    for tensor in model.graph.initializer:  # whole numbers: their sums are exact in any order
        if tensor.name != "axes":
            tensor.CopyFrom(numpy_helper.from_array(np.round(numpy_helper.to_array(tensor) * 5), tensor.name))
    before = open_session(model.SerializeToString(), "cpu")
    graphs.pool_globally(model)
    kinds = [node.op_type for node in model.graph.node]
    assert "GlobalAveragePool" in kinds
    assert "ReduceMean" not in kinds
    whole = np.round(images())
    after = open_session(model.SerializeToString(), "cpu")
    assert np.array_equal(outputs(before, whole), outputs(after, whole))


def test_every_call_of_a_layer_stays_in_float_when_told(tmp_path):
    source = residual(tmp_path / "f.onnx", twice=True)
    info = to_int8(source, tmp_path / "q.onnx", images(), keep_float=["body"], reduce_range=False)
    assert info["kept_float"] == ["body"]
    assert info["quantized"] == ["stem", "fc"]
    assert info["float_operators"]["Conv"] == 2


def test_a_single_call_whose_weight_is_rounded_for_another_is_not_said_to_be_in_float(tmp_path):
    source = residual(tmp_path / "f.onnx", twice=True)
    info = to_int8(source, tmp_path / "q.onnx", images(), keep_float=["body_1"], reduce_range=False)
    assert info["kept_float"] == []
    assert info["quantized"] == ["stem", "body", "fc"]


def test_smooth_activations_are_found_in_the_graph():
    nodes = [
        helper.make_node("HardSwish", ["x"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["s", "a"], ["b"]),
        helper.make_node("HardSigmoid", ["b"], ["h"]),
        helper.make_node("Mul", ["h", "x"], ["y"]),  # a gate of something else is no activation
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    assert smooth_activations(graph) == {"HardSwish": 1, "SiLU": 1}
