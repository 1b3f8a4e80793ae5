"""Studies: every point once, common stages once, failures recorded, resumed where they stopped."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from trials import trial

from tersor.errors import BadInput, Busy, Unavailable
from tersor.files import lock
from tersor.pipeline.recipe.read import parse_recipe
from tersor.pipeline.study.file import Latency, Limit, Point, StudyFile, Top, read_study
from tersor.pipeline.study.job import Job
from tersor.pipeline.study.results import summarize, top, within
from tersor.pipeline.study.run import _by_the_clock, run_study, shared_prefixes
from tersor.pipeline.study.trial import Trial

RECIPE = {
    "name": "tiny",
    "model": "mnist",
    "arguments": {"widths": [4, 4], "hidden": 8},
    "data": {"kind": "digits", "limit": 200},
    "stages": [
        {"stage": "train", "epochs": 1},
        {"stage": "sparsity", "method": "level", "amount": 0.5},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder: Path) -> StudyFile:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    content = {
        "name": "s",
        "recipe": str(folder / "recipe.yaml"),
        "workers": 1,
        "axes": {"sparsity.amount": [0.1, 0.5, 0.9]},
        "seeds": [0, 1],
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(content))
    return read_study(folder / "s.yaml")


@pytest.fixture(scope="module")
def records(folder: Path, study: StudyFile) -> list[Trial]:
    return run_study(study, folder / "runs", None, quiet=True)[1]


def test_every_point_is_measured(records: list[Trial]) -> None:
    assert [r.state for r in records] == ["finished"] * 6
    assert [r.metrics["sparsity_fraction"] for r in records] == pytest.approx(
        [0.1, 0.1, 0.5, 0.5, 0.9, 0.9], abs=0.01
    )
    assert all(0 <= r.metrics["test_accuracy_fraction"] <= 1 for r in records)
    assert [(r.recipe or {})["stages"][1]["amount"] for r in records] == [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]


def test_common_training_ran_once_a_seed(folder: Path, records: list[Trial]) -> None:
    metrics = [json.loads(p.read_text()) for p in (folder / "runs/.stages").glob("*/metrics.json")]
    assert sorted(m["stage"] for m in metrics) == ["sparsity"] * 6 + ["train"] * 2


def test_finished_study_is_not_run_again(folder: Path, study: StudyFile, records: list[Trial]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.json") if p.name != "results.json"}
    assert run_study(study, folder / "runs", None, quiet=True)[1] == records
    after = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.json") if p.name != "results.json"}
    assert before == after


def test_missing_trial_alone_is_run_again(folder: Path, study: StudyFile, records: list[Trial]) -> None:
    path = folder / "runs/studies/s/trials" / f"{records[3].key}.json"
    old = json.loads(path.read_text())["metrics"]
    path.unlink()
    again = run_study(study, folder / "runs", None, quiet=True)[1]
    assert again[3].metrics == old


def test_common_stages_are_told_and_those_reused_are_called_so(
    folder: Path, study: StudyFile, records: list[Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    for record in records:
        (folder / "runs/studies/s/trials" / f"{record.key}.json").unlink()
    run_study(study, folder / "runs", None)
    told = capsys.readouterr().err
    assert "[1/2] train, common to several trials\n" in told
    assert re.search(r"\[1/2\] stage 1 .* 2/2, common to several trials, 2 reused\n", told), told


def test_results_are_a_table_and_a_page(folder: Path, records: list[Trial]) -> None:
    with (folder / "runs/studies/s/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["sparsity.amount"]) for r in rows] == [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]
    assert float(rows[0]["packed_bytes"]) == records[0].metrics["packed_bytes"]
    assert "<html" in (folder / "runs/studies/s/report.html").read_text()


def test_failed_trial_is_recorded_and_does_not_stop_the_others(folder: Path) -> None:
    content = {
        "name": "f",
        "recipe": str(folder / "recipe.yaml"),
        "workers": 1,
        "test": False,
        "axes": {"train.learning_rate": [0.05, 1e12]},
        "top": [],
    }
    (folder / "f.yaml").write_text(yaml.safe_dump(content))
    records = run_study(read_study(folder / "f.yaml"), folder / "runs", None, quiet=True)[1]
    assert [r.state for r in records] == ["finished", "failed"]
    assert "training diverged" in str(records[1].error)
    assert "test_accuracy_fraction" not in records[0].metrics


def test_second_process_is_refused(folder: Path, study: StudyFile, records: list[Trial]) -> None:
    with lock(folder / "runs/studies/s/.lock", "it"), pytest.raises(Busy, match="study 's'"):
        run_study(study, folder / "runs", None, quiet=True)


def test_a_tracking_server_that_goes_away_stops_no_trial_and_gets_the_rest_later(
    folder: Path, study: StudyFile, records: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[int] = []

    def open_flaky(name: str, uri: str, runs: Path) -> Callable[[Trial], None]:
        left = iter(range(2))

        def track(record: Trial) -> None:
            if record.trial in logged:
                return
            if next(left, None) is None:
                raise Unavailable("the tracking server does not answer")
            logged.append(record.trial)

        return track

    monkeypatch.setattr("tersor.pipeline.study.tracking.open_tracker", open_flaky)
    tracked = study.model_copy(update={"tracking": "http://127.0.0.1:9"})
    for seen in ([0, 1], [0, 1, 2, 3]):
        with pytest.raises(Unavailable, match="does not answer"):
            run_study(tracked, folder / "runs", None, quiet=True)
        assert logged == seen
    assert run_study(tracked, folder / "runs", None, quiet=True)[1] == records
    assert logged == [0, 1, 2, 3, 4, 5]


def test_a_finished_study_is_timed_when_that_is_asked_for_or_was_interrupted(
    folder: Path, study: StudyFile, records: list[Trial]
) -> None:
    timed = study.model_copy(update={"latency": Latency(seconds_per_model=0.01)})
    found = run_study(timed, folder / "runs", None, quiet=True)[1]
    assert all(record.metrics["latency_p50_ms"] > 0 for record in found)
    assert [r.metrics["packed_bytes"] for r in found] == [r.metrics["packed_bytes"] for r in records]


@pytest.mark.parametrize(
    ("stage", "alone"),
    [
        ({"search": {"speedup": 2.0}}, True),
        ({"search": {"latency_ms": 2.0}}, True),
        ({"search": {"macs": 0.5}}, False),
        ({"align": "auto"}, True),
        ({"align": 16}, False),
    ],
)
def test_trials_that_choose_widths_by_the_clock_run_alone(stage: dict, alone: bool) -> None:
    stages = [{"stage": "train"}, {"stage": "structure", **stage}]
    recipe = parse_recipe({**RECIPE, "stages": stages}, "here")
    assert _by_the_clock(Point(0, {}, 0, recipe)) is alone


def test_seeds_give_mean_and_spread() -> None:
    trials = [
        trial(settings={"a": 1}, metrics={"x": 1.0}),
        trial(settings={"a": 1}, metrics={"x": 3.0}),
        trial(settings={"a": 1}, state="failed"),
        trial(settings={"a": 2}, metrics={"x": 5.0}),
    ]
    first, second = summarize(trials)
    assert (first["mean"]["x"], first["seeds"], first["failed"]) == (2.0, 2, 1)
    assert first["std"]["x"] == pytest.approx(2**0.5)
    assert second["std"]["x"] is None


def test_top_keeps_constraints_and_direction() -> None:
    rows = [{"mean": {"x": float(i), "size": float(10 * i)}} for i in range(5)]
    limits = [Limit(metric="size", max=30)]
    assert [r["mean"]["x"] for r in top(rows, Top(metric="x", count=2), limits)] == [3.0, 2.0]
    lowest = top(rows, Top(metric="x", direction="minimize", count=1), limits)
    assert lowest[0]["mean"]["x"] == 0.0
    with pytest.raises(BadInput, match="no trial has a metric 'y'.*one of size, x"):
        top(rows, Top(metric="y"), [])


@pytest.mark.parametrize(
    ("value", "kept"), [(0.0, True), (-1.0, False), (2.0, True), (2.1, False), (None, False)]
)
def test_constraints_hold_at_their_values(value: float | None, kept: bool) -> None:
    metrics = {} if value is None else {"x": value}
    assert within(metrics, [Limit(metric="x", min=0.0, max=2.0)]) is kept


def test_prefixes_are_those_that_several_trials_share() -> None:
    def job(number: int, *stages: str) -> Job:
        recipe = {"name": str(number), "seed": 0, "stages": [{"stage": s} for s in stages]}
        return Job(number, str(number), {}, recipe, "runs", "record", False)

    jobs = [job(0, "a", "b", "x"), job(1, "a", "b", "y"), job(2, "a", "c", "x"), job(3, "d", "e", "x")]
    levels = [[(j.number, j.depth) for j in level] for level in shared_prefixes(jobs)]
    assert levels == [[(0, 1)], [(0, 2)]]
