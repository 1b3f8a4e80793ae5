"""Other runtimes are timed beside ONNX Runtime only when they give its outputs."""

import sys

import numpy as np
import pytest

from tersor.errors import ClaimBroken, Unavailable
from tersor.export.forms.fp16 import to_fp16
from tersor.export.forms.int8 import to_int8
from tersor.export.timing.openvino_peer import openvino_peer
from tersor.export.timing.peers import Peer, kind_of, onnxruntime_peer, time_peers


@pytest.fixture
def first(plain_onnx):
    return onnxruntime_peer(plain_onnx.read_bytes(), "cpu", batch=2, threads=1)[0]


def peer(run):
    return Peer("other", "Other CPU", run, {"devices": ["CPU"]})


def timed(*peers):
    return time_peers("a.onnx", peers, "fp32", batch=2, threads=1, seconds=0.01, force=True)


def test_a_peer_of_the_same_outputs_is_a_row_with_its_proof(first):
    own, other = timed(first, peer(first.run))
    assert (own.peer, other.peer) == ("onnxruntime", "other")
    assert (other.latency.provider, other.max_abs_diff) == ("Other CPU", 0.0)
    assert other.plain()["proof"] == {"devices": ["CPU"]}
    assert other.plain()["p50_ms"] == other.latency.p50_ms


@pytest.mark.parametrize(
    "change", [lambda y: y + 0.01, lambda y: y * np.nan, lambda y: y[:1]], ids=["values", "nan", "shape"]
)
def test_a_peer_of_other_outputs_is_not_timed(first, change):
    with pytest.raises(ClaimBroken, match=r"other gives other outputs than ONNX Runtime.*a\.onnx"):
        timed(first, peer(lambda: [change(array) for array in first.run()]))


def test_the_bound_is_that_of_what_the_file_computes_in(plain_onnx, folded_onnx, make_images, tmp_path):
    int8, fp16 = tmp_path / "int8.onnx", tmp_path / "fp16.onnx"
    to_int8(folded_onnx, int8, make_images())
    to_fp16(plain_onnx, fp16)
    assert [kind_of(path.read_bytes()) for path in (plain_onnx, int8, fp16)] == ["fp32", "int8", "fp16"]


def test_without_openvino_it_says_how_to_get_it(plain_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Unavailable, match=r"OpenVINO is not available.*pip install 'tersor\[peers\]'"):
        openvino_peer(plain_onnx.read_bytes(), {}, 1)
