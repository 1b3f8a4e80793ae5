"""The commands for studies, as a user runs them: killed, on a full disk, with trials that fail."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from story.harness import Outcome, Server, leftovers, stage_times, write_recipe

RECIPE = {
    "name": "base",
    "seed": 0,
    "threads": 1,
    "model": "mnist",
    "arguments": {"widths": [4, 4], "hidden": 8},
    "data": {"kind": "digits", "limit": 300},
    "stages": [{"stage": "train", "epochs": 1}, {"stage": "sparsity", "method": "level", "amount": 0.5}],
}
AXES = {"sparsity.amount": [0.1, 0.3, 0.5, 0.7]}


def write_study(folder: Path, **changes: Any) -> str:
    """Write base.yaml and study.yaml; returns the study's name on the command line."""
    write_recipe(folder, RECIPE)
    content = {"name": "s", "recipe": "base.yaml", "axes": AXES, "workers": 1, **changes}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return "study.yaml"


def trials(folder: Path) -> dict[str, tuple[str, int]]:
    """Each trial's state and when its record was written, in ns."""
    found = sorted((folder / "runs/studies/s/trials").glob("*.json"))
    return {p.name: (json.loads(p.read_text())["state"], p.stat().st_mtime_ns) for p in found}


def rows(folder: Path) -> list[dict[str, str]]:
    """results.csv."""
    with (folder / "runs/studies/s/results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, server: Server) -> tuple[Path, Outcome]:
    """A study that nothing disturbed, and what the command said."""
    folder = tmp_path_factory.mktemp("study")
    return folder, server.run("study", write_study(folder), cwd=folder)


def test_a_study_ends_with_a_table_and_its_page(done: tuple[Path, Outcome]) -> None:
    folder, outcome = done
    assert outcome.code == 0, outcome.stderr
    assert "best by validation accuracy" in outcome.stdout
    assert "4 trials, 0 failed; page: runs/studies/s/report.html" in outcome.stdout
    assert [row["sparsity.amount"] for row in rows(folder)] == ["0.1", "0.3", "0.5", "0.7"]


def test_a_finished_study_is_shown_without_loading_torch(done: tuple[Path, Outcome]) -> None:
    code = """
import sys
from tersor.pipeline.cli.main import main
sys.argv = ["tersor", "study", "study.yaml", "--json"]
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=done[0], capture_output=True, text=True)
    assert len(json.loads(shown.stdout)["trials"]) == 4
    assert shown.stderr.split() == ["False"]


def test_killed_and_started_again_it_goes_on(
    done: tuple[Path, Outcome], tmp_path: Path, server: Server
) -> None:
    running = server.start("study", write_study(tmp_path), cwd=tmp_path)
    running.send_when(lambda: len(trials(tmp_path)) >= 2, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    before, stages = trials(tmp_path), stage_times(tmp_path / "runs")
    assert len(before) < 4
    again = server.run("study", "study.yaml", cwd=tmp_path)
    assert again.code == 0, again.stderr
    after = trials(tmp_path)
    assert len(after) == 4
    assert {k: after[k] for k in before} == before, "finished trials are not run again"
    now = stage_times(tmp_path / "runs")
    assert {k: now[k] for k in stages} == stages, "finished stages are not run again"
    assert leftovers(tmp_path) == []
    for ours, whole in zip(rows(tmp_path), rows(done[0])):
        assert ours["packed_bytes"] == whole["packed_bytes"]
        assert ours["test_accuracy_fraction"] == whole["test_accuracy_fraction"]


def test_a_full_disk_ends_the_study_and_finished_trials_stay(tmp_path: Path, server: Server) -> None:
    first = server.run("study", write_study(tmp_path, axes={"sparsity.amount": [0.1]}), cwd=tmp_path)
    assert first.code == 0, first.stderr
    before = trials(tmp_path)
    full = server.run("study", write_study(tmp_path), cwd=tmp_path, file_limit_bytes=2048)
    assert full.code == 4, full.stderr
    assert "File too large" in full.stderr
    assert "model.onnx. Free disk space or choose another folder" in full.stderr
    assert "Traceback" not in full.stderr
    assert trials(tmp_path) == before, "a full disk is no fault of a trial"
    assert leftovers(tmp_path / "runs/studies") == []
    again = server.run("study", "study.yaml", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert len(trials(tmp_path)) == 4


def test_some_failed_trials_are_told_and_all_failed_is_an_error(tmp_path: Path, server: Server) -> None:
    rates = {"train.learning_rate": [0.05, 1e12]}
    some = server.run("study", write_study(tmp_path, axes=rates), cwd=tmp_path)
    assert some.code == 0
    assert "2 trials, 1 failed" in some.stdout
    assert "trial 1 {'train.learning_rate': 1000000000000.0}: training diverged" in some.stderr
    every = server.run("study", write_study(tmp_path, axes={"train.learning_rate": [1e12]}), cwd=tmp_path)
    assert every.code == 1
    assert "tersor: all trials failed. Got training diverged" in every.stderr


def test_the_recipe_is_found_from_the_study_too(tmp_path: Path, server: Server) -> None:
    study = write_study(tmp_path, axes={"sparsity.amount": [0.1]})
    (tmp_path / "elsewhere").mkdir()
    outcome = server.run("study", f"../{study}", cwd=tmp_path / "elsewhere")
    assert outcome.code == 0, outcome.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": "ray", "address": "127.0.0.1:9"}, "the Ray cluster cannot be reached"),
        ({"tracking": "http://127.0.0.1:9"}, "the tracking server does not answer"),
    ],
)
def test_a_server_that_is_not_there_stops_at_once_or_is_replaced(
    changes: dict[str, str], says: str, tmp_path: Path, server: Server
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    study = write_study(tmp_path, axes={"sparsity.amount": [0.1]}, **changes)
    refused = server.run("study", study, cwd=tmp_path)
    assert refused.code == 4
    assert f"tersor: {says}" in refused.stderr
    assert not trials(tmp_path)
    local = server.run("study", study, "--or-local", cwd=tmp_path)
    assert local.code == 0, local.stderr
    assert says in local.stderr
    assert "Going on: " in local.stderr
    assert [state for state, _ in trials(tmp_path).values()] == ["finished"]
    assert (tmp_path / "runs/mlflow.db").is_file() == ("tracking" in changes)


def test_sensitivity_and_predictions_write_their_pages(story, server: Server, copy: Path) -> None:
    points = server.run("look", "sensitivity", "runs/tiny", "--levels", "0.5,0.9", "--json", cwd=copy)
    assert points.code == 0, points.stderr
    found = json.loads(points.stdout)
    assert {point["level"] for point in found} == {0.5, 0.9}
    page = server.run("look", "predictions", "dist/tiny", "--out", "seen", cwd=copy)
    assert page.code == 0, page.stderr
    assert (copy / "seen" / "predictions.csv").is_file()
    assert "<html" in Path(copy / page.stdout.strip()).read_text()
