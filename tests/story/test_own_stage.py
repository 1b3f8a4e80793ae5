"""A stage of one's own goes the whole way: compress, deploy, verify, report, look, and a study's workers."""

import json
from pathlib import Path

import pytest
import yaml
from story.harness import Server, stage_times, tiny_recipe, write_recipe

STAGE = '''
from __future__ import annotations

from pydantic import BaseModel
from tersor import Network

from amounts import LEAST


class Settings(BaseModel):
    factor: float = 0.5


def soften(network: Network, settings: Settings, data, tell) -> tuple[Network, dict]:
    """Make the last layer's weights smaller."""
    tell(0.5, "softening")
    factor = max(settings.factor, LEAST)
    tensors = {**network.tensors, "fc2.weight": factor * network.tensors["fc2.weight"]}
    return network.with_tensors(tensors), {"factor": factor, "images": len(data.train)}
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(STAGE)
    (tmp_path / "amounts.py").write_text("LEAST = 0.1\n")
    train, _, tune, *_ = tiny_recipe()["stages"]
    own = {"stage": "mine.py:soften", "factor": 0.25}
    deploy = {"batches": [1], "seconds_per_model": 0.02, "int8": False, "lowbit": False}
    write_recipe(tmp_path, tiny_recipe(stages=[train, own, tune], deploy=deploy))
    return tmp_path


def details(folder: Path) -> dict[str, object]:
    return json.loads((folder / "runs/tiny/02-soften/metrics.json").read_text())["details"]


def test_an_own_stage_goes_the_whole_way(server: Server, folder: Path) -> None:
    done = server.run("compress", "tiny.yaml", cwd=folder)
    assert done.code == 0, done.stderr
    assert details(folder) == {"factor": 0.25, "images": 1213}
    for command in (
        ("deploy", "tiny.yaml"),
        ("verify", "dist/tiny"),
        ("report", "dist/tiny"),
        ("look", "cost", "runs/tiny"),
        ("look", "cost", "dist/tiny"),
        ("recipe", "plan", "tiny.yaml"),
    ):
        done = server.run(*command, cwd=folder)
        assert done.code == 0, (command, done.stderr)
    assert "mine.py:soften" in (folder / "dist/tiny/manifest.json").read_text()
    assert "mine.py:soften" in done.stdout
    assert str(folder) not in (folder / "dist/tiny/manifest.json").read_text()


@pytest.mark.parametrize("file", ["mine.py", "amounts.py"])
def test_a_changed_stage_or_helper_is_run_anew_and_the_training_is_not(
    server: Server, folder: Path, file: str
) -> None:
    assert server.run("compress", "tiny.yaml", cwd=folder).code == 0
    before = stage_times(folder / "runs")
    path = folder / file
    path.write_text(path.read_text().replace("LEAST = 0.1", "LEAST = 0.75").replace("max(", "2 * max("))
    assert server.run("compress", "tiny.yaml", cwd=folder).code == 0
    assert details(folder)["factor"] == {"mine.py": 0.5, "amounts.py": 0.75}[file]
    after = stage_times(folder / "runs")
    assert before.items() <= after.items()
    # the stage and the tuning after it: four files each; and what other compressors made of the last
    assert len(after) == len(before) + 2 * 4 + 1


def test_an_own_stage_runs_in_a_studys_workers(server: Server, folder: Path) -> None:
    study = {"name": "factors", "recipe": "tiny.yaml", "axes": {"soften.factor": [0.2, 0.9]}, "workers": 1}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    done = server.run("study", "study.yaml", "--json", cwd=folder)
    assert done.code == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    assert [trial["stages"][1]["details"]["factor"] for trial in trials] == [0.2, 0.9]
    (folder / "amounts.py").write_text("LEAST = 0.5\n")
    changed = json.loads(server.run("study", "study.yaml", "--json", cwd=folder).stdout)["trials"]
    assert [trial["stages"][1]["details"]["factor"] for trial in changed] == [0.5, 0.9]
