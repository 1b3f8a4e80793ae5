"""export_onnx and replace_weights: the same outputs, a clean graph, the same bytes anywhere."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from tersor.errors import BadInput, Unavailable
from tersor.export.forms.to_onnx import export_onnx, replace_weights
from tersor.export.timing.parity import max_abs_diff
from tersor.export.timing.providers import open_session
from tersor.models import network as networks
from tersor.models.preprocessing import Preprocessing

ZOO = [
    ("lenet", {}, (3, 32, 32)),
    ("fashion", {}, (1, 28, 28)),
    ("vgg16_half", {}, (3, 32, 32)),
    ("resnet20", {"shortcut": "A"}, (3, 32, 32)),
    ("resnet20", {"shortcut": "B"}, (3, 32, 32)),
]


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(("name", "arguments", "shape"), ZOO, ids=lambda v: str(v)[:20])
def test_zoo_networks_give_torchs_outputs_at_every_batch_size(
    name, arguments, shape, tmp_path, make_network, make_images, logits_of
):
    network = make_network(name, arguments, shape)
    export_onnx(network, tmp_path / "model.onnx")
    inputs = make_images(shape, 32)
    session = open_session(tmp_path / "model.onnx", "cpu")
    assert max_abs_diff(session, inputs, logits_of(network, inputs), batches=(1, 7, 32)) <= 1e-4


def test_batch_norm_is_kept_unless_folding_is_asked(plain_onnx, folded_onnx):
    assert operators(plain_onnx)["BatchNormalization"] == 2
    assert operators(folded_onnx)["BatchNormalization"] == 0


def test_folded_file_gives_torchs_outputs(digits, folded_onnx, make_images, logits_of):
    inputs = make_images()
    assert max_abs_diff(open_session(folded_onnx, "cpu"), inputs, logits_of(digits, inputs)) <= 1e-4


def test_graph_holds_only_what_it_computes(plain_onnx):
    model = onnx.load(plain_onnx)
    onnx.checker.check_model(model, full_check=True)
    assert operators(plain_onnx) == {
        "Conv": 2,
        "BatchNormalization": 2,
        "Relu": 3,
        "MaxPool": 1,
        "Reshape": 1,
        "Gemm": 2,
    }
    used = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} <= used


def test_weights_keep_their_names_shapes_and_values(digits, plain_onnx):
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(plain_onnx).graph.initializer}
    for name, tensor in digits.tensors.items():
        if tensor.is_floating_point():
            assert (stored[name] == tensor.numpy()).all(), name


def test_interface_is_named_and_only_batch_is_dynamic(plain_onnx):
    graph = onnx.load(plain_onnx).graph
    shapes = [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in [*graph.input, *graph.output]
    ]
    assert shapes == [("input", ["batch", 1, 8, 8]), ("logits", ["batch", 10])]


def test_metadata_tell_what_the_network_is(digits, tmp_path):
    export_onnx(digits, tmp_path / "m.onnx", metadata={"licence": "CC0-1.0"})
    model = onnx.load(tmp_path / "m.onnx")
    entries = {e.key: e.value for e in model.metadata_props}
    assert list(entries) == sorted(entries)
    assert json.loads(entries["classes"]) == list(digits.classes)
    assert json.loads(entries["preprocessing"]) == {"divisor": 16.0, "mean": [0.3], "std": [0.4]}
    assert entries["network_sha256"] == digits.digest()
    assert entries["definition"] == "mnist(batch_norm=True, widths=[16, 32])"
    assert entries["licence"] == "CC0-1.0"
    assert model.producer_name == "tersor"


def test_no_paths_no_source_text_inside(plain_onnx, folded_onnx, skeleton_of):
    for path in (plain_onnx, folded_onnx):
        text = str(onnx.load_model_from_string(skeleton_of(path)))
        for trace in ("/", ".py", "forward", "return", "stack", "torch", "pkg.", "namespace"):
            assert trace not in text, (path, trace)


def test_export_is_the_same_in_another_folder_and_after_loading(digits, plain_onnx, tmp_path, monkeypatch):
    digits.save(tmp_path / "n.safetensors")
    monkeypatch.chdir(tmp_path)
    export_onnx(networks.load(Path("n.safetensors")), Path("here.onnx"))
    assert (tmp_path / "here.onnx").read_bytes() == plain_onnx.read_bytes()


def test_skeleton_stays_small(plain_onnx, skeleton_of):
    assert len(skeleton_of(plain_onnx)) < 1500


def test_replaced_weights_are_a_fresh_export_byte_for_byte(plain_onnx, tmp_path, make_network):
    other = make_network(seed=5)
    zeros = {k: v * 0 if k == "fc1.bias" else v for k, v in other.tensors.items()}
    other = other.with_tensors(zeros)  # an all-zero bias, which optimizers like to drop
    assert replace_weights(plain_onnx, other, tmp_path / "replaced.onnx")
    export_onnx(other, tmp_path / "fresh.onnx")
    assert (tmp_path / "replaced.onnx").read_bytes() == (tmp_path / "fresh.onnx").read_bytes()


@pytest.mark.parametrize("why", ["shape", "definition", "folded"])
def test_weights_that_do_not_fit_are_not_replaced(why, plain_onnx, folded_onnx, tmp_path, make_network):
    network = make_network()
    if why == "shape":
        network = make_network(arguments={"batch_norm": True, "widths": [8, 32]})
    if why == "definition":
        network = dataclasses.replace(network, arguments={**network.arguments, "dropout": [0.0, 0.0]})
    source = folded_onnx if why == "folded" else plain_onnx
    assert replace_weights(source, network, tmp_path / "out.onnx") is False
    assert not (tmp_path / "out.onnx").exists()


USER_NETWORKS = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(64, 10)

    def forward(self, x):
        if self.kind == "branch" and x.sum() > 0:
            x = 2 * x
        if self.kind == "operation":
            x = torch.special.bessel_j0(x)
        if self.kind == "batch":
            x = x.reshape(2, 64)
        return self.linear(x.flatten(1))

class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.relu, self.head = nn.ReLU(), Head(kind)

    def forward(self, x):
        return self.head(self.relu(x))

def good(): return Net("good")
def branch(): return Net("branch")
def operation(): return Net("operation")
def batch(): return Net("batch")
"""


@pytest.fixture
def user_network(tmp_path):
    file = tmp_path / "secret_folder" / "net.py"
    file.parent.mkdir()
    file.write_text(USER_NETWORKS)
    return lambda factory: networks.create(
        f"{file}:{factory}", {}, (1, 8, 8), tuple("0123456789"), Preprocessing()
    )


def test_of_a_users_file_only_the_factory_is_named(user_network, tmp_path):
    export_onnx(user_network("good"), tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    assert b"good@" in data
    assert b"secret_folder" not in data
    assert b"net.py" not in data


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("branch", ["layer 'head'", "if", "torch.where"]),
        ("operation", ["layer 'head'", "bessel_j0", "common torch.nn layers"]),
        ("batch", ["[2, 10]", "(batch, 10)", "x.shape[0]"]),
    ],
)
def test_what_cannot_be_exported_is_told_with_layer_and_remedy(factory, words, user_network, tmp_path, capfd):
    with pytest.raises(BadInput) as caught:
        export_onnx(user_network(factory), tmp_path / "m.onnx")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()
    out, err = capfd.readouterr()
    assert out + err == ""


def test_export_is_quiet_and_leaves_no_other_file(digits, tmp_path, capfd):
    export_onnx(digits, tmp_path / "m.onnx")
    out, err = capfd.readouterr()
    assert out + err == ""
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_missing_folder_is_told(digits, tmp_path):
    with pytest.raises(Unavailable, match="cannot be written.*writable folder"):
        export_onnx(digits, tmp_path / "absent" / "m.onnx")
