"""Targets that are not there are told, models that are not whole are refused."""

import os
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from tersor.errors import BadInput, Unavailable
from tersor.export.forms.fp16 import to_fp16
from tersor.export.timing import providers
from tersor.export.timing.providers import check_any, open_session, why_not


def test_the_cpu_is_there():
    assert why_not("cpu") is None


@pytest.mark.skipif(why_not("cuda") is None, reason="there is a GPU here")
def test_without_a_gpu_cuda_gives_a_reason_and_never_a_session(plain_onnx):
    assert "CUDAExecutionProvider" in str(why_not("cuda"))
    with pytest.raises(Unavailable, match="target 'cuda' is not available.*CUDAExecutionProvider"):
        open_session(plain_onnx, "cuda")


@pytest.fixture
def listed(monkeypatch):
    """onnxruntime-gpu lists its providers on machines without a GPU; here the list is what lies."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers.TARGETS.values()])
    probe = providers._probe
    probe.cache_clear()
    yield
    probe.cache_clear()


@pytest.mark.skipif(why_not("cuda") is None, reason="there is a GPU here")
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_a_provider_without_a_device_is_found_out(target, listed, plain_onnx):
    assert "machine with an NVIDIA GPU" in str(why_not(target))
    with pytest.raises(Unavailable, match=f"'{target}' is not available"):
        open_session(plain_onnx, target)


NOT_LOADED = (
    "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] Provider& ProviderLibrary::Get() "
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /home/me/capi/libonnxruntime_providers_x.so with "
    "error: {}: cannot open shared object file: No such file or directory\n"
)
"""What onnxruntime-gpu 1.31 writes to stderr, and nowhere else, on a machine without this library."""


class Elsewhere:
    """A session that went to the CPU, as ONNX Runtime gives one where its GPU provider does not load."""

    def get_provider_graph_assignment_info(self):
        node = SimpleNamespace(name="n0", op_type="Conv")
        return [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: [node])]

    def get_providers(self):
        return ["CPUExecutionProvider"]


class Placed(Elsewhere):
    """A session wholly on CUDA whose runs fail."""

    def get_provider_graph_assignment_info(self):
        return []

    def get_providers(self):
        return ["CUDAExecutionProvider"]

    def run(self, *_):
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : cuDNN is not available. Install cuDNN, or ...")


@pytest.mark.parametrize(
    ("target", "library", "remedy"),
    [
        ("cuda", "libcublasLt.so.13", "pip install nvidia-cublas"),
        ("cuda", "libcuda.so.1", "comes with NVIDIA's driver"),
        ("tensorrt", "libnvinfer.so.10", "pip install 'tensorrt==10.*'"),
        ("tensorrt", "libcudnn.so.9", "onnxruntime-gpu[cuda,cudnn]"),
    ],
)
def test_a_library_that_does_not_load_is_named_with_where_to_get_it_and_nothing_else_is_said(
    target, library, remedy, listed, plain_onnx, monkeypatch, capfd
):
    def opening(*_, providers, enable_fallback):
        assert enable_fallback == 0  # else ONNX Runtime prints, and tries others
        os.write(2, NOT_LOADED.format(library).encode())
        if providers[0][0] == "TensorrtExecutionProvider":
            raise RuntimeError("Please install TensorRT libraries as mentioned in the GPU requirements page")
        return Elsewhere()

    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    with pytest.raises(Unavailable) as caught:
        open_session(plain_onnx, target)
    assert f"Got {library}: cannot open shared object file: No such file or directory; " in str(caught.value)
    assert remedy in str(caught.value)
    assert "/home/me" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_gpu_without_cudnn_is_found_out_by_running_a_convolution(listed, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Placed())
    assert str(why_not("cuda")).startswith("cuDNN is not available")
    assert "pip install 'onnxruntime-gpu[cudnn]'" in str(why_not("cuda"))


def test_what_a_gpu_says_is_told_without_the_machines_name():
    said = (
        "/onnxruntime_src/core/cuda/cuda_call.cc:129 Status onnxruntime::CudaCall(ERRTYPE, const char*) "
        "[with ERRTYPE = cudaError] CUDA failure 100: no CUDA-capable device is detected ; GPU=0 ; "
        "hostname=secret ; file=/onnxruntime_src/x.cc ; line=282 ; expr=cudaSetDevice(info_.device_id); "
    )
    assert providers.short(RuntimeError(said)) == "CUDA failure 100: no CUDA-capable device is detected"


def test_one_node_elsewhere_is_named_and_nothing_runs(plain_onnx, listed, monkeypatch):
    monkeypatch.setattr(providers, "_probe", lambda _: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Elsewhere())
    with pytest.raises(
        Unavailable, match=r"not run wholly on 'cuda'.*n0 \(Conv, on CPU.*Leave 'cuda' out"
    ) as caught:
        open_session(plain_onnx, "cuda")
    assert caught.value.exit_code == 4


def test_a_session_never_changes_its_provider_when_a_run_fails(plain_onnx):
    assert open_session(plain_onnx, "cpu")._enable_fallback is False


@pytest.mark.parametrize("half", [False, True])
def test_tensorrt_computes_in_half_only_where_the_file_holds_halves(
    half, plain_onnx, tmp_path, listed, monkeypatch
):
    given = []

    def opening(*_, providers, **__):
        given.append(providers[0])
        return Elsewhere()

    monkeypatch.setattr(providers, "_probe", lambda _: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    if half:
        to_fp16(plain_onnx, tmp_path / "half.onnx")
    with pytest.raises(Unavailable):
        open_session(tmp_path / "half.onnx" if half else plain_onnx, "tensorrt", graph=True)
    name, options = given[0]
    assert name == "TensorrtExecutionProvider"
    assert options["trt_fp16_enable"] == ("1" if half else "0")
    assert options["trt_timing_cache_enable"] == options["trt_engine_cache_enable"] == "0"
    assert options["trt_cuda_graph_enable"] == "1"


def test_tf32_and_the_search_for_algorithms_are_stated_not_left_to_defaults():
    assert providers.provider_options("cuda")["use_tf32"] == "1"
    assert providers.provider_options("cuda")["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert "enable_cuda_graph" not in providers.provider_options("cuda")
    assert providers.provider_options("cuda", graph=True)["enable_cuda_graph"] == "1"
    assert providers.provider_options("cpu", graph=True) == {}


@pytest.mark.skipif(why_not("cuda") is None, reason="there is a GPU here")
def test_targets_of_which_none_is_there_are_refused_together():
    check_any(["cpu", "cuda"], "setting `targets`")
    check_any([], "setting `targets`")
    with pytest.raises(
        Unavailable, match=r"'cuda' and 'tensorrt'.*cuda: .*; tensorrt: .*setting `targets`.*Add 'cpu'"
    ):
        check_any(["cuda", "tensorrt"], "setting `targets`")


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
