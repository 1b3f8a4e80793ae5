"""The timing pass: in turn with the reference, each file once, finished trials only, written back whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nets import make
from timings import given_times
from trials import trial

from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import benchmark
from tersor.pipeline.study import engine, latency
from tersor.pipeline.study.file import Latency
from tersor.pipeline.study.latency import time_trials

FAST = Latency(seconds_per_model=0.02)
METRICS = {
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_speedup",
    "latency_speedup_low",
    "latency_speedup_high",
}


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A large network and a much smaller one."""
    folder = tmp_path_factory.mktemp("nets")
    export_onnx(make(shape=(1, 28, 28)), folder / "large.onnx")
    export_onnx(make(shape=(1, 8, 8)), folder / "small.onnx")
    return {"large": folder / "large.onnx", "small": folder / "small.onnx"}


def write(folder: Path, number: int, onnx: Path, first: Path, **changes: Any) -> Path:
    path = folder / f"{number}.json"
    plain = trial(trial=number, metrics={"x": 1.0}, onnx=str(onnx), first=str(first))
    replace(plain, **changes).write(path)
    return path


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_latency_and_speedup_over_the_first_trials_first_network(
    tmp_path: Path, nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "benchmark", given_times(lambda file: 4.0 if file == nets["large"] else 1.0))
    large, small = nets["large"], nets["small"]
    paths = [write(tmp_path, 0, large, large), write(tmp_path, 1, small, small)]
    time_trials(FAST, paths, lambda *_: None)
    first, second = (read(path)["metrics"] for path in paths)
    assert first.keys() == second.keys() == METRICS | {"x"}
    assert second["latency_speedup"] == 4.0  # over the large one, though its own first network is small
    assert second["latency_speedup_low"] <= second["latency_speedup"] <= second["latency_speedup_high"]
    assert (first["latency_p50_ms"], second["latency_p50_ms"]) == (4.0, 1.0)
    assert read(paths[1])["not_measured"] is None


def test_idle_workers_are_stopped_before_anything_is_timed(
    tmp_path: Path, nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even idle ones wake now and then. Where nothing is left to time they stay warm for the next round."""

    class Idle:
        """Workers of a round that has ended."""

        alive = True

        def stop(self) -> None:
            """End them."""
            self.alive = False

    def timing(*args: Any, **kwargs: Any) -> Any:
        alive.append(idle.alive)
        return given_times(lambda _: 1.0)(*args, **kwargs)

    idle, alive = Idle(), list[bool]()
    monkeypatch.setattr(engine, "_warm", {("local", 2, 1, None): idle})
    monkeypatch.setattr(latency, "benchmark", timing)
    timed = write(tmp_path, 0, nets["small"], nets["large"], metrics={"latency_p50_ms": 1.0})
    time_trials(FAST, [timed], lambda *_: None)
    assert idle.alive
    time_trials(FAST, [timed, write(tmp_path, 1, nets["small"], nets["large"])], lambda *_: None)
    assert alive == [False]


def test_files_with_the_same_bytes_are_timed_once(
    tmp_path: Path, nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []

    def counting(models: Any, *args: Any, **kwargs: Any) -> Any:
        timed.append(len(models))
        return benchmark.benchmark(models, *args, **kwargs)

    monkeypatch.setattr(latency, "benchmark", counting)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(nets["small"].read_bytes())
    paths = [write(tmp_path, i, onnx, nets["large"]) for i, onnx in enumerate([nets["small"], copy])]
    time_trials(FAST, paths, lambda *_: None)
    assert timed == [2]  # the reference and one network
    assert read(paths[0])["metrics"] == read(paths[1])["metrics"]


def test_few_sessions_live_at_once(
    tmp_path: Path, nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "GROUP", 2)
    sizes: list[int] = []

    def counting(models: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(models))
        return benchmark.benchmark(models, *args, **kwargs)

    monkeypatch.setattr(latency, "benchmark", counting)
    monkeypatch.setattr(latency, "_distinct", lambda todo: ({str(path): [path] for path in todo}, []))
    paths = [write(tmp_path, i, nets["small"], nets["large"]) for i in range(5)]
    told: list[float] = []
    time_trials(FAST, paths, lambda fraction, _: told.append(fraction))
    assert sizes == [3, 3, 2]
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_what_is_timed_already_or_has_failed_is_left_alone(tmp_path: Path, nets: dict[str, Path]) -> None:
    small = nets["small"]
    failed = write(tmp_path, 0, small, small, state="failed", metrics={})
    ready = write(tmp_path, 1, small, small, metrics={"latency_p50_ms": 123.0})
    new = write(tmp_path, 2, small, small)
    before = failed.read_text(), ready.read_text()
    time_trials(FAST, [failed, ready, new], lambda *_: None)
    assert (failed.read_text(), ready.read_text()) == before
    assert read(new)["metrics"].keys() >= METRICS
    stamp = new.stat().st_mtime_ns
    time_trials(FAST, [failed, ready, new], lambda *_: None)
    assert new.stat().st_mtime_ns == stamp


@pytest.mark.skipif(benchmark.TARGETS and __import__("torch").cuda.is_available(), reason="a GPU is there")
def test_a_target_that_is_not_there_is_said_in_the_record(tmp_path: Path, nets: dict[str, Path]) -> None:
    path = write(tmp_path, 0, nets["small"], nets["small"])
    time_trials(Latency(target="cuda"), [path], lambda *_: None)
    assert read(path)["metrics"] == {"x": 1.0}
    assert "cuda" in read(path)["not_measured"]


def test_a_network_that_cannot_be_timed_does_not_spoil_the_others(
    tmp_path: Path, nets: dict[str, Path]
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    paths = [
        write(tmp_path, 0, nets["small"], nets["large"]),
        write(tmp_path, 1, tmp_path / "broken.onnx", nets["large"]),
        write(tmp_path, 2, tmp_path / "gone.onnx", nets["large"]),
    ]
    time_trials(FAST, paths, lambda *_: None)
    assert read(paths[0])["metrics"].keys() >= METRICS
    assert read(paths[1])["metrics"] == {"x": 1.0}
    assert "broken.onnx" in read(paths[1])["not_measured"]
    assert "not on this machine" in read(paths[2])["not_measured"]


def test_a_reference_of_the_whole_study_may_be_given(
    tmp_path: Path, nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of a search must not each have their own."""
    monkeypatch.setattr(latency, "benchmark", given_times(lambda file: 4.0 if file == nets["large"] else 1.0))
    path = write(tmp_path, 0, nets["small"], nets["small"])
    time_trials(FAST, [path], lambda *_: None, reference=nets["large"])
    assert read(path)["metrics"]["latency_speedup"] == 4.0
