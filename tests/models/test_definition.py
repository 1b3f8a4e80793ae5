"""Definitions: the zoo by name, a user's factory by file; every way to get it wrong has its message."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch

from tersor.errors import BadInput, Unavailable
from tersor.models import definition
from tersor.models.user_code import imported_files

GOOD = """
from torch import nn

def net(input_shape, classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], classes))
"""
SHAPE = (1, 4, 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(GOOD)
    return path


def test_factory_in_a_file_is_called_with_shape_and_classes(source: Path) -> None:
    net = definition.build(f"{source}:net", SHAPE, 3, {"width": 8})
    assert net[1].out_features == 3


def test_source_digest_follows_the_source(source: Path) -> None:
    before = definition.source_digest(f"{source}:net")
    source.write_text(GOOD + "\n")
    assert definition.source_digest(f"{source}:net") != before
    assert definition.source_digest("mnist") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenett", "no network called 'lenett'.*Did you mean 'lenet'"),
        ("nowhere.py:net", "file is missing or no factory is named"),
        ("{source}:nett", "no factory called 'nett'.*Did you mean 'net'"),
    ],
)
def test_wrong_names_are_told(source: Path, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        definition.build(name.format(source=source), SHAPE, 3, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def net(:", "fails when imported.*SyntaxError"),
        ("def net(): raise ValueError('boom')", "factory failed.*ValueError: boom"),
        ("def net(): return 3", "did not return a network.*int"),
    ],
)
def test_bad_sources_are_told(source: Path, text: str, message: str) -> None:
    source.write_text(text)
    with pytest.raises(BadInput, match=message):
        definition.build(f"{source}:net", SHAPE, 3, {})


def test_unknown_argument_is_told(source: Path) -> None:
    with pytest.raises(BadInput, match="does not take these arguments.*widht"):
        definition.build(f"{source}:net", SHAPE, 3, {"widht": 8})


DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Config:
    width: int = 5

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, Config().width), nn.Linear(Config().width, classes))
"""


def test_a_dataclass_may_stand_in_the_networks_file(source: Path) -> None:
    source.write_text(DATACLASS)
    assert definition.build(f"{source}:net", SHAPE, 3, {})[1].out_features == 5


HELPED = """
from torch import nn
from shapes.sizes import WIDTH

def net(classes):
    from late_sizes import MORE
    return nn.Sequential(nn.Flatten(), nn.Linear(16, WIDTH + MORE), nn.Linear(WIDTH + MORE, classes))
"""


@pytest.fixture
def helped(source: Path) -> Path:
    source.write_text(HELPED)
    (source.parent / "shapes").mkdir()
    (source.parent / "shapes" / "__init__.py").write_text("")
    (source.parent / "shapes" / "sizes.py").write_text("from .base import BASE\nWIDTH = BASE + 1\n")
    (source.parent / "shapes" / "base.py").write_text("BASE = 4\n")
    (source.parent / "late_sizes.py").write_text("MORE = 0\n")
    return source


def test_modules_beside_the_networks_file_are_found(helped: Path) -> None:
    assert definition.build(f"{helped}:net", SHAPE, 3, {})[1].out_features == 5


@pytest.mark.parametrize(
    ("file", "text", "width"),
    [
        ("shapes/sizes.py", "WIDTH = 7\n", 7),
        ("shapes/base.py", "BASE = 8\n", 9),
        ("late_sizes.py", "MORE = 2\n", 7),
    ],
)
def test_a_changed_helper_is_another_source_and_is_imported_anew(
    helped: Path, file: str, text: str, width: int
) -> None:
    before = definition.source_digest(f"{helped}:net")
    definition.build(f"{helped}:net", SHAPE, 3, {})
    (helped.parent / file).write_text(text)
    assert definition.source_digest(f"{helped}:net") != before
    assert definition.build(f"{helped}:net", SHAPE, 3, {})[1].out_features == width


def test_helpers_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for width in (3, 6):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "net.py").write_text("from sized import net\n")
        (folder / "sized.py").write_text(
            f"from torch import nn\n\ndef net(classes):\n    return nn.Linear({width}, classes)\n"
        )
    widths = [
        definition.build(f"{tmp_path / str(w)}/net.py:net", SHAPE, 3, {}).in_features for w in (3, 6, 3)
    ]
    assert widths == [3, 6, 3]


def test_a_file_without_helpers_is_identified_by_its_bytes(source: Path) -> None:
    assert definition.source_digest(f"{source}:net") == hashlib.sha256(source.read_bytes()).hexdigest()


def test_an_installed_library_is_no_helper(source: Path) -> None:
    source.write_text("import numpy, json, torchvision.models\n" + GOOD)
    assert imported_files(source) == []


def test_lazy_layers_take_their_shapes_from_one_image(tmp_path: Path) -> None:
    path = tmp_path / "lazy.py"
    path.write_text(
        "from torch import nn\n\ndef net(classes):\n"
        "    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(classes))\n"
        "def narrow(classes):\n    return nn.Sequential(nn.LazyConv2d(4, 9), nn.LazyLinear(classes))\n"
    )
    module = definition.build(f"{path}:net", (1, 4, 4), 3, {})
    assert module[0].weight.shape == (4, 1, 3, 3)
    assert module.training
    with pytest.raises(BadInput, match="lazy layers cannot be given their shapes"):
        definition.build(f"{path}:narrow", (1, 4, 4), 3, {})


@pytest.mark.parametrize("name", ["torchvision:mnasnet0_5", "timm:lcnet_035"])
def test_networks_of_packages_are_built_by_their_names_there(name: str) -> None:
    module = definition.build(name, (3, 64, 64), 7, {}).eval()
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("torchvision:resnet81", {}, "no classification network called 'resnet81'.*'torchvision:resnet18'"),
        ("timm:resnet188", {}, "timm has no classification network.*Did you mean 'timm:resnet18"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "not built with weights that are downloaded"),
        ("timm:lcnet_035", {"pretrained": True}, "not built with weights that are downloaded"),
    ],
)
def test_wrong_names_and_downloads_of_packages_are_told(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        definition.build(name, (3, 64, 64), 7, arguments)


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Unavailable, match=r"timm is not installed.*tersor\[timm\]"):
        definition.build("timm:resnet18", (3, 64, 64), 7, {})
