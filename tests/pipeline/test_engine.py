"""Both engines: dead workers, threads, folders, Ctrl-C, clusters that are not there. Nothing is mocked."""

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

from tersor.models.errors import Unavailable
from tersor.pipeline import engine, ray_cluster

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
ENGINES = ["local", pytest.param("ray", marks=needs_ray)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _end_workers() -> Iterator[None]:
    yield
    engine.stop()


def run(jobs: list[Any], which: str, workers: int = 2) -> dict[int, dict[str, Any]]:
    """What `done` was told, by trial; each trial once."""
    told: list[dict[str, Any]] = []
    engine.run_jobs(jobs, which, workers, told.append)
    assert len({record["trial"] for record in told}) == len(told) == len(jobs)
    return {record["trial"]: record for record in told}


@pytest.mark.parametrize("which", ENGINES)
def test_a_killed_worker_loses_no_trial_and_the_killer_is_recorded(
    which: str, capfd: pytest.CaptureFixture[str]
) -> None:
    told = run([job(0), job(1, "once"), job(2, "always"), job(3)], which)
    assert [told[i]["state"] for i in range(4)] == ["finished", "finished", "failed", "finished"]
    assert "SIGKILL" in told[2]["error"]
    for number, record in told.items():
        assert json.loads(Path(f"trials/k{number}.json").read_text()) == record
    assert capfd.readouterr().out == ""  # stdout belongs to results


@pytest.mark.parametrize("which", ENGINES)
def test_a_single_worker_is_a_process_of_its_own_too(which: str) -> None:
    told = run([job(0, "once"), job(1)], which, workers=1)
    assert {record["state"] for record in told.values()} == {"finished"}


@pytest.mark.parametrize("which", ENGINES)
def test_threads_are_limited_when_a_worker_starts(which: str) -> None:
    """Libraries read the variables when they are loaded; the pools themselves are asked."""
    run([job(0, "report")], which)
    told = json.loads(Path("report.json").read_text())
    assert told["torch"] == 1
    assert set(told["pools"].values()) == {1}, told["pools"]
    assert {told["environ"][name] for name in engine.THREAD_VARIABLES} == {"1"}


@pytest.mark.parametrize("which", ENGINES)
def test_an_error_in_a_trial_is_its_record_and_stops_nothing(which: str) -> None:
    told = run([job(0, "raise"), job(1)], which)
    assert "this network cannot be built" in told[0]["error"]
    assert told[1]["state"] == "finished"


@pytest.mark.parametrize("which", ENGINES)
def test_warm_workers_follow_to_another_folder(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([job(0)], which)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    prepare(tmp_path / "other")
    assert run([job(1)], which)[1]["state"] == "finished"
    assert (tmp_path / "other" / "trials" / "k1.json").is_file()
    assert (tmp_path / "other" / "runs").is_dir()


@pytest.mark.parametrize("which", ENGINES)
def test_a_record_that_cannot_be_written_is_the_systems_own_error(which: str, tmp_path: Path) -> None:
    """A full disk must arrive as such, for the study to tell it; here the folder is gone."""
    (tmp_path / "trials").rmdir()
    with pytest.raises(FileNotFoundError, match="k0.json"):
        run([job(0)], which)


@pytest.mark.parametrize("which", ENGINES)
def test_ctrl_c_ends_the_study_and_its_workers(which: str, tmp_path: Path) -> None:
    code = (
        "from engine_jobs import job\nfrom tersor.pipeline import engine\n"
        f"engine.run_jobs([job(0, 'sleep'), job(1, 'sleep')], {which!r}, 2, print)\n"
    )
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: len(list(tmp_path.glob("sleeping-*"))) == 2, 120)
    pids = [int(p.name.partition("-")[2]) for p in tmp_path.glob("sleeping-*")]
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (1, 130, -signal.SIGINT)
    assert errors.count("Traceback") == 1, errors  # of the process itself, which here has no command line
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)


def until(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@needs_ray
def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(Unavailable, match=f"Ray cluster cannot be reached.*127.0.0.1:{port}") as caught:
        engine.run_jobs([job(0)], "ray", 2, print, f"127.0.0.1:{port}")
    assert time.monotonic() - began < 20
    assert caught.value.exit_code == 4


@needs_ray
def test_a_port_that_is_no_cluster_is_told_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for two minutes and then end the process."""
    monkeypatch.setattr(ray_cluster, "JOIN_SECONDS", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no answer that Ray understands"):
            engine.run_jobs([job(0)], "ray", 2, print, f"127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - began < 20


def test_without_ray_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    engine.stop()
    with pytest.raises(Unavailable, match=r"pip install 'tersor\[cluster\]', or use engine: local"):
        engine.run_jobs([job(0)], "ray", 2, print)


@needs_ray
def test_a_local_cluster_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    code = (
        "from tersor.pipeline import ray_cluster\nend = ray_cluster.connect(None, 1)\nimport ray\n"
        "ray.get(ray.remote(lambda: 1).remote())\nend()"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    subprocess.run([sys.executable, "-c", code], env={**environ, "HOME": str(tmp_path / "home")}, check=True)
    assert list((tmp_path / "home").rglob("*")) == []
