"""Trials of a study as runs in MLflow. The only place that imports mlflow."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tersor.errors import BadInput, Unavailable
from tersor.files import writing
from tersor.pipeline.study.trial import Trial

REACH_SECONDS = 5.0
ENVIRONMENT = {
    # MLflow's own are 7 retries of 120 s each: a server that went away would hold a study for many minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set unless the user has set them otherwise; read when mlflow is imported."""
KEY, STATE = "tersor.trial", "tersor.state"
"""Tags of a run. The state is written last: a run without it was interrupted and does not count."""
LONGEST_VALUE, BATCH = 500, 100
"""Limits of MLflow's servers: characters of a parameter, entries of a request."""


def open_tracker(name: str, uri: str, runs: Path) -> Callable[[Trial], None]:
    """Open an experiment; returns what logs a trial's record as a run of it, unless it was logged before.

    A run has the trial's settings as parameters, metrics by epoch (`<stage>/<metric>`) and final ones,
    the record and the ONNX file as artifacts, and the ONNX as a model of MLflow's onnx flavor.

    Args:
        name: of the experiment.
        uri: an MLflow tracking URI, or `sqlite`: runs/mlflow.db, with artifacts in runs/mlflow-artifacts.
        runs: where `sqlite` puts its files.

    Raises:
        BadInput: `uri` is no URI.
        Unavailable: mlflow is not installed, the server does not answer (within seconds), or files cannot
            be written. The function returned raises it too, when the server goes away later.
    """
    location = None
    if uri == "sqlite":
        runs = runs.resolve()
        with writing(runs):
            runs.mkdir(parents=True, exist_ok=True)
        uri, location = f"sqlite:///{runs / 'mlflow.db'}", (runs / "mlflow-artifacts").as_uri()
    elif "://" not in uri and uri != "databricks":
        raise BadInput(
            "the tracking URI cannot be read",
            got=uri,
            wanted="`sqlite`, or a URI such as http://host:5000 or sqlite:////path/mlflow.db",
        )
    _knock(uri)
    mlflow = _import_mlflow()
    mlflow.set_tracking_uri(uri)
    with _Answering(uri), writing(runs):
        client = mlflow.MlflowClient(uri)
        experiment = _experiment(client, name, location)
        logged = {(run.data.tags.get(KEY), run.data.tags.get(STATE)) for run in _all_runs(client, experiment)}

    def track(trial: Trial) -> None:
        """Log a trial, once."""
        if (trial.key, trial.state) in logged:
            return
        with _Answering(uri), writing(runs):
            _log(client, experiment, trial)
        logged.add((trial.key, trial.state))

    return track


def _log(client: Any, experiment: str, trial: Trial) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    took = trial.metrics.get("seconds", 0.0)  # so that the UI shows the trial's time, not the logging's
    run = client.create_run(
        experiment,
        start_time=now - int(1000 * took if _is_number(took) else 0),
        tags={KEY: trial.key},
        run_name=f"trial-{trial.trial}",
    )
    run_id = run.info.run_id
    for batch in _batches(_parameters(trial)):
        client.log_batch(run_id, params=[Param(key, value) for key, value in batch])
    for points in _batches(_metrics(trial)):
        client.log_batch(run_id, metrics=[Metric(key, value, now, step) for key, value, step in points])
    client.log_dict(run_id, trial.to_json(), "record.json")
    onnx = Path(trial.onnx or "")
    if trial.finished and onnx.is_file():
        _log_model(run_id, onnx)
    if trial.error:
        client.set_tag(run_id, "mlflow.note.content", trial.error[:5000])  # the UI's description
    client.set_tag(run_id, STATE, trial.state)
    client.set_terminated(run_id, "FINISHED" if trial.finished else "FAILED")


def _parameters(trial: Trial) -> list[tuple[str, str]]:
    """Seed and settings; the whole recipe, where the trial has it, stage by stage."""
    found: dict[str, Any] = {}
    recipe = trial.recipe or {}
    for stage in recipe.get("stages", []):
        found |= {f"{stage['name']}.{key}": value for key, value in stage.items() if key != "name"}
    found |= {key: value for key, value in recipe.items() if key not in ("stages", "name")}
    found |= {**trial.settings, "seed": trial.seed}
    return [(key, str(value)[:LONGEST_VALUE]) for key, value in found.items()]


def _metrics(trial: Trial) -> list[tuple[str, float, int]]:
    """(name, value, step): final metrics at step 0, the epochs' ones at their epoch, from 1."""
    found = [(key, float(value), 0) for key, value in trial.metrics.items() if _is_number(value)]
    for stage in trial.stages:
        for index, epoch in enumerate(stage.history):
            found += [
                (f"{stage.name}/{key}", float(value), index + 1)
                for key, value in epoch.items()
                if _is_number(value) and key != "epoch"
            ]
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _log_model(run_id: str, path: Path) -> None:
    """Log a file of ours as an MLflow model, without letting MLflow guess what it needs (half a minute)."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = onnx.load(path)

    def schema(entries: Sequence[Any]) -> Any:
        """Names and shapes of a graph's inputs or outputs, -1 where free."""
        shapes = {e.name: [d.dim_value or -1 for d in e.type.tensor_type.shape.dim] for e in entries}
        return Schema([TensorSpec(np.dtype(np.float32), shape, name) for name, shape in shapes.items()])

    with mlflow.start_run(run_id):
        mlflow.onnx.log_model(
            model,
            name="model",
            signature=ModelSignature(schema(model.graph.input), schema(model.graph.output)),
            pip_requirements=["onnxruntime", "numpy"],
            save_as_external_data=False,
        )


def _experiment(client: Any, name: str, location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=location)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _all_runs(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _batches(entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), BATCH):
        yield entries[start : start + BATCH]


class _Answering:
    """Turns what MLflow and its database raise into an error for people."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        if isinstance(error, MlflowException | SQLAlchemyError):
            raise _unreachable(self.uri, str(error)) from error


def _knock(uri: str) -> None:
    """See in a few seconds whether anything listens where a server should be."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise _unreachable(uri, str(error)) from error


def _unreachable(uri: str, words: str) -> Unavailable:
    # credentials may stand in a URI: host and port are enough to know which one is meant
    shown = urlsplit(uri)._replace(netloc=urlsplit(uri).netloc.rpartition("@")[2]).geturl()
    return Unavailable(
        "the tracking server does not answer",
        got=" ".join(words.split())[:300],
        where=shown,
        todo="Start it, or use tracking: sqlite; finished trials are kept and are logged by the next run",
    )


def _import_mlflow() -> Any:
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        import mlflow
    except ImportError as error:
        raise Unavailable(
            "the study is tracked in MLflow, which is not installed",
            todo="pip install 'tersor[track]', or leave `tracking` out",
        ) from error
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return mlflow
