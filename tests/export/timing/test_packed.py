"""A packed file runs as the file that was packed, straight from memory."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from tersor.errors import BadInput, FormatError
from tersor.export.codec import pack as packing
from tersor.export.timing.packed import load


def test_loaded_model_computes_the_same(plain_onnx, tmp_path):
    packing.pack(plain_onnx, tmp_path / "m.tsr")
    before = set(tmp_path.iterdir())
    image = {"input": np.random.default_rng(0).normal(0, 1, (1, 1, 8, 8)).astype(np.float32)}
    plain = onnxruntime.InferenceSession(plain_onnx, providers=["CPUExecutionProvider"])
    packed = load(tmp_path / "m.tsr", session_options=onnxruntime.SessionOptions())
    assert np.array_equal(packed.run(None, image)[0], plain.run(None, image)[0])
    assert set(tmp_path.iterdir()) == before


def test_load_refuses_weights_in_other_files(plain_onnx, tmp_path):
    model = onnx.load(plain_onnx)
    onnx.external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, tmp_path / "m.onnx")
    packing.pack(tmp_path / "m.onnx", tmp_path / "m.tsr")
    packing.unpack(tmp_path / "m.tsr", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(FormatError, match=r"weights in other files.*external_data=False"):
        load(tmp_path / "m.tsr")


@pytest.mark.parametrize(
    ("data", "message"), [(b"no model", "holds no ONNX model"), (b"\x3a\x00", "ONNX Runtime refuses")]
)
def test_load_refuses_what_is_no_model(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    packing.pack(tmp_path / "x", tmp_path / "x.tsr")
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "x.tsr")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read the file.*nowhere"):
        load(tmp_path / "nowhere")


def test_loading_needs_no_torch(plain_onnx, tmp_path):
    packing.pack(plain_onnx, tmp_path / "m.tsr")
    script = (
        "import sys; from tersor.export.timing.packed import load; "
        f"load({str(tmp_path / 'm.tsr')!r}); "
        "assert not {'torch', 'nni', 'torchvision'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
