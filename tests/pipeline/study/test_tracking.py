"""MLflow: what a study's trials look like when read back, and servers that are not there."""

import contextlib
import hashlib
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nets import make
from trials import stage, trial

from tersor.errors import BadInput, Unavailable
from tersor.export.forms.to_onnx import export_onnx
from tersor.pipeline.study import tracking
from tersor.pipeline.study.tracking import open_tracker
from tersor.pipeline.study.trial import Trial

pytest.importorskip("mlflow", reason="mlflow is not installed")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(make(), path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the whole file: making one takes seconds."""
    return tmp_path_factory.mktemp("runs")


def record(onnx: Path, **changes: Any) -> Trial:
    history = [
        {"epoch": 1, "train_loss": 2.0, "seconds": 0.1},
        {"epoch": 2, "train_loss": 1.5, "seconds": 0.2},
    ]
    plain = trial(
        trial=3,
        key="abc",
        settings={"sparsity.amount": 0.5, "train.optimizer": "adam"},
        seed=7,
        onnx=str(onnx),
        recipe={"name": "x", "model": "mnist", "stages": [{"name": "train", "epochs": 2}]},
        metrics={"validation_accuracy_fraction": 0.9, "packed_bytes": 1234, "seconds": float("nan")},
        stages=(stage("train", details={"history": history}), stage("prune")),
    )
    return replace(plain, **changes)


def logged(runs: Path, name: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    found = client.get_experiment_by_name(name)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def history(runs: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def test_a_trial_is_a_run_with_parameters_metrics_and_epochs(runs: Path, onnx: Path) -> None:
    open_tracker("plain", "sqlite", runs)(record(onnx))
    (run,) = logged(runs, "plain")
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "sparsity.amount": "0.5",
        "train.optimizer": "adam",
        "seed": "7",
        "model": "mnist",
        "train.epochs": "2",
    }
    assert run.data.metrics["validation_accuracy_fraction"] == 0.9
    assert run.data.metrics["packed_bytes"] == 1234
    assert history(runs, run, "train/train_loss") == [(1, 2.0), (2, 1.5)]
    assert run.data.tags["tersor.trial"] == "abc"


def test_the_onnx_is_a_model_of_mlflow_byte_for_byte(runs: Path, onnx: Path) -> None:
    import mlflow
    import numpy as np

    open_tracker("model", "sqlite", runs)(record(onnx))
    (run,) = logged(runs, "model")
    (output,) = run.outputs.model_outputs
    uri = f"models:/{output.model_id}"
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    digest = hashlib.sha256(onnx.read_bytes()).hexdigest()
    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == digest
    answer = mlflow.pyfunc.load_model(uri).predict(np.zeros((2, 1, 8, 8), np.float32))
    assert next(iter(answer.values())).shape == (2, 10)


def test_a_run_took_as_long_as_its_trial(runs: Path, onnx: Path) -> None:
    track, began = open_tracker("took", "sqlite", runs), time.time()
    track(record(onnx, metrics={"seconds": 120.0}))
    logging_ms = 1000 * (time.time() - began)
    info = logged(runs, "took")[0].info
    assert 120_000 <= info.end_time - info.start_time <= 120_000 + logging_ms + 1


def test_the_record_is_an_artifact_beside_the_runs(runs: Path, onnx: Path) -> None:
    open_tracker("artifact", "sqlite", runs)(record(onnx))
    (run,) = logged(runs, "artifact")
    assert (runs / "mlflow-artifacts" / run.info.run_id / "artifacts" / "record.json").is_file()


def test_a_trial_is_logged_once(runs: Path, onnx: Path) -> None:
    for _ in range(2):
        track = open_tracker("once", "sqlite", runs)
        track(record(onnx))
        track(record(onnx))
    assert len(logged(runs, "once")) == 1


def test_a_failed_trial_is_failed_with_its_error_and_logged_again_when_it_finishes(
    runs: Path, onnx: Path
) -> None:
    track = open_tracker("failed", "sqlite", runs)
    track(record(onnx, state="failed", error="the loss is no number", metrics={}, stages=()))
    (run,) = logged(runs, "failed")
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"] == "the loss is no number"
    track(record(onnx))
    assert sorted(run.info.status for run in logged(runs, "failed")) == ["FAILED", "FINISHED"]


def test_more_settings_and_epochs_than_a_request_holds(runs: Path, onnx: Path) -> None:
    many = [{"epoch": i, "train_loss": float(i)} for i in range(1, 251)]
    settings = {f"a.s{i}": "x" * 1000 for i in range(120)}
    track = open_tracker("many", "sqlite", runs)
    track(record(onnx, settings=settings, stages=(stage("train", details={"history": many}),)))
    (run,) = logged(runs, "many")
    assert len([key for key in run.data.params if key.startswith("a.s")]) == 120
    assert len(history(runs, run, "train/train_loss")) == 250


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://someone:secret@127.0.0.1:{free.getsockname()[1]}"
    # the system's own words: nobody has tried again, as MLflow would for minutes
    words = r"tracking server does not answer\. Got \[Errno \d+\] .*tracking: sqlite"
    with pytest.raises(Unavailable, match=words) as caught:
        open_tracker("x", uri, tmp_path)
    assert caught.value.exit_code == 4
    assert "secret" not in str(caught.value)


def test_a_server_that_never_answers_is_told_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(Unavailable, match=r"does not answer.*Max retries exceeded.*ReadTimeoutError"):
            open_tracker("x", f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        silent.setblocking(False)
        tried = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                tried += 1
    retries, seconds = (
        int(tracking.ENVIRONMENT[f"MLFLOW_HTTP_REQUEST_{k}"]) for k in ("MAX_RETRIES", "TIMEOUT")
    )
    assert tried <= 1 + 1 + retries  # knocked once, then asked
    assert (retries + 1) * seconds <= 60  # what it takes without this test's shorter one


def test_what_is_no_uri_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="tracking URI cannot be read.*Got mlruns"):
        open_tracker("x", "mlruns", tmp_path)


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="a file stands where a folder should be"):
        open_tracker("x", f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path)


def test_without_mlflow_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(Unavailable, match=r"pip install 'tersor\[track\]'"):
        open_tracker("x", "sqlite", tmp_path)


def test_a_users_own_limits_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    tracking._import_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
