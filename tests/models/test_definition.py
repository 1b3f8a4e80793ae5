"""Definitions: the zoo by name, a user's factory by file; every way to get it wrong has its message."""

from pathlib import Path

import pytest

from tersor.errors import BadInput
from tersor.models import definition

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
