"""Differences, accuracy and the parity file."""

import numpy as np
import pytest

from tersor.errors import BadInput
from tersor.export.forms.fp16 import to_fp16
from tersor.export.timing import parity
from tersor.export.timing.providers import open_session


@pytest.fixture(scope="module")
def session(plain_onnx):
    return open_session(plain_onnx, "cpu")


@pytest.fixture(scope="module")
def expected(digits, make_images, logits_of):
    return logits_of(digits, make_images())


def test_the_difference_is_the_largest_of_all_inputs(session, make_images, expected):
    moved = expected.copy()
    moved[39, 3] += 0.5  # the last input, in the batch that is filled up
    assert parity.max_abs_diff(session, make_images(), moved) == pytest.approx(0.5, abs=1e-4)


def test_every_batch_size_is_run_in_full_even_with_few_inputs(make_images, expected):
    sizes = []

    class Recorder:
        def get_inputs(self):
            return [type("Input", (), {"name": "input", "type": "tensor(float)"})]

        def run(self, _, feed):
            sizes.append(len(feed["input"]))
            return [expected[[int(i) for i in feed["input"][:, 0, 0, 0]]]]

    inputs = np.zeros((3, 1, 8, 8), np.float32)
    inputs[:, 0, 0, 0] = range(3)
    assert parity.max_abs_diff(Recorder(), inputs, expected[:3], batches=(1, 7, 32)) == 0
    assert sizes == [1, 1, 1, 7, 32]


def test_a_file_that_takes_halves_gets_them_and_is_compared_in_float32(
    plain_onnx, make_images, expected, tmp_path
):
    to_fp16(plain_onnx, tmp_path / "half.onnx", half_inputs=True)
    half = open_session(tmp_path / "half.onnx", "cpu")
    assert half.get_inputs()[0].type == half.get_outputs()[0].type == "tensor(float16)"
    assert parity.outputs(half, make_images()).dtype == np.float32
    assert 0 < parity.max_abs_diff(half, make_images(), expected) <= parity.bound("fp16", expected)
    assert parity.accuracy(half, make_images(), expected.argmax(1)) >= 0.95


def test_nan_counts_as_an_infinite_difference(session, make_images, expected):
    bad = make_images()
    bad[0] = np.nan
    assert parity.max_abs_diff(session, bad, expected) == np.inf


def test_bounds_are_absolute_for_fp32_and_relative_for_int8(expected):
    assert parity.bound("fp32", expected) == parity.bound("fp32", 10 * expected) == 1e-4
    assert parity.bound("int8", 10 * expected) == pytest.approx(10 * parity.bound("int8", expected))
    with pytest.raises(BadInput, match="no parity bound.*Got int3.*fp32"):
        parity.bound("int3", expected)


def test_accuracy_does_not_depend_on_the_batch(session, make_images, expected):
    labels = expected.argmax(1)
    labels[:10] = (labels[:10] + 1) % 10
    for batch in (1, 7, 256):
        assert parity.accuracy(session, make_images(), labels, batch) == 0.75


def test_predictions_are_the_largest_logit(session, make_images, expected):
    got = parity.predictions(session, make_images(), batch=16)
    assert got.dtype == np.int64
    assert np.array_equal(got, expected.argmax(1))


def test_no_images_and_wrong_shapes_are_told(session, make_images, expected):
    with pytest.raises(BadInput, match="as many labels as images"):
        parity.accuracy(session, make_images()[:0], np.zeros(0, np.int64))
    with pytest.raises(BadInput, match="as many inputs as expected outputs.*Got 40 inputs, 39 outputs"):
        parity.max_abs_diff(session, make_images(), expected[:-1])
    with pytest.raises(BadInput, match=r"inputs do not fit the model. Got shape \(4, 3, 8, 8\)"):
        parity.outputs(session, make_images((3, 8, 8), 4))


def test_parity_file_comes_back_and_has_the_same_bytes_again(tmp_path, make_images, expected):
    for name in ("a.npz", "b.npz"):
        parity.write_parity(tmp_path / name, make_images(), expected, 2 * expected)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    inputs, logits = parity.read_parity(tmp_path / "a.npz")
    assert np.array_equal(inputs, make_images())
    assert np.array_equal(logits, expected)
    assert np.array_equal(parity.read_baseline_logits(tmp_path / "a.npz"), 2 * expected)


def test_numpy_reads_the_parity_file_and_baseline_may_be_left_out(tmp_path, make_images, expected):
    parity.write_parity(tmp_path / "p.npz", make_images(), expected)
    assert sorted(np.load(tmp_path / "p.npz").files) == ["inputs", "logits"]
    assert parity.read_baseline_logits(tmp_path / "p.npz") is None


def test_damaged_parity_file_is_told(tmp_path, make_images, expected):
    path = tmp_path / "p.npz"
    with pytest.raises(BadInput, match="parity file is missing"):
        parity.read_parity(path)
    parity.write_parity(path, make_images(), expected)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadInput, match="parity file is damaged"):
        parity.read_parity(path)
    np.savez(path, inputs=np.array([object()]), logits=expected)
    with pytest.raises(BadInput, match="parity file is damaged"):
        parity.read_parity(path)
