"""int8, fp16 and low-bit files: standard operators, stated bounds, small, reproducible."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tersor.errors import BadInput
from tersor.export.forms.fp16 import to_fp16
from tersor.export.forms.int8 import to_int8
from tersor.export.forms.lowbit import to_lowbit
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import parity
from tersor.export.timing.providers import open_session


@pytest.fixture(scope="module")
def int8(folded_onnx, make_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    info = to_int8(folded_onnx, path, make_images(count=100), reduce_range=False)
    return path, info


def domains(model):
    return {o.domain for o in model.opset_import}


def test_int8_is_checked_standard_onnx(int8):
    model = onnx.load(int8[0])
    onnx.checker.check_model(model, full_check=True)
    assert domains(model) == {""}


def test_every_layer_of_int8_has_uint8_activations_and_int8_weights_per_channel(int8):
    model = onnx.load(int8[0])
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for layer in layers:
        activation, weight = (made_by[name] for name in layer.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert constants[activation.input[2]].data_type == TensorProto.UINT8
        stored, scale = constants[weight.input[0]], constants[weight.input[1]]
        assert stored.data_type == TensorProto.INT8
        assert list(scale.dims) == [stored.dims[0]]
        readers = [n.op_type for n in model.graph.node if layer.output[0] in n.input]
        assert set(readers) == ({"QuantizeLinear"} if layer is not layers[-1] else set())


def test_int8_logits_are_not_rounded_to_256_steps(int8, make_images):
    got = parity.outputs(open_session(int8[0], "cpu"), make_images(count=100))
    assert np.unique(got).size > 300


def test_int8_stays_within_its_bound(int8, digits, make_images, logits_of):
    inputs = make_images()
    expected = logits_of(digits, inputs)
    got = parity.max_abs_diff(open_session(int8[0], "cpu"), inputs, expected)
    assert 0 < got <= parity.bound("int8", expected)


def test_int8_keeps_metadata_and_names_no_folder(int8, folded_onnx, skeleton_of):
    before = {e.key: e.value for e in onnx.load(folded_onnx).metadata_props}
    after = {e.key: e.value for e in onnx.load(int8[0]).metadata_props}
    assert after == before | {"precision": "int8"}
    assert "/" not in str(onnx.load_model_from_string(skeleton_of(int8[0])))


def test_int8_again_gives_the_same_bytes_quietly_with_no_file_beside(
    int8, folded_onnx, make_images, tmp_path, capfd, caplog
):
    before = sorted(folded_onnx.parent.iterdir())
    to_int8(folded_onnx, tmp_path / "again.onnx", make_images(count=100), reduce_range=False)
    assert (tmp_path / "again.onnx").read_bytes() == int8[0].read_bytes()
    assert sorted(folded_onnx.parent.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["again.onnx"]
    assert "".join(capfd.readouterr()) == ""
    assert caplog.records == []


def test_reduced_range_uses_seven_bits(folded_onnx, make_images, tmp_path):
    info = to_int8(folded_onnx, tmp_path / "q.onnx", make_images(), reduce_range=True)
    assert info["reduce_range"] is True
    largest = [
        int(np.abs(numpy_helper.to_array(t).astype(int)).max())
        for t in onnx.load(tmp_path / "q.onnx").graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(largest) == 4
    assert max(largest) <= 64


def test_a_layer_kept_in_float_stays_float(folded_onnx, make_images, tmp_path):
    info = to_int8(folded_onnx, tmp_path / "q.onnx", make_images(), keep_float=["fc2"])
    assert info["kept_float"] == ["fc2"]
    assert info["quantized"] == ["conv1.0", "conv2.0", "fc1"]
    stored = {t.name: t.data_type for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert list(stored.values()).count(TensorProto.INT8) >= 3
    shapes = {tuple(t.dims) for t in onnx.load(tmp_path / "q.onnx").graph.initializer if t.data_type == 1}
    assert (10, 128) in shapes


def with_nan(path, target):
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "fc1.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, "fc1.weight"))
    onnx.save(model, target)
    return target


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("empty", "calibration images that fit the model, at least one. Got an array of shape (0, 1, 8, 8)"),
        ("shape", "Wanted (N, 1, 8, 8)"),
        ("nan image", "calibration images hold NaN"),
        ("nan weight", "weight 'fc1.weight' holds NaN or infinity. Got 1 such values"),
        (
            "unknown layer",
            "no such layer to keep in float. Got fc9. Wanted some of conv1.0, conv2.0, fc1, fc2",
        ),
    ],
)
def test_int8_refuses_bad_input_and_writes_nothing(case, words, folded_onnx, make_images, tmp_path):
    images, source, keep = make_images(), folded_onnx, []
    if case == "empty":
        images = images[:0]
    elif case == "shape":
        images = make_images((1, 9, 9))
    elif case == "nan image":
        images[0, 0, 0, 0] = np.nan
    elif case == "nan weight":
        source = with_nan(folded_onnx, tmp_path / "nan.onnx")
    else:
        keep = ["fc9"]
    with pytest.raises(BadInput) as caught:
        to_int8(source, tmp_path / "q.onnx", images, keep_float=keep)
    assert words in str(caught.value)
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize(("half_inputs", "kind"), [(False, TensorProto.FLOAT), (True, TensorProto.FLOAT16)])
def test_fp16_halves_the_file_within_its_bound(
    half_inputs, kind, plain_onnx, digits, make_images, logits_of, tmp_path
):
    path = tmp_path / "half.onnx"
    to_fp16(plain_onnx, path, half_inputs=half_inputs)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {v.type.tensor_type.elem_type for v in [*model.graph.input, *model.graph.output]} == {kind}
    assert path.stat().st_size < 0.55 * plain_onnx.stat().st_size
    inputs = make_images()
    expected = logits_of(digits, inputs)
    got = parity.max_abs_diff(open_session(path, "cpu"), inputs, expected)
    assert got <= parity.bound("fp16", expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_lowbit_is_bit_equal_and_of_the_size_its_bits_allow(bits, tmp_path, make_network, make_images):
    shape = (1, 20, 20)
    network = make_network("fashion", {"hidden": 61}, shape, bits=bits)
    dense, packed = tmp_path / "dense.onnx", tmp_path / "packed.onnx"
    export_onnx(network, dense)
    report = to_lowbit(dense, packed)
    inputs = make_images(shape)
    expected = parity.outputs(open_session(dense, "cpu"), inputs)
    assert np.array_equal(parity.outputs(open_session(packed, "cpu"), inputs), expected)
    assert {t.name for t in report.tensors} >= {"conv2.weight", "fc1.weight"}
    assert report.bits_per_weight <= bits + 0.03 * 32
    weights = sum(4 * t.elements for t in report.tensors)
    # on disk, not only by the report: what the packed weights take must have gone from the file
    assert packed.stat().st_size <= dense.stat().st_size - weights * (1 - bits / 32 - 0.03)
    assert packed.stat().st_size == report.bytes_after


@pytest.mark.parametrize("count", [257, 263, 264, 300])
def test_lowbit_takes_any_number_of_weights(count, tmp_path):
    levels = np.array([-0.0, 0.0, 1.5, -2.0, 7.0], np.float32)
    weight = levels[np.random.default_rng(count).integers(0, 5, (4, count))]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", d]) for n, d in (("x", count), ("y", 4))
    ]
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "d.onnx")
    report = to_lowbit(tmp_path / "d.onnx", tmp_path / "l.onnx")
    assert [(t.name, t.distinct, t.bits) for t in report.tensors] == [("w", 5, 3)]
    inputs = np.random.default_rng(0).standard_normal((3, count), np.float32)
    first, second = (
        parity.outputs(open_session(tmp_path / name, "cpu"), inputs) for name in ("d.onnx", "l.onnx")
    )
    assert first.tobytes() == second.tobytes()


def test_lowbit_loads_everywhere(plain_onnx, tmp_path):
    to_lowbit(plain_onnx, tmp_path / "l.onnx")
    model = onnx.load(tmp_path / "l.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version <= 9


def test_lowbit_of_dense_weights_packs_nothing_and_writes_nothing(tmp_path, make_network):
    export_onnx(make_network(), tmp_path / "dense.onnx")
    report = to_lowbit(tmp_path / "dense.onnx", tmp_path / "l.onnx", max_bits=4)
    assert report.tensors == ()
    assert report.bytes_after == report.bytes_before
    assert not (tmp_path / "l.onnx").exists()


def test_lowbit_is_folded_at_load(plain_onnx, tmp_path):
    import onnxruntime

    to_lowbit(plain_onnx, tmp_path / "l.onnx")
    kinds = []
    for source in (plain_onnx, tmp_path / "l.onnx"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        kinds.append([n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node])
    assert kinds[0] == kinds[1]


def test_lowbit_names_an_operator_that_opset_18_lacks(tmp_path):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Gelu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "d.onnx")
    with pytest.raises(BadInput, match="operator Gelu is newer than opset 18.*packed"):
        to_lowbit(tmp_path / "d.onnx", tmp_path / "l.onnx")
