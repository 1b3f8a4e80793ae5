"""What `import tersor` offers: exactly these names, fetched when used, without torch where files will do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import blobs, make
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tersor
from tersor.errors import BadInput, ClaimBroken

PUBLIC = {
    "Bundle",
    "Data",
    "Network",
    "Recipe",
    "Run",
    "benchmark",
    "compress",
    "deploy",
    "errors",
    "inspect",
    "load",
    "pack",
    "stages",
    "study",
    "unpack",
    "verify",
}
WITHOUT_TORCH = ("Bundle", "Data", "benchmark", "errors", "inspect", "load", "pack", "unpack", "verify")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_public_names_are_exactly_these() -> None:
    assert set(tersor.__all__) == PUBLIC
    assert all(getattr(tersor, name) is not None for name in PUBLIC)
    assert set(dir(tersor)) == {*PUBLIC, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = tersor.prune  # type: ignore[attr-defined]


def test_every_public_name_says_what_it_does() -> None:
    assert all(getattr(tersor, name).__doc__ for name in PUBLIC)


def test_importing_tersor_imports_nothing_else() -> None:
    seen = "import sys; before = set(sys.modules); import tersor; print(sorted(set(sys.modules) - before))"
    assert run(seen) == "['tersor', 'tersor.version']"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_works_on_files_needs_no_torch(name: str) -> None:
    code = (
        "import sys\n"
        "for gone in ('torch', 'torchvision', 'nni', 'sklearn', 'pydantic', 'safetensors'):\n"
        "    sys.modules[gone] = None\n"
        f"import tersor; print(callable(tersor.{name}) or tersor.{name}.__name__)"
    )
    assert run(code) in ("True", "tersor.errors")


def images(count: int = 60, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 1, 8, 8), np.uint8), np.arange(count) % classes


def same(one: tersor.Data, other: tersor.Data) -> bool:
    return one.digest() == other.digest()


def test_data_are_the_same_however_they_are_handed_over() -> None:
    x, y = images()
    test, count = images(30, seed=1), 20
    plain = tersor.Data.of(train=(x, y), test=test)
    scaled = torch.from_numpy(x).float() / 255
    normalised = (scaled - 0.4) / 0.2
    loader = DataLoader(TensorDataset(scaled, torch.from_numpy(y)), batch_size=count)
    for train in (
        (x[:, 0], y),
        (x.transpose(0, 2, 3, 1), y),
        (scaled, torch.from_numpy(y)),
        TensorDataset(scaled, torch.from_numpy(y)),
        loader,
    ):
        assert same(tersor.Data.of(train=train, test=test), plain)
    with_statistics = tersor.Data.of(train=(x, y), test=test, mean=[0.4], std=[0.2])
    assert same(tersor.Data.of(train=(normalised, y), test=test, mean=[0.4], std=[0.2]), with_statistics)
    assert (plain.train.images.dtype, plain.input_shape, plain.classes) == (
        np.uint8,
        (1, 8, 8),
        ("0", "1", "2"),
    )
    assert len(plain.train) + len(plain.validation) == len(x)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ((np.random.default_rng(0).normal(size=(9, 1, 8, 8)), np.arange(9) % 3), "pixels cannot be told"),
        ((np.zeros((9, 8), np.uint8), np.arange(9) % 3), "these are no images"),
        ((np.zeros((9, 1, 8, 8), np.uint8), np.arange(8) % 3), "do not pair up"),
        ((np.full((9, 1, 8, 8), np.nan), np.arange(9) % 3), "pixels cannot be told"),
        (3, "cannot be read from this"),
        ([1, 2, 3], "cannot be read from this"),
    ],
)
def test_what_is_no_data_is_told(train: object, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        tersor.Data.of(train=train, test=images())


def small_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 3))


def test_a_network_of_a_module_computes_what_the_module_does() -> None:
    module, x = small_module(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = tersor.Network.of(module, input_shape=(1, 8, 8), classes=["a", "b", "c"])
    assert torch.equal(net.module()(x), module(x))
    assert net.classes == ("a", "b", "c")


def test_a_network_of_a_function_a_file_or_a_name(tmp_path: Path) -> None:
    def net(classes: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, classes))

    network = tersor.Network.of(net, input_shape=(1, 8, 8), classes=3, arguments={"width": 5})
    assert tuple(network.tensors["1.weight"].shape) == (5, 64)
    with pytest.raises(BadInput, match="does not take these arguments.*widht"):
        tersor.Network.of(net, input_shape=(1, 8, 8), classes=3, arguments={"widht": 5})
    source = "from torch import nn\n\ndef net(classes):\n    return nn.Linear(8, classes)\n"
    (tmp_path / "net.py").write_text(source)
    of_file = tersor.Network.of(f"{tmp_path}/net.py:net", input_shape=(1, 8, 8), classes=3)
    of_file.save(tmp_path / "n.safetensors")
    assert tersor.Network.load(tmp_path / "n.safetensors") == of_file
    assert tersor.Network.of("mnist", input_shape=(1, 8, 8), classes=3).definition == "mnist"
    with pytest.raises(BadInput, match="a network cannot be made of this. Got a int"):
        tersor.Network.of(3, input_shape=(1, 8, 8), classes=3)  # type: ignore[arg-type]


def test_a_live_module_is_pruned_and_proven() -> None:
    net = tersor.Network.of(small_module(), input_shape=(1, 8, 8), classes=3)
    small, details = tersor.stages.structure(net, blobs(), sparsity=0.5)
    assert small.tensors["0.weight"].shape[0] == 8
    assert isinstance(small, tersor.Network)
    assert details["masked_max_abs_diff"] < 1e-9
    assert net.tensors["0.weight"].shape[0] == 16


def test_stages_are_those_of_recipes() -> None:
    from tersor.pipeline.stages.table import STAGES

    assert set(dir(tersor.stages)) == {*STAGES, "own", "run"}
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        _ = tersor.stages.prune
    with pytest.raises(BadInput, match="unknown key 'amout'.*Did you mean 'amount'"):
        tersor.stages.sparsity(make(classes=3), blobs(), amout=0.5)


def test_a_stage_does_not_change_its_network() -> None:
    net = make(classes=3)
    before = net.digest()
    pruned, _ = tersor.stages.sparsity(net, blobs(), method="level", amount=0.5)
    assert (net.digest(), pruned == net) == (before, False)


RECIPE = {
    "name": "arrays",
    "threads": 1,
    "model": "mnist",
    "arguments": {"batch_norm": True, "widths": [8, 8], "hidden": 16},
    "stages": [{"stage": "train", "epochs": 2, "batch_size": 16}, {"stage": "sharing", "bits": 4}],
    "deploy": {"batches": [1], "seconds_per_model": 0.02, "int8": False, "lowbit": False},
    "gates": {"max_accuracy_drop": 1.0},
}


def test_data_handed_over_go_from_training_to_a_verified_bundle(tmp_path: Path) -> None:
    x, y = blobs(120).train.images, blobs(120).train.labels
    data = tersor.Data.of(train=(x, y), test=(blobs(seed=1).test.images, blobs(seed=1).test.labels))
    run = tersor.compress(RECIPE, data, runs=tmp_path / "runs", set={"train.epochs": 1}, quiet=True)
    assert (run.recipe.stages[0].epochs, run.recipe.data.kind) == (1, "arrays")  # type: ignore[attr-defined]
    again = tersor.compress(RECIPE, data, runs=tmp_path / "runs", set={"train.epochs": 1}, quiet=True)
    assert again.network() == run.network()
    with pytest.raises(BadInput, match="handed over in Python"):
        tersor.deploy(run, dist=tmp_path / "dist", quiet=True)
    bundle = tersor.deploy(run, data, dist=tmp_path / "dist", quiet=True)
    assert any("accuracy" in check.name for check in bundle.verify(data))
    assert not any("accuracy" in check.name for check in bundle.verify())
    with pytest.raises(BadInput, match="not the data of the bundle"):
        bundle.verify(tersor.Data.of(train=(x, y), test=(x, y)))
    (bundle.path / "model.onnx").write_bytes(b"other")
    with pytest.raises(ClaimBroken):
        tersor.verify(bundle)
