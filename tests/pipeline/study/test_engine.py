"""Both engines: dead workers, threads, folders, Ctrl-C, clusters that are not there. Nothing is mocked."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_jobs import job, prepare

from tersor.errors import Unavailable
from tersor.pipeline.study import engine, ray_cluster
from tersor.pipeline.study.trial import Trial

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=[needs_ray, pytest.mark.cluster])])
def which(request: pytest.FixtureRequest) -> str:
    """The engine; of the module's scope, so that one engine's tests share their warm workers."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of this file's own; all workers that it started end with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield Path.home()
        engine.stop()


def run(jobs: list[Any], which: str, workers: int = 2) -> dict[int, Trial]:
    """What `done` was told, by number; each trial once."""
    told: list[Trial] = []
    engine.run_jobs(jobs, which, workers, told.append)
    assert len({trial.trial for trial in told}) == len(told) == len(jobs)
    return {trial.trial: trial for trial in told}


def test_a_killed_worker_loses_no_trial_and_the_killer_is_recorded(
    which: str, capfd: pytest.CaptureFixture[str]
) -> None:
    told = run([job(0), job(1, "once"), job(2, "always")], which)
    assert told[0].finished
    assert "this network cannot be built" in str(told[1].error)  # what it says when it is not killed
    assert "SIGKILL" in str(told[2].error)
    for number, trial in told.items():
        assert Trial.read(Path(f"trials/k{number}.json")) == trial
    assert capfd.readouterr().out == ""  # stdout belongs to results


def test_an_error_in_a_trial_is_its_record(which: str) -> None:
    told = run([job(0, "raise"), job(1, "raise")], which)
    assert ["this network cannot be built" in str(told[i].error) for i in (0, 1)] == [True, True]


def test_threads_are_limited_when_a_worker_starts(which: str) -> None:
    """Libraries read the variables when they are loaded; the pools themselves are asked."""
    run([job(0, "raise")], which)
    told = json.loads(Path("threads.json").read_text())
    assert told["torch"] == 1
    assert told["pools"]
    assert set(told["pools"].values()) == {1}, told["pools"]
    assert {told["environ"][name] for name in engine.THREAD_VARIABLES} == {"1"}


def test_warm_workers_follow_to_another_folder(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([job(0, "raise")], which)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    prepare(tmp_path / "other")
    run([job(1, "raise")], which)
    assert (tmp_path / "other" / "trials" / "k1.json").is_file()
    assert (tmp_path / "other" / "threads.json").is_file()


def test_a_record_that_cannot_be_written_is_the_systems_own_error(which: str, tmp_path: Path) -> None:
    """A full disk must arrive as such, for the study to tell it; here the folder is gone."""
    (tmp_path / "trials").rmdir()
    with pytest.raises(FileNotFoundError, match=r"k0\.json") as caught:
        run([job(0, "raise")], which)
    assert caught.value.errno == 2


def test_engines_leave_nothing_in_the_home_folder(which: str, home: Path) -> None:
    run([job(0, "raise")], which)
    assert not [path for path in home.rglob("*") if "onnxruntime" not in str(path).lower() and path.is_file()]


def test_a_single_local_worker_is_a_process_of_its_own_too() -> None:
    """joblib's way would be to run its trials in this process."""
    assert "SIGKILL" in str(run([job(0, "always")], "local", workers=1)[0].error)


def test_ctrl_c_ends_the_study_and_its_workers(which: str, tmp_path: Path) -> None:
    code = (
        "import signal\nfrom engine_jobs import job\nfrom tersor.pipeline.study import engine\n"
        # a shell starts what it runs in the background with Ctrl-C ignored, and that is inherited
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"engine.run_jobs([job(0, 'sleep'), job(1, 'sleep')], {which!r}, 2, print)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: len(list(tmp_path.glob("sleeping-*"))) == 2, 120)
        pids = [int(p.name.partition("-")[2]) for p in tmp_path.glob("sleeping-*")]
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (1, 130, -signal.SIGINT)
    assert errors.count("Traceback") == 1, errors  # of the process itself, which here has no command line
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30)


def until(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@needs_ray
@pytest.mark.cluster
def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the system's own words: nobody has tried to join, which takes Ray minutes
    words = rf"Ray cluster cannot be reached\. Got \[Errno \d+\] .*127.0.0.1:{port}"
    with pytest.raises(Unavailable, match=words) as caught:
        engine.run_jobs([job(0)], "ray", 2, print, f"127.0.0.1:{port}")
    assert caught.value.exit_code == 4


@needs_ray
@pytest.mark.cluster
def test_a_port_that_is_no_cluster_is_told_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for more than two minutes, and then tell a reason of its own."""
    monkeypatch.setattr(ray_cluster, "JOIN_SECONDS", 4.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(Unavailable, match="no answer that Ray understands"),
    ):
        engine.run_jobs([job(0)], "ray", 2, print, f"127.0.0.1:{silent.getsockname()[1]}")


def test_without_ray_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    engine.stop()
    with pytest.raises(Unavailable, match=r"pip install 'tersor\[cluster\]', or use engine: local"):
        engine.run_jobs([job(0)], "ray", 2, print)
