"""Study files: expanded into the points they say, and explained when wrong."""

from pathlib import Path

import pytest
import yaml

from tersor.errors import BadInput
from tersor.pipeline.study.file import grid, read_study

ROOT = Path(__file__).parents[3]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
BASE = {"name": "s", "recipe": str(ROOT / "recipes/digits.yaml")}


def written(tmp_path: Path, **content: object) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**BASE, **content}, sort_keys=False))
    return path


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_shipped_studies_are_valid(path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = read_study(path, fast=fast)
    assert study.name == path.stem + ("-fast" if fast else "")
    assert 1 < len(grid(study, Path("data"))) <= 100


def test_r3s_grids_have_the_reports_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sizes = [len(grid(read_study(ROOT / f"studies/r3-grid{i}.yaml"), None)) for i in (1, 2)]
    assert sizes == [72, 48]


def test_grid_is_the_product_of_the_axes_with_seeds_innermost(tmp_path: Path) -> None:
    axes = {
        "train.epochs": [1, 2],
        "seeded": {"settings": ["sharing.bits", "sharing.values"], "values": [[3, 7], [4, 9]]},
    }
    points = grid(read_study(written(tmp_path, axes=axes, seeds=[5, 6])), None)
    assert [p.number for p in points] == list(range(8))
    assert [p.seed for p in points[:4]] == [5, 6, 5, 6]
    assert points[2].settings == {"train.epochs": 1, "sharing.bits": 4, "sharing.values": 9}
    sharing = next(s for s in points[2].recipe.stages if s.name == "sharing")
    assert (sharing.bits, sharing.values) == (4, 9)  # type: ignore[union-attr]
    assert points[2].recipe.seed == 5


def test_overrides_hold_for_every_point_and_axes_win(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        overrides={"train.epochs": 3, "sharing.bits": 2, "sharing.values": None},
        axes={"train.epochs": [1, 2]},
    )
    recipes = [p.recipe for p in grid(read_study(path), None)]
    assert [r.stages[0].epochs for r in recipes] == [1, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"axes": {"tune-sharring.epochs": [1]}},
            "nothing in the recipe is called 'tune-sharring'.*Did you mean 'tune-sharing'",
        ),
        ({"axes": {"train.epoch": [1]}}, "unknown key 'epoch'.*Did you mean 'epochs'"),
        ({"axes": {"train.epochs": []}}, "the grid is empty.*train.epochs"),
        ({"axes": {}}, "the grid is empty.*any axis"),
        (
            {"axes": {"train.epochs": list(range(1, 102)), "seed": list(range(100))}},
            "10,100 points.*at most 10,000.*--yes",
        ),
        (
            {"axes": {"train.learning_rate": {"low": 0.1, "high": 0.2}}},
            "is a range; a grid needs a list.*tpe or nsga2",
        ),
        ({"axes": {"train.learning_rate": {"low": 0.3, "high": 0.2}}}, "low < high"),
        ({"axis": {"train.epochs": [1]}}, "unknown key 'axis'.*Did you mean 'axes'"),
        ({"axes": {"train.epochs": [1]}, "engine": "slurm"}, "wrong value.*'slurm'"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, content: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        grid(read_study(written(tmp_path, **content)), None)


def test_large_grid_runs_when_asked(tmp_path: Path) -> None:
    axes = {"train.epochs": list(range(1, 5)), "seed": [1]}
    assert len(grid(read_study(written(tmp_path, axes=axes)), None, yes=True)) == 4


def test_missing_study_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the study is missing"):
        read_study(tmp_path / "nowhere.yaml")
