"""int8 files keep what quantization-aware training has learned, and never pretend to."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tersor.export.forms.int8 import to_int8
from tersor.export.forms.int8_grids import LayerGrid
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import parity
from tersor.export.timing.providers import open_session


@pytest.fixture(scope="module")
def learned(make_network, tmp_path_factory):
    """A network on 4-bit grids per channel, some BatchNorm scales negative; its folded file, its integers."""
    network = make_network()
    tensors, integers, scales = dict(network.tensors), {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.tensors.items():
        if tensor.dim() > 1:
            whole = torch.randint(-7, 8, tensor.shape, generator=generator)
            scale = 0.01 + 0.05 * torch.rand(len(tensor), *[1] * (tensor.dim() - 1), generator=generator)
            layer = name.removesuffix(".weight")
            tensors[name], integers[layer], scales[layer] = whole * scale, whole.numpy(), scale.flatten()
    norm = "conv1.1.weight"
    assert tensors[norm].dim() == 1
    tensors[norm] = tensors[norm] * torch.where(torch.arange(len(tensors[norm])) % 3 == 0, -1.0, 1.0)
    network = network.with_tensors(tensors)
    path = tmp_path_factory.mktemp("learned") / "folded.onnx"
    export_onnx(network, path, fold_batch_norm=True)
    return network, path, integers, scales


def stored_weights(path) -> dict[tuple[int, ...], np.ndarray]:
    """int8 tensors of rank two and more, by shape."""
    weights = {}
    for tensor in onnx.load(path).graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            weights[tuple(tensor.dims)] = numpy_helper.to_array(tensor).astype(np.int64)
    return weights


def input_grid(path, shape) -> tuple[float, int]:
    """Scale and zero point of the input of the layer whose weight has this shape."""
    model = onnx.load(path)
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = made_by[node.input[1]]
            if constants[weight.input[0]].shape == shape:
                back = made_by[node.input[0]]
                return float(constants[back.input[1]]), int(constants[back.input[2]])
    raise AssertionError("no such layer")


def test_the_very_integers_are_in_the_file(learned, make_images, tmp_path):
    _, path, integers, _ = learned
    grids = {layer: LayerGrid(whole) for layer, whole in integers.items()}
    info = to_int8(path, tmp_path / "q.onnx", make_images(count=64), reduce_range=False, grids=grids)
    assert set(info["kept_integers"]) == set(integers)
    stored = stored_weights(tmp_path / "q.onnx")
    for layer, whole in integers.items():
        signs = np.ones(len(whole), np.int64)
        if layer == "conv1.0":  # BatchNorm's negative scales turn a channel's integers round
            signs[::3] = -1
        assert np.array_equal(stored[whole.shape], whole * signs.reshape(-1, *[1] * (whole.ndim - 1)))
    plain = to_int8(path, tmp_path / "p.onnx", make_images(count=64), reduce_range=False)
    assert plain["kept_integers"] == []
    # rounded anew, the largest of a channel becomes 127 whatever it was
    assert all(np.abs(weight).max() == 127 for weight in stored_weights(tmp_path / "p.onnx").values())


def test_kept_grids_lose_no_accuracy_of_weights(learned, make_images, logits_of, tmp_path):
    network, path, integers, _ = learned
    images = make_images(count=64)
    grids = {layer: LayerGrid(whole) for layer, whole in integers.items()}
    to_int8(path, tmp_path / "q.onnx", images, reduce_range=False, grids=grids)
    expected = logits_of(network, images)
    difference = parity.max_abs_diff(open_session(tmp_path / "q.onnx", "cpu"), images, expected)
    assert difference <= 0.1 * parity.bound("int8", expected)


def test_input_grids_are_kept_through_pooling_and_flattening(learned, make_images, tmp_path):
    _, path, integers, _ = learned
    grids = {"fc1": LayerGrid(None, 0.037, 0), "conv1.0": LayerGrid(None, 0.029, 101)}
    to_int8(path, tmp_path / "q.onnx", make_images(count=64), reduce_range=False, grids=grids)
    assert input_grid(tmp_path / "q.onnx", integers["fc1"].shape) == (pytest.approx(0.037), 0)
    assert input_grid(tmp_path / "q.onnx", integers["conv1.0"].shape) == (pytest.approx(0.029), 101)


def test_integers_beyond_the_reduced_range_or_of_another_weight_are_rounded_anew(
    learned, make_images, tmp_path
):
    _, path, integers, _ = learned
    wide = LayerGrid(integers["fc1"] * 16)  # same direction, but up to 112: too wide for seven bits
    other = LayerGrid(np.roll(integers["fc2"], 1, axis=0))
    grids = {"fc1": wide, "fc2": other, "nowhere": LayerGrid(integers["fc2"])}
    info = to_int8(path, tmp_path / "q.onnx", make_images(), reduce_range=True, grids=grids)
    assert info["kept_integers"] == []
    info = to_int8(path, tmp_path / "q.onnx", make_images(), reduce_range=False, grids=grids)
    assert info["kept_integers"] == ["fc1"]


def test_the_input_grid_of_a_layer_in_float_is_not_used(learned, make_images, tmp_path):
    _, path, integers, _ = learned
    grids = {"fc1": LayerGrid(integers["fc1"], 1000.0, 0)}
    images = make_images(count=64)
    info = to_int8(path, tmp_path / "q.onnx", images, reduce_range=False, grids=grids, keep_float=["fc1"])
    assert info["kept_integers"] == []
    to_int8(path, tmp_path / "p.onnx", images, reduce_range=False, keep_float=["fc1"])
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()


def test_constant_images_and_zero_channels_give_a_file_that_runs(learned, tmp_path, logits_of):
    network, _, _, _ = learned
    weight = network.tensors["conv2.0.weight"].clone()
    weight[:3] = 0
    dead = network.with_tensors({**network.tensors, "conv2.0.weight": weight})
    export_onnx(dead, tmp_path / "f.onnx", fold_batch_norm=True)
    images = np.full((8, 1, 8, 8), 0.25, np.float32)
    to_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", images, reduce_range=False)
    expected = logits_of(dead, images)
    got = parity.outputs(open_session(tmp_path / "q.onnx", "cpu"), images)
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= parity.bound("int8", expected)


def test_an_operator_that_cannot_be_quantized_stays_in_float(tmp_path):
    from onnx import helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", d]) for n, d in (("x", 4), ("y", 3))]
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3), np.float32), "w")
    nodes = [helper.make_node("Erf", ["x"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"], name="m")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "f.onnx",
    )
    images = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    info = to_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", images, reduce_range=False)
    assert info["quantized"] == ["w"]
    kinds = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert kinds.count("Erf") == 1
    outputs = [
        open_session(tmp_path / name, "cpu").run(None, {"x": images})[0] for name in ("f.onnx", "q.onnx")
    ]
    assert np.abs(outputs[0] - outputs[1]).max() < 0.1
