"""What ONNX Runtime does silently, held here so that a change shows; the guards are in export/."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from nets import make

from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.providers import open_session, why_not


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(make(batch_norm=True), path)
    return path


def test_missing_provider_silently_becomes_the_cpu(model: Path) -> None:
    if why_not("cuda") is None:
        pytest.skip("this machine has CUDA: nothing falls back")
    session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_batch_norm_left_in_the_file_costs_no_nodes_after_load(model: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    before = [node.op_type for node in onnx.load(model).graph.node]
    after = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node]
    assert before.count("BatchNormalization") == 2
    assert "BatchNormalization" not in after


def test_ir_version_beyond_the_runtime_is_refused(model: Path) -> None:
    loaded = onnx.load(model)
    loaded.ir_version = 99
    with pytest.raises(Exception, match="(?i)ir.version"):
        onnxruntime.InferenceSession(loaded.SerializeToString(), providers=["CPUExecutionProvider"])


def test_external_data_is_refused_by_us_before_the_runtime_follows_it(model: Path, tmp_path: Path) -> None:
    loaded = onnx.load(model)
    path = tmp_path / "outside.onnx"
    onnx.save(loaded, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(Exception, match="external data"):
        open_session(path, "cpu")


def test_batch_is_the_only_dynamic_dimension(model: Path) -> None:
    session = open_session(model, "cpu")
    assert [i.shape for i in session.get_inputs()] == [["batch", 1, 8, 8]]
    for batch in (1, 7, 32):
        out = session.run(None, {"input": np.zeros((batch, 1, 8, 8), np.float32)})[0]
        assert out.shape == (batch, 10)
