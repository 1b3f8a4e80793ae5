"""Low-bit files of grids with a scale for each channel, and of readers that know 4-bit and 2-bit tensors."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tersor.errors import BadInput
from tersor.export.forms.lowbit import to_lowbit
from tersor.export.forms.lowbit_words import integers_of, small_integers
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import parity
from tersor.export.timing.providers import open_session

SHAPE = (1, 20, 20)


def on_grid(network, bits: int, seed: int = 0):
    """The network with each channel's weights on its own b-bit grid, and the scales."""
    generator, tensors, scales = torch.Generator().manual_seed(seed), dict(network.tensors), {}
    for name, tensor in network.tensors.items():
        if tensor.dim() > 1:
            low = -(2 ** (bits - 1)) if bits > 1 else -1
            high = 2 ** (bits - 1) if bits > 1 else 1
            integers = torch.randint(low, high, tensor.shape, generator=generator).float()
            integers = torch.where(integers == 0, 1.0, integers) if bits == 1 else integers
            scale = 0.01 + torch.rand(len(tensor), *[1] * (tensor.dim() - 1), generator=generator)
            tensors[name], scales[name] = integers * scale, scale.numpy()
    return network.with_tensors(tensors), scales


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("consumer", ["1.17", "1.24.4"])
def test_channel_grids_are_bit_equal_and_of_the_size_their_bits_allow(bits, consumer, tmp_path, make_network):
    network, scales = on_grid(make_network("mnist", {"widths": [16, 32]}, SHAPE), bits)
    dense, packed = tmp_path / "dense.onnx", tmp_path / "packed.onnx"
    export_onnx(network, dense)
    report = to_lowbit(dense, packed, scales=scales, consumer=consumer)
    onnx.checker.check_model(onnx.load(packed), full_check=True)
    inputs = np.random.default_rng(0).standard_normal((9, *SHAPE), np.float32)
    expected = parity.outputs(open_session(dense, "cpu"), inputs)
    assert np.array_equal(parity.outputs(open_session(packed, "cpu"), inputs), expected)
    by_name = {t.name: t for t in report.tensors}
    assert {"conv2.0.weight", "fc1.weight"} <= set(by_name)
    assert all(t.bits == bits for t in report.tensors)
    fc1 = by_name["fc1.weight"]
    assert fc1.bytes_after <= fc1.bytes_before * (bits / 32 + 0.03)
    assert packed.stat().st_size == report.bytes_after


@pytest.mark.parametrize(("bits", "kind"), [(2, TensorProto.UINT2), (4, TensorProto.UINT4), (3, None)])
def test_native_tensors_are_used_for_their_own_bits_alone(bits, kind, tmp_path, make_network):
    export_onnx(make_network("mnist", {"widths": [16, 32]}, SHAPE, bits=bits), tmp_path / "d.onnx")
    sizes = {}
    for consumer in ("1.17", "1.23", "1.24.4"):
        to_lowbit(tmp_path / "d.onnx", tmp_path / "l.onnx", consumer=consumer)
        model = onnx.load(tmp_path / "l.onnx")
        native = {t.data_type for t in model.graph.initializer} & {TensorProto.UINT2, TensorProto.UINT4}
        old = consumer == "1.17" or (consumer == "1.23" and bits == 2)
        assert native == (set() if old or kind is None else {kind})
        sizes[consumer] = (tmp_path / "l.onnx").stat().st_size
    assert kind is None or sizes["1.24.4"] <= sizes["1.17"]


@pytest.mark.parametrize("consumer", ["1.17", "1.24.4"])
def test_channel_grids_are_folded_at_load(consumer, tmp_path, make_network):
    network, scales = on_grid(make_network("mnist", {"widths": [16, 32]}, SHAPE), 4)
    export_onnx(network, tmp_path / "d.onnx")
    to_lowbit(tmp_path / "d.onnx", tmp_path / "l.onnx", scales=scales, consumer=consumer)
    kinds = []
    for name in ("d.onnx", "l.onnx"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(tmp_path / name, options, providers=["CPUExecutionProvider"])
        kinds.append([n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node])
    assert kinds[0] == kinds[1]


def test_scales_that_do_not_fit_are_not_believed(tmp_path, make_network):
    network, scales = on_grid(make_network("mnist", {"widths": [16, 32]}, SHAPE), 4)
    export_onnx(network, tmp_path / "d.onnx")
    wrong = {name: scale * np.float32(1.001) for name, scale in scales.items()}
    report = to_lowbit(tmp_path / "d.onnx", tmp_path / "l.onnx", scales=wrong)
    assert "fc1.weight" not in {t.name for t in report.tensors}


@pytest.mark.parametrize("consumer", ["new", "", "1.x"])
def test_a_consumer_that_is_no_version_is_told(consumer, plain_onnx, tmp_path):
    with pytest.raises(BadInput, match=r"version of ONNX Runtime. Got '.*'. Wanted such as 1.17"):
        to_lowbit(plain_onnx, tmp_path / "l.onnx", consumer=consumer)


def test_nan_weights_are_left_as_they_are(tmp_path: Path) -> None:
    weight = np.ones((4, 100), np.float32)
    weight[1, 7] = np.nan
    assert integers_of(weight, np.ones((4, 1), np.float32)) is None
    assert integers_of(np.full((4, 100), -0.0, np.float32), np.ones((4, 1), np.float32)) is None


@given(st.sampled_from([2, 4]), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_small_integers_are_what_onnx_reads_from_them(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    kind = {2: TensorProto.UINT2, 4: TensorProto.UINT4}[bits]
    tensor = small_integers("t", values, bits, (count,), kind)
    assert numpy_helper.to_array(tensor).astype(np.uint8).tolist() == values.tolist()
    assert helper.tensor_dtype_to_string(tensor.data_type) == f"TensorProto.UINT{bits}"
