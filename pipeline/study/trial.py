"""One trial of a study: its record, and how a worker comes to it."""

import functools
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tersor.errors import TersorError, Unavailable
from tersor.machine import THREAD_VARIABLES
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.metrics import StageMetrics
from tersor.pipeline.study.job import Job
from tersor.records import Record


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """What is known of a trial that has ended.

    trial: its number. key: what identifies it. settings: what makes it unlike the others.
    recipe: whole; None where the process died. state: `finished` or `failed`; error: why it failed.
    metrics: its numbers, see `trial_metrics`; latency and test split where they were measured.
    onnx, first: the ONNX files after the last stage and after the first one.
    reused: of a common stage, whether the cache had it. not_measured: why there is no latency.
    """

    WHAT: ClassVar[str] = "the trial's record"
    TODO: ClassVar[str] = "Remove it if it is there, and run the study again"

    trial: int
    key: str
    settings: Mapping[str, Any]
    seed: int
    recipe: Mapping[str, Any] | None = None
    state: str
    error: str | None
    metrics: Mapping[str, float]
    stages: tuple[StageMetrics, ...]
    onnx: str | None = None
    first: str | None = None
    reused: bool | None = None
    not_measured: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.state == "finished"

    @property
    def timed(self) -> bool:
        """Whether its latency is among its metrics."""
        return "latency_p50_ms" in self.metrics

    def to_json(self) -> dict[str, Any]:
        """As plain data; one that was timed says that nothing hindered it."""
        told = super().to_json()
        return {**told, "not_measured": self.not_measured} if self.timed else told


def finished(job: Job, **found: Any) -> Trial:
    """The record of a job that came to its end. found: its fields from `metrics` on."""
    return Trial(**_head(job), state="finished", error=None, **{"metrics": {}, "stages": (), **found})


def failed(job: Job, error: str) -> Trial:
    """The record of a job that failed."""
    return Trial(**_head(job), state="failed", error=error, metrics={}, stages=())


def _head(job: Job) -> dict[str, Any]:
    which = {"trial": job.number, "key": job.key, "settings": job.settings}
    return {**which, "seed": job.recipe["seed"], "recipe": job.recipe}


def run_trial(job: Job) -> Trial:
    """Run a trial; an error becomes part of its record and does not stop the study.

    Raises:
        Unavailable: the disk is full or cannot be written. All trials would fail of it, so none is to blame.
    """
    try:
        trial = _measured(job)
    except TersorError as error:
        if isinstance(error, Unavailable) and isinstance(error.__cause__, OSError):
            raise
        trial = failed(job, str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        trial = failed(job, f"{type(error).__name__}: {error} ({place})")
    if job.depth is None:
        trial.write(Path(job.record))
    return trial


def _measured(job: Job) -> Trial:
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(job.recipe["threads"])
    from tersor.pipeline.run import Which, run_stages, steps
    from tersor.pipeline.stages.environment import prepare_torch
    from tersor.pipeline.stages.store import Store
    from tersor.pipeline.study.heartbeat import heartbeat
    from tersor.progress import Reporter

    recipe = Recipe.model_validate(job.recipe)
    recipe = recipe.model_copy(update={"stages": recipe.stages[: job.depth]})
    prepare_torch(recipe)
    data = _data(recipe.data.model_dump_json(), recipe.seed)
    with heartbeat(job) as tell:
        reporter = Reporter(steps(recipe), quiet=True, listener=tell)
        # common stages are nobody's last
        ledger: Which = "last" if job.depth is None else "none"
        results = run_stages(recipe, data, Store(Path(job.runs)), reporter, ledger)
    stages = tuple(result.metrics for result in results)
    metrics = trial_metrics(stages)
    if job.test and job.depth is None:
        from tersor.pipeline.accuracy.evaluate import Images, evaluate
        from tersor.pipeline.training.learned_steps import simulated

        found = evaluate(simulated(results[-1].network()), Images.of(data.test, data.preprocessing))
        metrics["test_accuracy_fraction"] = found.accuracy_fraction
        metrics["test_top5_accuracy_fraction"] = found.top5_accuracy_fraction
        metrics["test_loss"] = found.loss
    return finished(
        job,
        metrics=metrics,
        stages=stages,
        onnx=str(results[-1].onnx),
        first=str(results[0].onnx),
        reused=results[-1].reused if job.depth is not None else None,
    )


def trial_metrics(stages: Sequence[StageMetrics]) -> dict[str, float]:
    """A trial's numbers: those of its last stage, and of its trainings together."""
    last = stages[-1]
    told = last.to_json().items()
    numbers = {k: v for k, v in told if isinstance(v, int | float) and not k.endswith("seconds")}
    trainings = [stage.history for stage in stages if stage.history]
    numbers["seconds"] = sum(stage.seconds for stage in stages)
    numbers["training_seconds"] = sum(h[-1]["seconds"] for h in trainings)
    if all("cpu_seconds" in h[-1] for h in trainings):  # stages cached before it was measured lack it
        numbers["training_cpu_seconds"] = sum(h[-1]["cpu_seconds"] for h in trainings)
    numbers["epochs"] = sum(len(h) for h in trainings)
    if trainings:
        numbers["train_accuracy_fraction"] = trainings[-1][-1]["train_accuracy_fraction"]
    numbers["sparsity_fraction"] = 1 - last.nonzero_weights / last.weights
    return numbers


@functools.lru_cache(2)
def _data(settings_json: str, seed: int) -> Any:
    """A worker loads a data set once, not once a trial."""
    from tersor.pipeline.data.load import load_data
    from tersor.pipeline.recipe.recipe import DataSettings

    return load_data(**DataSettings.model_validate_json(settings_json).model_dump(), seed=seed)
