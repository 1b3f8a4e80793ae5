"""A trial's record: written and read again alike, without what is not known; damage is told by its key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trials import stage, trial

from tersor.errors import BadInput
from tersor.pipeline.study.job import Job
from tersor.pipeline.study.trial import Trial, failed, finished, trial_metrics

HEAD = ["trial", "key", "settings", "seed", "recipe", "state", "error", "metrics", "stages"]
JOB = Job(3, "abc", {"sparsity.amount": 0.5}, {"seed": 7, "stages": []}, "runs", "trials/abc.json", True)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = finished(JOB, metrics={"x": 1}, stages=(stage(), stage("sparsity")), onnx="a", first="b")
    whole.write(tmp_path / "t.json")
    assert Trial.read(tmp_path / "t.json") == whole
    assert json.dumps(Trial.read(tmp_path / "t.json").to_json()) == json.dumps(whole.to_json())


def test_keys_stand_in_one_order_and_what_is_not_known_is_left_out() -> None:
    assert list(finished(JOB, onnx="a", first="b").to_json()) == [*HEAD, "onnx", "first"]
    broken = failed(JOB, "no").to_json()
    assert list(broken) == HEAD
    assert (broken["state"], broken["error"], broken["seed"]) == ("failed", "no", 7)
    died = replace(failed(JOB, "no"), recipe=None)
    assert list(died.to_json()) == [key for key in HEAD if key != "recipe"]


@pytest.mark.parametrize(
    ("metrics", "why_not", "written"),
    [
        ({}, None, {}),
        ({"latency_p50_ms": 1.0}, None, {"not_measured": None}),
        ({}, "x", {"not_measured": "x"}),
    ],
)
def test_why_there_is_no_latency_is_written_once_that_was_tried(
    metrics: dict[str, float], why_not: str | None, written: dict[str, Any]
) -> None:
    told = trial(metrics=metrics, not_measured=why_not).to_json()
    assert {key: value for key, value in told.items() if key == "not_measured"} == written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": [1]}, "Got a list. Wanted a mapping. Where: {path}, metrics."),
        ({"metrics": {"x": "big"}}, 'Got "big". Wanted a number. Where: {path}, metrics.x.'),
        ({"stages": [{"name": "train"}]}, "Got no stage. Where: {path}, stages[0]."),
        ({"trial": None}, "Got null. Wanted a whole number. Where: {path}, trial."),
    ],
)
def test_a_damaged_record_is_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(trial().to_json() | change))
    with pytest.raises(BadInput) as caught:
        Trial.read(path)
    assert str(caught.value).startswith("the trial's record is damaged.")
    assert words.format(path=path) in str(caught.value)
    assert "run the study again" in str(caught.value)


def test_a_trials_numbers_are_those_of_its_last_stage_and_of_its_trainings_together() -> None:
    epochs = [{"seconds": 1.0, "cpu_seconds": 0.5}, {"seconds": 3.0, "cpu_seconds": 2.5}]
    history = [{**epoch, "train_accuracy_fraction": 0.8} for epoch in epochs]
    first = stage("train", seconds=4.0, details={"history": history}, nonzero_weights=100)
    last = stage("sparsity", seconds=1.0, measuring_seconds=9.0)
    found = trial_metrics([first, last])
    assert (found["seconds"], found["training_seconds"], found["training_cpu_seconds"]) == (5.0, 3.0, 2.5)
    assert (found["epochs"], found["train_accuracy_fraction"]) == (2, 0.8)
    assert (found["nonzero_weights"], found["sparsity_fraction"]) == (25, 0.75)
    assert "measuring_seconds" not in found
    assert not {"name", "stage", "details"} & set(found)
