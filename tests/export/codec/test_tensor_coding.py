"""Forms of a tensor: each gives back every bit pattern, and the choice finds what makes a tensor small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import FormatError
from tersor.export.codec import form_choice, tensor_coding
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.form_choice import encode_piece
from tersor.export.codec.grid_form import decode_grid, encode_grid, on_grid
from tersor.export.codec.scaled_form import split_scales
from tersor.export.codec.tensor_coding import MAX_PIECE, NAMES, Piece, decode_piece, split_pieces
from tersor.export.codec.value_coding import encode_values


def sparse_weights(shape, keep=0.15):
    """Float32 weights that share 15 values, a share of `keep` of them not zero."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 15).astype(np.float32)
    return np.where(rng.random(shape) < keep, rng.choice(values, shape), 0).astype(np.float32)


def decoded(piece, block):
    source = ByteReader(block, "test")
    values, form, _ = decode_piece(source, piece)
    source.finish()
    return values, form


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from(["huffman", "static", "adaptive", "auto"]),
)
def test_any_tensor_comes_back(width, dims, share, distinct, seed, zero_default, coder):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(f"<u{width}")
    values = rng.integers(0, 2 ** (8 * width) - 1, distinct, np.uint64).astype(dtype)
    default = 0 if zero_default else values[0]
    count = int(np.prod(dims))
    tensor = np.where(rng.random(count) < share, rng.choice(values, count), default).astype(dtype)
    piece = Piece(tuple(dims), width, False)
    block = encode_piece(piece, tensor, coder)
    assert np.array_equal(decoded(piece, block)[0], tensor)
    assert len(block) <= tensor.nbytes + 1


def forms_of(array, is_float=True):
    """Return every form the piece could take, each decoded again and compared."""
    width = array.itemsize
    piece = Piece(array.shape, width, is_float)
    values = np.ascontiguousarray(array).reshape(-1).view(f"<u{width}")
    used = set()
    for candidate in form_choice._candidates(form_choice._content(piece, values)):
        back, form = decoded(piece, bytes([candidate.form | candidate.flags << 4]) + candidate.encode())
        assert np.array_equal(back, values)
        used.add(form)
    return used


def test_every_form_holds_a_sparse_tensor():
    shared = {"raw", "byte-planes", "raw-symbols", "relative-index", "bitmap", "joint"}
    assert forms_of(sparse_weights((32, 16, 3, 3))) == shared
    rng = np.random.default_rng(0)
    free = np.where(rng.random((90, 200)) < 0.1, rng.normal(0, 1, (90, 200)), 0).astype(np.float32)
    assert forms_of(free) == shared
    many = rng.normal(0, 1, (90, 200)).astype(np.float32)
    assert forms_of(many) == {"raw", "byte-planes"}
    assert "lzma" in forms_of(np.tile(rng.integers(0, 255, 500).astype(np.uint8), 20), False)
    rest = {"lzma", "byte-planes (pooled)", "adaptive", "scaled", "scaled rows", "grid", "copy"}
    assert set(NAMES) | {"byte-planes"} == shared | rest


@pytest.mark.parametrize("axis", [0, 1])
def test_dead_rows_and_columns_cost_little(axis):
    weights = sparse_weights((128, 128), keep=0.3)
    spread = np.zeros((256, 256), np.float32)
    spread[np.ix_(np.arange(0, 256, 2), np.arange(0, 256, 2))] = weights
    clustered = np.zeros((512, 128), np.float32)
    clustered[::4] = weights
    if axis:
        clustered = np.ascontiguousarray(clustered.T)
        weights = np.ascontiguousarray(weights.T)
    base = len(encode_piece(Piece((128, 128), 4, True), weights.reshape(-1).view("<u4")))
    for array in (spread, clustered):
        size = len(encode_piece(Piece(array.shape, 4, True), array.reshape(-1).view("<u4")))
        assert size < base + 90


def test_weights_in_columns_are_found():
    rng = np.random.default_rng(0)
    rows = (rng.random((300, 200)) < np.linspace(0, 0.3, 300)[:, None] ** 2).astype(np.float32)
    sizes = [
        len(encode_piece(Piece(a.shape, 4, True), a.reshape(-1).view("<u4"))) for a in (rows, rows.T.copy())
    ]
    assert max(sizes) < 1.02 * min(sizes)


def test_zeros_do_not_cost_a_bit_each():
    weights = sparse_weights((256, 256), keep=0.02)
    block = encode_piece(Piece(weights.shape, 4, True), weights.reshape(-1).view("<u4"))
    assert 8 * len(block) < 0.3 * weights.size


def test_general_floats_never_grow_and_usually_shrink():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2**32, 5000, np.uint64).astype("<u4")
    assert len(encode_piece(Piece((5000,), 4, False), noise)) == noise.nbytes + 1
    weights = rng.normal(0, 0.02, 50_000).astype(np.float32)
    assert len(encode_piece(Piece((50_000,), 4, True), weights.view("<u4"))) < 0.9 * weights.nbytes


def test_large_tensors_are_cut_into_whole_rows():
    pieces = split_pieces((1000, 4000), 4, True)
    assert sum(p.count for p in pieces) == 4_000_000
    assert all(p.dims[1] == 4000 and p.count <= MAX_PIECE for p in pieces)
    assert [p.dims for p in split_pieces((2, MAX_PIECE + 1), 4, True)][0] == (MAX_PIECE,)
    assert split_pieces((3, 4), 4, True) == [Piece((3, 4), 4, True)]


def rounded_weights(shape, bits, seed, share=1.0):
    """Float32 integers x a scale for each row, of `bits` bits; a share of the integers is not zero."""
    rng = np.random.default_rng(seed)
    most = max(2 ** (bits - 1) - 1, 1)
    integers = rng.integers(-most, most + 1, shape) * (rng.random(shape) < share)
    scales = rng.uniform(1e-4, 0.1, (shape[0],) + (1,) * (len(shape) - 1)).astype(np.float32)
    return integers.astype(np.float32) * scales + np.float32(0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 10),
    st.integers(0, 2**32 - 1),
    st.floats(0.05, 1),
    st.sampled_from(["huffman", "static", "adaptive", "auto"]),
)
def test_weights_rounded_by_rows_come_back(dims, bits, seed, share, coder):
    weights = rounded_weights(tuple(dims), bits, seed, share)
    values = weights.reshape(-1).view("<u4")
    block = encode_piece(Piece(tuple(dims), 4, True), values, coder)
    if block[0] & 15 != tensor_coding.POOLED:
        assert np.array_equal(decoded(Piece(tuple(dims), 4, True), block)[0], values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_of_their_own_scales_take_the_bits_of_their_integers(bits):
    weights = rounded_weights((64, 64, 3, 3), bits, 0)
    piece = Piece(weights.shape, 4, True)
    block = encode_piece(piece, weights.reshape(-1).view("<u4"))
    assert decoded(piece, block)[1] == "scaled"
    assert 8 * len(block) / weights.size < bits + 0.1


def test_scales_are_found_for_what_products_leave_and_for_nothing_else():
    weights = rounded_weights((32, 100), 8, 1)
    split = split_scales(weights.reshape(-1).view("<u4"), weights.shape)
    assert split is not None
    assert len(split.scales) == 32
    assert split.integers.itemsize == 1
    dense = np.random.default_rng(0).normal(0, 1, (32, 100)).astype(np.float32)
    assert split_scales(dense.reshape(-1).view("<u4"), dense.shape) is None
    for wrong in (np.nextafter(weights[3, 5], np.float32(9)), np.nan, np.inf, np.float32(-0.0)):
        weights[3, 5] = wrong
        split = split_scales(weights.reshape(-1).view("<u4"), weights.shape)
        assert split is not None
        assert np.flatnonzero(~split.good).tolist() == [3]


@pytest.mark.parametrize("magnitudes", [(2, 3), (3, 5)])
def test_sparse_rows_without_a_value_of_one_step_take_the_form(magnitudes):
    rng = np.random.default_rng(0)
    integers = (
        rng.choice(magnitudes, (64, 288)) * rng.choice([-1, 1], (64, 288)) * (rng.random((64, 288)) < 0.1)
    )
    weights = integers.astype(np.float32) * rng.uniform(0.01, 0.1, (64, 1)).astype(np.float32) + np.float32(0)
    piece = Piece(weights.shape, 4, True)
    block = encode_piece(piece, weights.reshape(-1).view("<u4"))
    values, form = decoded(piece, block)
    assert form == "scaled"
    assert np.array_equal(values, weights.reshape(-1).view("<u4"))


def test_one_bad_row_costs_its_own_floats_and_not_the_form():
    weights = rounded_weights((64, 288), 3, 0)
    piece, values = Piece(weights.shape, 4, True), weights.reshape(-1).view("<u4")
    before = len(encode_piece(piece, values))
    weights[7] = np.random.default_rng(1).normal(0, 1, 288).astype(np.float32)
    block = encode_piece(piece, values)
    back, form = decoded(piece, block)
    assert form == "scaled rows"
    assert np.array_equal(back, values)
    assert len(block) < before + 4 * 288


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(-100, 100), st.integers(0, 2**32 - 1))
def test_vectors_on_a_grid_come_back(count, bits, exponent, seed):
    rng = np.random.default_rng(seed)
    vector = np.ldexp(rng.integers(-(2**bits), 2**bits, count), exponent).astype(np.float32)
    grid = on_grid(vector.view("<u4"))
    if grid is None:
        assert not vector.any()
        return
    flags, coded = encode_grid(grid)
    source = ByteReader(coded, "test")
    assert np.array_equal(decode_grid(source, count, flags), vector.view("<u4"))
    source.finish()


def test_a_bias_of_ten_bits_costs_about_ten_bits():
    vector = np.random.default_rng(0).integers(-512, 512, 64).astype(np.float32) / 256
    block = encode_piece(Piece((64,), 4, True), vector.view("<u4"))
    assert len(block) <= 64 * 10 / 8 + 6


ONE_SCALE = encode_values(np.ones(1, "<f4").view("<u4"), np.ones(1, "<f4").view("<u4"), True)


@pytest.mark.parametrize(
    ("block", "piece", "words"),
    [
        (b"\x18\x00", Piece((4,), 4, True), "scales for a tensor without rows"),
        (b"\x28\x00", Piece((2, 2), 8, True), "scales for a tensor without rows"),
        (b"\x18" + ONE_SCALE + b"\x01", Piece((1, 2), 4, True), "within a record is pooled"),
        (b"\x38\x00", Piece((2, 2), 4, True), "unknown form"),
    ],
)
def test_damaged_scales_are_told(block, piece, words):
    with pytest.raises(FormatError, match=words):
        decoded(piece, block)
