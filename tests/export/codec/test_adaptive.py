"""Adaptive coding: both engines alike, damage told, smaller than the Huffman forms where zeros cluster."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import FormatError
from tersor.export.codec import adaptive
from tersor.export.codec.adaptive_form import decode_adaptive, depth_of, encode_adaptive, geometry
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.form_choice import encode_piece
from tersor.export.codec.pack import pack_bytes, unpack_bytes
from tersor.export.codec.sparse_forms import Sparse
from tersor.export.codec.tensor_coding import ADAPTIVE, Piece, decode_piece
from tersor.export.codec.views import View


def reader(data):
    return ByteReader(bytes(data), "test")


def coded(symbols, columns, kernel, depth, engine="plain"):
    return adaptive.encode(symbols, columns, kernel, depth, most=8 * len(symbols) + 64, engine=engine)


def clustered(rows=64, columns=288, keep=0.1, values=15, seed=0):
    """Weights whose survivors cluster in rows and columns, as those of pruned networks do."""
    rng = np.random.default_rng(seed)
    odds = rng.gamma(0.5, 1, (rows, 1)) * rng.gamma(0.5, 1, (1, columns))
    survivors = rng.random((rows, columns)) < np.minimum(odds * keep / odds.mean(), 1)
    codebook = rng.normal(0, 0.1, values).astype(np.float32)
    return np.where(survivors, rng.choice(codebook, (rows, columns)), 0).astype(np.float32)


@given(
    st.integers(1, 40),
    st.integers(1, 30),
    st.sampled_from([1, 3, 9, 25, 49]),
    st.integers(0, 5),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_both_engines_write_the_same_bytes_and_read_them_back(rows, columns, kernel, depth, share, seed):
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 2**depth, rows * columns)
    symbols = np.where(rng.random(rows * columns) < share, 1 + index, 0).astype(np.uint16)
    data = coded(symbols, columns, kernel, depth)
    assert data == coded(symbols, columns, kernel, depth, "numba")
    for engine in ("plain", "numba"):
        back = adaptive.decode(reader(data), len(data), len(symbols), columns, kernel, depth, engine=engine)
        assert np.array_equal(back, symbols), engine


def test_the_format_has_not_moved():
    # Written by the code of version 1: files out there must stay readable.
    data = coded(*known())
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == KNOWN


KNOWN = (322, "71f29c0339b844db")


def known():
    symbols = np.array([(i * i * 7 + i // 5) % 23 for i in range(3000)])
    symbols = np.where(symbols < 5, symbols, 0).astype(np.uint16)
    return symbols, 60, 9, 2


def test_a_million_symbols_survive_at_every_density():
    rng = np.random.default_rng(1)
    for density in (0.0, 1e-5, 0.003, 0.03, 0.3, 0.97, 1.0):
        symbols = np.where(rng.random(1_000_000) < density, rng.integers(1, 17, 1_000_000), 0)
        symbols = symbols.astype(np.uint16)
        data = coded(symbols, 1000, 1, 4, "numba")
        assert np.array_equal(adaptive.decode(reader(data), len(data), 10**6, 1000, 1, 4), symbols)


def test_random_positions_cost_their_entropy():
    # Nothing can be learnt from independent positions: what is left over is what learning costs.
    n, q = 500_000, 0.05
    symbols = (np.random.default_rng(2).random(n) < q).astype(np.uint16)
    least = -(q * np.log2(q) + (1 - q) * np.log2(1 - q)) * n / 8
    assert len(coded(symbols, 500, 1, 0, "numba")) < 1.03 * least


def test_encoding_gives_up_when_it_takes_too_much():
    symbols = np.random.default_rng(0).integers(0, 9, 5000).astype(np.uint16)
    size = len(coded(symbols, 50, 1, 3))
    for engine in ("plain", "numba"):
        assert adaptive.encode(symbols, 50, 1, 3, most=size, engine=engine) is not None
        assert adaptive.encode(symbols, 50, 1, 3, most=size - 1, engine=engine) is None
        assert adaptive.encode(symbols, 50, 1, 3, most=3, engine=engine) is None


@pytest.mark.parametrize("extra", [b"\x01", b"\x00", b"\x00" * 9, b"abcdefgh"])
def test_bytes_behind_the_end_are_refused(extra):
    symbols = (np.arange(400) % 7 == 0).astype(np.uint16)
    data = coded(symbols, 20, 1, 0) + b"abcd" + extra
    with pytest.raises(FormatError, match="bytes behind the end of adaptive coding"):
        adaptive.decode(reader(data), len(data), 400, 20, 1, 0)


def sparse_form(weights, *, count=None):
    patterns = weights.reshape(-1).view("<u4")
    positions = np.flatnonzero(patterns)
    codebook = np.unique(patterns[positions])[:count]
    return Sparse(View(weights.shape, 0), positions, patterns[positions], 0, codebook, True)


def test_an_index_behind_the_codebook_is_refused():
    weights = clustered(8, 18, 0.5, values=4)
    sparse = sparse_form(weights)
    block = encode_adaptive(sparse, most=10_000)
    symbols = np.zeros(weights.size, np.uint16)
    symbols[3] = 4
    # the same head with a codebook of three patterns, and the symbol of a fourth
    three = encode_adaptive(sparse_form(np.float32([[0, 1, 2, 3] * 36]).reshape(8, 18)), most=10_000)
    text = coded(symbols, *geometry(sparse.view), depth_of(3))
    end = three[: len(three) - len(encoded_part(three))]
    damaged = end[:-1] + bytes([len(text)]) + text
    with pytest.raises(FormatError, match=r"index behind the end of its codebook. Got 3. Wanted < 3"):
        decode_adaptive(reader(damaged), (8, 18), 0, 4, True)
    assert decode_adaptive(reader(block), (8, 18), 0, 4, True).tobytes() == weights.tobytes()


def encoded_part(block):
    """The coded symbols of a block of 8 x 18 weights 0, 1, 2, 3, 0, ..."""
    symbols = np.array([0, 1, 2, 3] * 36, np.uint16)
    return coded(symbols, 18, 1, 2)


def test_every_cut_of_a_record_is_told():
    block = bytes([ADAPTIVE]) + encode_adaptive(sparse_form(clustered(16, 30)), most=10_000)
    piece = Piece((16, 30), 4, True)
    for end in range(len(block)):
        with pytest.raises(FormatError, match="byte"):
            decode_piece(reader(block[:end]), piece)


def test_auto_is_never_larger_and_clusters_pay():
    weights = clustered()
    patterns, piece = weights.reshape(-1).view("<u4"), Piece(weights.shape, 4, True)
    sizes = {c: len(encode_piece(piece, patterns, c)) for c in ("huffman", "adaptive", "auto")}
    assert sizes["auto"] == min(sizes.values())
    assert sizes["adaptive"] < 0.97 * sizes["huffman"]


@pytest.mark.parametrize("coder", ["adaptive", "auto"])
def test_a_whole_file_comes_back(coder):
    from onnx import TensorProto, helper, numpy_helper

    tensors = [numpy_helper.from_array(clustered(seed=i).reshape(64, 32, 3, 3), f"w{i}") for i in range(3)]
    tensors.append(numpy_helper.from_array(np.arange(7, dtype=np.int64), "shape"))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    data = helper.make_model(helper.make_graph([], "g", [value], [value], tensors)).SerializeToString()
    packed = pack_bytes(data, coder=coder)
    assert unpack_bytes(packed) == data
    assert len(packed) < len(pack_bytes(data))


def test_the_command_takes_the_coder(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no onnx, but a file")
    command = [sys.executable, "-m", "tersor.pipeline", "pack", "m.onnx", "m.tsr", "--coder"]
    run = subprocess.run([*command, "auto"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    run = subprocess.run([*command, "zip"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert re.search("zip.*not one of.*huffman.*adaptive.*auto", run.stderr, re.DOTALL)
