"""Other weights, data or factories under the same name are another trial."""

from pathlib import Path
from typing import Any

import pytest

from tersor.pipeline.study.keys import Sources


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    for name in ("net.py", "w.pt", "images/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"one")
    return {
        "model": f"{tmp_path}/net.py:factory",
        "stages": [{"stage": "load", "weights": f"{tmp_path}/w.pt"}, {"stage": "tune"}],
        "data": {"path": f"{tmp_path}/images"},
    }


@pytest.mark.parametrize("name", ["net.py", "w.pt", "images/a.png", "images/b.png"])
def test_a_changed_file_changes_the_key(recipe: dict[str, Any], tmp_path: Path, name: str) -> None:
    before = Sources().of(recipe)
    assert Sources().of(recipe) == before
    (tmp_path / name).write_bytes(b"other")
    assert Sources().of(recipe) != before


def test_each_source_is_read_once_a_study(recipe: dict[str, Any], tmp_path: Path) -> None:
    sources = Sources()
    before = sources.of(recipe)
    (tmp_path / "w.pt").write_bytes(b"other")
    assert sources.of(recipe) == before


def test_a_network_of_the_zoo_on_digits_reads_nothing() -> None:
    sources = Sources().of({"model": "mnist", "stages": [{"stage": "train"}], "data": {"path": None}})
    assert sources[1:] == [None, []]
