"""Targets that are not there are told, models that are not whole are refused."""

import onnx
import pytest
from onnx import TensorProto

from tersor.errors import BadInput, Unavailable
from tersor.export.timing import providers
from tersor.export.timing.providers import open_session, why_not


def test_the_cpu_is_there():
    assert why_not("cpu") is None


@pytest.mark.skipif(why_not("cuda") is None, reason="there is a GPU here")
def test_without_a_gpu_cuda_gives_a_reason_and_never_a_session(plain_onnx):
    assert "CUDAExecutionProvider" in str(why_not("cuda"))
    with pytest.raises(Unavailable, match="target 'cuda' is not available.*CUDAExecutionProvider"):
        open_session(plain_onnx, "cuda")


def test_a_provider_without_a_device_is_found_out(plain_onnx, monkeypatch):
    """onnxruntime-gpu lists CUDA on machines without a GPU; here the list is what lies."""
    import onnxruntime

    if why_not("cuda") is None:
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers.TARGETS.values()])
    providers._probe.cache_clear()
    try:
        assert "cuda" in str(why_not("cuda"))
        with pytest.raises(Unavailable):
            open_session(plain_onnx, "cuda")
    finally:
        providers._probe.cache_clear()


def test_an_unknown_target_gets_a_suggestion():
    with pytest.raises(BadInput, match="no target called 'cudda'.*Did you mean 'cuda'"):
        why_not("cudda")


def test_nodes_on_another_provider_are_named(plain_onnx, monkeypatch):
    session = open_session(plain_onnx, "cpu")
    monkeypatch.setitem(providers.TARGETS, "cpu", "OtherExecutionProvider")
    with pytest.raises(Unavailable, match=r"n0 \(Conv, on CPUExecutionProvider\)"):
        providers._check_placement(session, "cpu", "model.onnx")


def test_session_has_the_threads_asked_for(plain_onnx):
    options = open_session(plain_onnx, "cpu", threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(BadInput, match="at least one thread. Got 0"):
        open_session(plain_onnx, "cpu", threads=0)


def test_external_data_is_refused(plain_onnx, tmp_path):
    model = onnx.load(plain_onnx)
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path = tmp_path / "external.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=f"keeps tensors in other files.*external data for {tensor.name}"):
        open_session(path, "cpu")


def test_external_data_in_a_nodes_attribute_is_refused(plain_onnx):
    model = onnx.load(plain_onnx)
    attribute = model.graph.node[0].attribute.add(name="hidden", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(onnx.numpy_helper.from_array(__import__("numpy").zeros(3), "inner"))
    attribute.t.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(BadInput, match="external data for inner"):
        open_session(model.SerializeToString(), "cpu")


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "no ONNX model, or it is damaged"), (b"\xff" * 40, "damaged"), (None, "the ONNX file is missing")],
)
def test_a_damaged_or_missing_model_is_told(data, words, tmp_path):
    path = tmp_path / "m.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BadInput, match=words):
        open_session(path, "cpu")


def test_a_cut_model_is_refused(plain_onnx):
    with pytest.raises(BadInput, match="damaged|cannot load"):
        open_session(plain_onnx.read_bytes()[:-500], "cpu")
