"""`benchmark --scenario` and `--peer`: what does not go together is told, a busy machine is refused."""

from pathlib import Path
from typing import Any

import pytest
from nets import make
from timings import BUSY, QUIET

from tersor.errors import BadInput, Unavailable
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import scenarios
from tersor.export.timing.clock import Signs
from tersor.export.timing.scenarios import Server, SingleStream
from tersor.pipeline.cli.scenario import Served
from tersor.pipeline.lessons import scenarios_run
from tersor.pipeline.lessons.scenarios_run import TRIES, run_peers, run_scenarios

STREAM = SingleStream("tersor", 1.0, 1.1, None, 1.0, 1.2, 900.0, 100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_onnx(make(), path)
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Signs]:
    """What each run of a scenario sees of the machine, in turn; nothing is timed."""
    signs: list[Signs] = []

    class Watch:
        """Tells what it is to."""

        def __init__(self, threads: int) -> None:
            self.threads = threads

        def signs(self) -> Signs:
            """The next."""
            return signs.pop(0)

    monkeypatch.setattr(scenarios_run, "Watch", Watch)
    monkeypatch.setattr(scenarios, "single_stream", lambda *_, **__: STREAM)
    monkeypatch.setattr(Signs, "busy", lambda self, **_: None if self is QUIET else "others ran")
    return signs


def test_a_scenario_on_a_busy_machine_is_run_again_and_then_refused(seen: list[Signs], model: Path) -> None:
    seen[:] = [BUSY, QUIET]
    (row,) = run_scenarios([model], "single-stream")
    assert (row.result, row.busy, seen) == (STREAM, None, [])
    seen[:] = [BUSY] * TRIES
    with pytest.raises(Unavailable, match=r"the machine was busy.*Got others ran.*--force"):
        run_scenarios([model], "single-stream")


def test_what_is_kept_of_a_busy_machine_is_marked(seen: list[Signs], model: Path) -> None:
    seen[:] = [BUSY]
    (row,) = run_scenarios([model], "single-stream", force=True)
    assert row.plain()["busy"] == "others ran"


def test_a_bound_that_no_file_meets_is_told_with_what_a_query_takes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Server("tersor", 2.0, None, None, None, None, None, None, 3.5, 662, 4)
    monkeypatch.setattr(scenarios, "server", lambda *_, **__: none)
    with pytest.raises(BadInput, match=r"no rate meets the bound.*takes 3.5 ms.*at most 2 ms"):
        run_scenarios([model], "server", p99_ms=2.0, force=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scenario": "multistream"}, "no scenario called 'multistream'"),
        ({"scenario": "server"}, "needs a bound on p99"),
        ({"scenario": "offline", "p99_ms": 3.0}, "belong to the server"),
        ({"scenario": "single-stream", "batches": [8]}, "one sample at a time"),
        ({"scenario": "offline", "engine": "mine"}, "no engine called 'mine'"),
        ({"scenario": "offline", "peers": ["tvm"]}, "no peer called 'tvm'"),
        ({"scenario": "offline", "peers": ["openvino"], "target": "cuda"}, "on the CPU only"),
        ({"scenario": "offline", "peers": ["torch"]}, "an ONNX file does not hold"),
    ],
)
def test_settings_that_do_not_go_together_are_told(model: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        run_scenarios([model], **settings)


def test_offline_takes_the_batch_sizes_that_the_file_takes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def offline(calls: dict[int, Any], **_: Any) -> None:
        asked.append(list(calls))

    monkeypatch.setattr(scenarios, "offline", offline)
    run_scenarios([model], "offline", force=True)
    run_scenarios([model], "offline", batches=[4], force=True)
    assert asked == [[1, 8, 32, 64], [4]]


def test_options_of_a_scenario_without_one_are_told() -> None:
    assert not Served(None, None, None, None, []).asked
    assert Served(None, None, None, None, ["openvino"]).asked
    with pytest.raises(BadInput, match="--engine belongs to a scenario"):
        _ = Served(None, None, "loadgen", None, []).asked


def test_a_peer_that_needs_a_network_says_so_of_a_file(model: Path) -> None:
    with pytest.raises(BadInput, match="peer torch needs the network"):
        run_peers([model], ["torch"])
