"""Kept results are measured again without training, and every false figure is found."""

import json
from pathlib import Path

import pytest
from story.bad_files import flip
from story.harness import Server


@pytest.fixture
def kept(server: Server, copy: Path) -> Path:
    done = server.run("kept", "add", "runs/tiny", cwd=copy)
    assert done.code == 0, done.stderr
    assert done.stdout.strip() == "results/tiny"
    return copy


def test_a_kept_recipe_does_not_say_where_the_data_lay(server: Server, copy: Path) -> None:
    recipe = copy / "runs/tiny/recipe.yaml"
    text = recipe.read_text()
    assert "path: null" in text
    recipe.write_text(text.replace("path: null", f"path: {copy}"))
    assert server.run("kept", "add", "runs/tiny", cwd=copy).code == 0
    assert str(copy) not in (copy / "results/tiny/recipe.yaml").read_text()


def test_a_kept_result_holds(server: Server, kept: Path) -> None:
    folder = kept / "results/tiny"
    assert sorted(p.name for p in folder.iterdir()) == ["model.tsr", "recipe.yaml", "result.json"]
    checked = server.run("kept", "check", cwd=kept)
    assert checked.code == 0, checked.stderr
    result = json.loads((folder / "result.json").read_text())
    size = (folder / "model.tsr").stat().st_size
    assert f"{size:,}" in checked.stdout
    assert f"{result['baseline_bytes'] / size:.1f}x" in checked.stdout
    assert "SHA-256, bytes, baseline bytes, accuracy" in checked.stdout
    assert str(kept) not in (folder / "result.json").read_text()


@pytest.mark.parametrize(
    ("key", "factor", "name"),
    [
        ("baseline_bytes", 2, "baseline bytes"),
        ("packed_bytes", 0.5, "bytes"),
        ("accuracy_fraction", 0.9, "accuracy"),
    ],
)
def test_a_false_figure_is_found(server: Server, kept: Path, key: str, factor: float, name: str) -> None:
    path = kept / "results/tiny/result.json"
    result = json.loads(path.read_text())
    result[key] = type(result[key])(result[key] * factor)
    path.write_text(json.dumps(result))
    checked = server.run("kept", "check", cwd=kept)
    assert checked.code == 3
    assert f"1 of 4 claims do not hold: {name}: got" in checked.message
    assert f"{name} BROKEN" in checked.stdout


def test_a_changed_file_is_found(server: Server, kept: Path) -> None:
    packed = kept / "results/tiny/model.tsr"
    flip(packed, packed.stat().st_size // 2)
    checked = server.run("kept", "check", cwd=kept)
    assert checked.code == 3
    assert "SHA-256: got" in checked.message


def test_nothing_to_verify_is_told(server: Server, tmp_path: Path) -> None:
    checked = server.run("kept", "check", cwd=tmp_path)
    assert checked.code == 2
    assert "there are no kept results" in checked.message
    assert "tersor kept add" in checked.message


def test_an_unfinished_run_is_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "runs/half").mkdir(parents=True)
    kept = server.run("kept", "add", "runs/half", cwd=tmp_path)
    assert kept.code == 2
    assert "Run `tersor compress` first" in kept.message
    assert not (tmp_path / "results").exists()
