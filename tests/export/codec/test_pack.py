"""Packing: any bytes come back as they were, small models get small, damage and failed writes are told."""

import hashlib
import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tersor.errors import BadInput, FormatError, TersorError, Unavailable
from tersor.export.codec import pack as packing
from tersor.export.codec import packed_model, tensor_coding
from tersor.export.codec.bits import write_varint
from tersor.export.codec.container import TENSORS, write_container
from tersor.export.codec.ledger import inspect
from tersor.export.codec.onnx_spans import find_cuts, find_spans
from tersor.export.codec.tensor_coding import NAMES


def sparse_weights(shape, seed=0, keep=0.15, values=15):
    """Float32 weights, 1 - keep of them zero, the others sharing `values` values."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, shape).astype(np.float32)
    weights *= np.exp(rng.normal(0, 0.5, (shape[0],) + (1,) * (len(shape) - 1))).astype(np.float32)
    survivors = np.abs(weights) > np.quantile(np.abs(weights), 1 - keep)
    centres = np.quantile(weights[survivors], (np.arange(values) + 0.5) / values).astype(np.float32)
    shared = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, weights[survivors])]
    weights[survivors] = shared
    weights[~survivors] = 0
    return weights


def conv_net(seed=0, width=16):
    """A model that runs: Conv, Relu, GlobalAveragePool, Flatten, Gemm, with sparse shared weights."""
    rng = np.random.default_rng(seed)
    tensors = {
        "conv1.weight": sparse_weights((width, 1, 3, 3), seed, 0.5),
        "conv1.bias": rng.normal(0, 0.1, width).astype(np.float32),
        "conv2.weight": sparse_weights((2 * width, width, 3, 3), seed + 1),
        "conv2.bias": rng.normal(0, 0.1, 2 * width).astype(np.float32),
        "fc.weight": sparse_weights((10, 2 * width), seed + 2),
        "fc.bias": rng.normal(0, 0.1, 10).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv2.weight", "conv2.bias"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    return _model(nodes, [numpy_helper.from_array(v, k) for k, v in tensors.items()], [1, 1, 8, 8], [1, 10])


def every_kind():
    """A model with every kind of tensor: types, empty ones, Constant nodes, subgraphs, typed data fields."""
    rng = np.random.default_rng(5)
    arrays = {
        "half": rng.normal(0, 1, (40, 5)).astype(np.float16),
        "double": rng.normal(0, 1, (9, 9)),
        "int8": rng.integers(-3, 4, (30, 30)).astype(np.int8),
        "uint8": (128 + (rng.random(900) < 0.1) * rng.integers(-9, 9, 900)).astype(np.uint8),
        "int64": np.arange(100, dtype=np.int64) * 7,
        "uint64": rng.integers(0, 2**63, 50, np.uint64),
        "bool": rng.random(77) < 0.2,
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(3).reshape(()),
        "odd": np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45] * 20, np.float32),
        "payload": np.array([0x7FC00001, 0x7F800123, 0xFFC00000, 0x80000000] * 30, np.uint32).view(
            np.float32
        ),
        "columns": np.where(rng.random((1, 60)) < 0.1, 1.5, 0).astype(np.float32)
        * np.ones((50, 1), np.float32),
        "constant": np.full((33, 7), -2.5, np.float32),
        "rounded": rng.integers(-7, 8, (40, 90)).astype(np.float32)
        * rng.uniform(0.01, 0.1, (40, 1)).astype(np.float32),
        "truncated": (rng.normal(0, 1, 64).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
    }
    tensors = [numpy_helper.from_array(v, k) for k, v in arrays.items()]
    tensors.append(helper.make_tensor("strings", TensorProto.STRING, [3], [b"one", b"two", b"three" * 40]))
    tensors.append(helper.make_tensor("floats", TensorProto.FLOAT, [30], rng.normal(0, 1, 30).tolist()))
    tensors.append(helper.make_tensor("doubles", TensorProto.DOUBLE, [12], rng.normal(0, 1, 12).tolist()))
    tensors.append(helper.make_tensor("bf16", TensorProto.BFLOAT16, [40], rng.normal(0, 1, 40).tolist()))
    inner = numpy_helper.from_array(sparse_weights((20, 20), 3), "inner")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=inner)],
        "branch",
        [],
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, [20, 20])],
    )
    nodes = [
        helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
    ]
    model = _model(nodes, tensors, [1], [20, 20])
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(rng.normal(0, 1, 20).astype(np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(20, dtype=np.int64) * 3, "indices"))
    sparse.dims.append(100)
    return model


def every_new_form():
    """A model whose packed file (coder static) has all that version 2 brought."""
    rng = np.random.default_rng(7)
    step = rng.uniform(0.01, 0.1, (40, 1)).astype(np.float32)
    rows = rng.choice([-5, -3, 0, 3, 5], (40, 60), p=[0.05, 0.05, 0.8, 0.05, 0.05]).astype(np.float32) * step
    rows[rows == 0] = 0
    rows[7] = rng.normal(0, 1, 60)
    arrays = {
        "grid": rng.integers(-512, 512, 40).astype(np.float32) / 256,
        "fields": (1000 + rng.integers(0, 64, 60)).astype(np.float32) / 8,
        "rows": rows,
        "pooled": rng.normal(0, 1, 50).astype(np.float32),
        "skewed": (rng.random(3000) < 0.06).astype(np.uint8) * rng.integers(1, 5, 3000).astype(np.uint8),
        "rows again": rows,
    }
    arrays["pooled again"] = arrays["pooled"]
    arrays["pooled thrice"] = arrays["pooled"]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return _model(nodes, [numpy_helper.from_array(v, k) for k, v in arrays.items()], [1], [1])


def _model(nodes, tensors, in_shape, out_shape):
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def test_the_model_of_every_kind_reaches_the_form_of_rounded_rows(tmp_path):
    source, packed = tmp_path / "a.onnx", tmp_path / "a.tsr"
    source.write_bytes(every_kind().SerializeToString())
    packing.pack(source, packed)
    assert {row.name: row.form for row in inspect(packed)}["rounded"] == "scaled"


def forms(tmp_path, data, coder):
    """Return {tensor: form} of the packed model; it comes back byte for byte."""
    (tmp_path / "a.tsr").write_bytes(packing.pack_bytes(data, coder=coder))
    assert packing.unpack_bytes((tmp_path / "a.tsr").read_bytes()) == data
    return {row.name: row.form for row in inspect(tmp_path / "a.tsr")}


def test_the_model_of_new_forms_reaches_them_all(tmp_path):
    found = forms(tmp_path, every_new_form().SerializeToString(), "static")
    assert {"scaled rows", "grid", "copy", "byte-planes (pooled)"} <= set(found.values())
    assert [found[name] for name in ("grid", "fields", "rows", "pooled")] == [
        "grid",
        "grid",
        "scaled rows",
        "byte-planes (pooled)",
    ]


def test_equal_tensors_are_coded_once_whatever_their_form(tmp_path):
    found = forms(tmp_path, every_new_form().SerializeToString(), "huffman")
    assert [found[name] for name in ("rows again", "pooled again", "pooled thrice")] == ["copy"] * 3
    weights = np.random.default_rng(0).normal(0, 1, (50, 50)).astype(np.float32)
    once, twice = (len(packing.pack_bytes(_weights_alone([weights] * n).SerializeToString())) for n in (1, 2))
    assert twice < once + 60


def test_a_copy_of_what_is_not_there_or_of_another_size_is_told():
    first, second = np.ones(40, np.float32), np.arange(50, dtype=np.float32)
    data = _weights_alone([first, second]).SerializeToString()
    sections, _ = packed_model.encode_model(memoryview(data), find_spans(memoryview(data)), "huffman")
    for copy, words, version in (
        (b"\x0b\x01", "another size", 2),
        (b"\x0b\x00", "copy of itself", 2),
        (b"\x0b\x02", "out of range", 2),
        (b"\x1b\x01", "unknown form", 2),
        (b"\x0b\x01", "unknown form", 1),
    ):
        changed = {n: list(parts) for n, parts in sections.items()}
        changed[TENSORS] = [sections[TENSORS][0], copy]
        with pytest.raises(FormatError, match=words):
            packing.unpack_bytes(write_container(len(data), zlib.crc32(data), changed, version))


def _weights_alone(arrays):
    tensors = [numpy_helper.from_array(v, f"w{i}") for i, v in enumerate(arrays)]
    return _model([helper.make_node("Identity", ["x"], ["y"])], tensors, [1], [1])


@pytest.mark.parametrize("make", [conv_net, every_kind])
def test_models_come_back_byte_for_byte(make):
    data = make().SerializeToString()
    packed = packing.pack_bytes(data)
    assert packing.unpack_bytes(packed) == data
    assert len(packed) < len(data) / 2


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_come_back(data):
    packed = packing.pack_bytes(data)
    assert packing.unpack_bytes(packed) == data
    assert len(packed) <= len(data) + 50


@pytest.mark.parametrize(
    "data", [b"", b"\x3a\x00", b"\x3a\x7f", bytes(100_000), b"text " * 2000, b"\x0b\x0c"]
)
def test_odd_files_come_back(data):
    packed = packing.pack_bytes(data)
    assert packing.unpack_bytes(packed) == data
    assert len(packed) < 200


def test_pieces_of_one_tensor_come_back(monkeypatch):
    monkeypatch.setattr(tensor_coding, "MAX_PIECE", 500)
    data = conv_net().SerializeToString()
    assert packing.unpack_bytes(packing.pack_bytes(data)) == data


def test_skeleton_and_file_have_the_same_spans():
    data = every_kind().SerializeToString()
    layout = find_spans(data)
    names = {span.name: span for span in layout.spans}
    assert names["half"].dims == (40, 5)
    assert names["half"].dtype == "float16"
    assert names["inner"].dims == (20, 20)
    assert {"floats", "doubles", "sparse", "indices"} <= set(names)
    assert not {"empty", "scalar", "strings"} & set(names)
    skeleton = b"".join(
        data[a:b]
        for a, b in zip(
            [0, *(s.start + s.size for s in layout.spans)], [*(s.start for s in layout.spans), None]
        )
    )
    assert find_cuts(skeleton, len(data)) == layout
    with pytest.raises(FormatError, match="skeleton is damaged.*section SKELETON"):
        find_cuts(skeleton[:-3], len(data))


@pytest.mark.parametrize("make", [conv_net, every_kind])
def test_ledger_adds_up_to_the_file(tmp_path, make):
    source, packed = tmp_path / "m.onnx", tmp_path / "m.tsr"
    onnx.save(make(), source)
    report = packing.pack(source, packed)
    rows = packing.inspect(packed)
    assert sum(row.packed_bytes for row in rows) == packed.stat().st_size == report.packed_bytes
    assert sum(row.original_bytes for row in rows) == source.stat().st_size == report.original_bytes
    assert report.ratio == source.stat().st_size / packed.stat().st_size
    assert [row.name for row in rows][:2] == ["(header)", "(skeleton)"]


def test_ledger_counts_weights(tmp_path):
    onnx.save(conv_net(), tmp_path / "m.onnx")
    packing.pack(tmp_path / "m.onnx", tmp_path / "m.tsr")
    row = {r.name: r for r in packing.inspect(tmp_path / "m.tsr")}["conv2.weight"]
    weights = sparse_weights((32, 16, 3, 3), 1)
    assert (row.dtype, row.shape) == ("float32", (32, 16, 3, 3))
    assert row.nonzeros == np.count_nonzero(weights)
    assert row.distinct == 16
    assert row.bits_per_weight == 8 * row.packed_bytes / weights.size
    shares = np.unique(weights, return_counts=True)[1] / weights.size
    assert row.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum())
    assert row.nonzero_entropy_bits <= row.average_code_bits < row.nonzero_entropy_bits + 0.1
    assert row.form in NAMES


def test_ledger_of_a_blob(tmp_path):
    (tmp_path / "blob").write_bytes(b"no model")
    packing.pack(tmp_path / "blob", tmp_path / "m.tsr")
    rows = packing.inspect(tmp_path / "m.tsr")
    assert [r.name for r in rows] == ["(header)", "(blob)"]
    assert sum(r.packed_bytes for r in rows) == (tmp_path / "m.tsr").stat().st_size


def test_packing_and_unpacking_need_no_torch_and_no_numba(tmp_path):
    onnx.save(conv_net(), tmp_path / "m.onnx")
    script = (
        "import sys; from tersor.export.codec import pack as p; "
        f"p.pack({str(tmp_path / 'm.onnx')!r}, {str(tmp_path / 'm.tsr')!r}); "
        f"p.unpack({str(tmp_path / 'm.tsr')!r}, {str(tmp_path / 'b.onnx')!r}); "
        "assert not {'torch', 'numba', 'nni', 'torchvision'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_missing_files_and_unknown_coders_are_told(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read the file.*No such file.*nowhere"):
        packing.pack(tmp_path / "nowhere", tmp_path / "m.tsr")
    for read in (packing.inspect, lambda p: packing.unpack(p, tmp_path / "o")):
        with pytest.raises(BadInput, match=r"cannot read the file.*nowhere"):
            read(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="unknown coder. Got zip. Wanted huffman or static or"):
        packing.pack_bytes(b"", coder="zip")


def test_too_much_output_is_refused_before_it_is_made(tmp_path):
    (tmp_path / "x").write_bytes(bytes(5000))
    packing.pack(tmp_path / "x", tmp_path / "x.tsr")
    with pytest.raises(FormatError, match=r"more output than allowed. Got 5000 bytes. Wanted at most 4999"):
        packing.unpack(tmp_path / "x.tsr", tmp_path / "y", max_bytes=4999)
    assert not (tmp_path / "y").exists()
    assert packing.unpack(tmp_path / "x.tsr", tmp_path / "y", max_bytes=5000) == 5000


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"new")
    (tmp_path / "x.tsr").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match=r"cannot write the file; nothing was changed. Got No space left"):
        packing.pack(tmp_path / "x", tmp_path / "x.tsr")
    assert (tmp_path / "x.tsr").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.tsr"]


def test_a_missing_folder_is_told(tmp_path):
    (tmp_path / "x").write_bytes(b"new")
    with pytest.raises(Unavailable, match=r"No such file or directory.*Check that the folder exists"):
        packing.pack(tmp_path / "x", tmp_path / "no" / "x.tsr")


def test_a_coder_that_loses_something_is_caught(monkeypatch):
    monkeypatch.setattr(packed_model, "compress", lambda data: b"\x00" + bytes(len(data)))
    with pytest.raises(TersorError, match=r"packing lost something|CRC-32"):
        packing.pack_bytes(b"not a model")


def test_every_model_of_onnx_own_test_data_comes_back():
    root = Path(onnx.__file__).parent / "backend/test/data"
    files = sorted(root.rglob("*.onnx"))
    assert len(files) >= 100
    for file in files:
        data = file.read_bytes()
        for coder in ("huffman", "auto"):
            assert packing.unpack_bytes(packing.pack_bytes(data, coder=coder)) == data, file


@pytest.mark.parametrize("seed", range(4))
def test_changed_cut_and_lying_version_2_files_are_told_in_bounded_memory(seed):
    data = every_new_form().SerializeToString()
    packed = packing.pack_bytes(data, coder="static")
    rng = np.random.default_rng(seed)
    told = 0
    tracemalloc.start()
    for _ in range(60):
        changed, kind = bytearray(packed[:4] + packed[36:]), rng.integers(3)
        place = int(rng.integers(8, len(changed)))
        if kind == 0:
            changed[place] ^= 1 << rng.integers(8)
        elif kind == 1:
            del changed[place:]
        else:
            changed[place : place + 2] = write_varint(int(2 ** rng.uniform(0, 62)))
        digest = hashlib.sha256(changed).digest()  # made to fit, so that the parser behind it is reached
        try:
            assert packing.unpack_bytes(bytes(changed[:4] + digest + changed[4:]), max_bytes=1 << 20) == data
        except FormatError:
            told += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told > 50
    assert peak < 64 << 20
