"""How far trials under way are: from the worker's training to the words of the study."""

import itertools
from pathlib import Path

import pytest
from engine_jobs import job, prepare

from tersor.pipeline.study import engine, heartbeat
from tersor.pipeline.study.heartbeat import file_of, listen
from tersor.pipeline.study.job import Job
from tersor.pipeline.study.run import _watch


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


def test_what_a_trial_tells_is_heard_until_it_ends() -> None:
    with heartbeat.heartbeat(job(0)) as tell:
        assert listen([job(0)]) == (0.0, "")
        tell(0.25, "train epoch 1/4")
        assert listen([job(0)]) == (0.25, "train epoch 1/4")
    assert listen([job(0)]) == (0.0, "")
    assert list(Path("trials").iterdir()) == []


def test_a_trial_writes_at_most_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0.0, 0.5)
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: next(seconds))
    heard = []
    with heartbeat.heartbeat(job(0)) as tell:
        for step in range(10):
            tell(step / 10, f"step {step}")
            heard.append(listen([job(0)])[1])
    assert len(set(heard)) < 6 < len(heard)


def test_several_trials_add_up_and_the_furthest_speaks() -> None:
    with heartbeat.heartbeat(job(0)) as one, heartbeat.heartbeat(job(1)) as two:
        one(0.5, "tune epoch 2/3")
        two(0.25, "train epoch 1/4")
        assert listen([job(0), job(1), job(2)]) == (0.75, "3 under way, the furthest: tune epoch 2/3")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fraction": "x", "words": ""}', '{"words": "a"}'])
def test_a_damaged_word_is_not_heard(content: str) -> None:
    file_of(job(0)).write_text(content)
    assert listen([job(0)]) == (0.0, "")


def test_a_folder_that_takes_no_files_does_not_stop_the_trial() -> None:
    Path("trials").rmdir()
    with heartbeat.heartbeat(job(0)) as tell:
        tell(0.5, "train")
    assert not Path("trials").exists()


def test_the_study_adds_them_to_what_has_ended() -> None:
    told: list[tuple[float, str]] = []
    watch = _watch(lambda fraction, words: told.append((fraction, words)), 4, lambda: 1)
    watch([job(0)])
    with heartbeat.heartbeat(job(0)) as tell:
        tell(0.5, "tune epoch 2/3")
        watch([job(0)])
    assert told == [(0.375, "1/4, tune epoch 2/3")]


def test_a_training_in_a_worker_is_heard() -> None:
    class Heard(Exception):
        """Ends the study as soon as it knows."""

    endless = job(0)
    endless.recipe["stages"][0]["epochs"] = 1_000_000

    def watch(jobs: list[Job]) -> None:
        """Wait for the first word of the worker."""
        if (words := listen(jobs)[1]).startswith("train epoch "):
            raise Heard(words)

    with pytest.raises(Heard, match="/1000000"):
        engine.run_jobs([endless], "local", 1, lambda record: None, watch=watch)
