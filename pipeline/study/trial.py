"""One trial of a study, as a worker runs it: plain data in, plain data out."""

import functools
import os
import traceback
from pathlib import Path
from typing import Any

from tersor.errors import TersorError, Unavailable
from tersor.files import write_json
from tersor.machine import THREAD_VARIABLES
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.study.job import Job


def run_trial(job: Job) -> dict[str, Any]:
    """Run a trial; an error becomes part of its record and does not stop the study.

    Raises:
        Unavailable: the disk is full or cannot be written. All trials would fail of it, so none is to blame.
    """
    head = {
        "trial": job.number,
        "key": job.key,
        "settings": job.settings,
        "seed": job.recipe["seed"],
        "recipe": job.recipe,
    }
    try:
        record = {**head, "state": "finished", "error": None, **_measure(job)}
    except TersorError as error:
        if isinstance(error, Unavailable) and isinstance(error.__cause__, OSError):
            raise
        record = {**head, "state": "failed", "error": str(error), "metrics": {}, "stages": []}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        record = {**head, "state": "failed", "error": told, "metrics": {}, "stages": []}
    if job.depth is None:
        write_json(Path(job.record), record)
    return record


def _measure(job: Job) -> dict[str, Any]:
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(job.recipe["threads"])
    from tersor.pipeline.run import run_stages, steps
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
        results = run_stages(recipe, data, Store(Path(job.runs)), reporter)
    stages = [result.metrics.to_json() for result in results]
    metrics = trial_metrics(stages)
    if job.test and job.depth is None:
        from tersor.pipeline.accuracy.evaluate import Images, evaluate
        from tersor.pipeline.training.learned_steps import simulated

        found = evaluate(simulated(results[-1].network()), Images.of(data.test, data.preprocessing))
        metrics["test_accuracy_fraction"] = found.accuracy_fraction
        metrics["test_top5_accuracy_fraction"] = found.top5_accuracy_fraction
        metrics["test_loss"] = found.loss
    return {
        "metrics": metrics,
        "stages": stages,
        "onnx": str(results[-1].onnx),
        "first": str(results[0].onnx),
        **({"reused": results[-1].reused} if job.depth is not None else {}),
    }


def trial_metrics(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A trial's numbers: those of its last stage, and of its trainings together."""
    last = stages[-1]
    numbers = {k: v for k, v in last.items() if isinstance(v, int | float) and not k.endswith("seconds")}
    trainings = [s["details"]["history"] for s in stages if s["details"].get("history")]
    numbers["seconds"] = sum(s["seconds"] for s in stages)
    numbers["training_seconds"] = sum(h[-1]["seconds"] for h in trainings)
    if all("cpu_seconds" in h[-1] for h in trainings):  # stages cached before it was measured lack it
        numbers["training_cpu_seconds"] = sum(h[-1]["cpu_seconds"] for h in trainings)
    numbers["epochs"] = sum(len(h) for h in trainings)
    if trainings:
        numbers["train_accuracy_fraction"] = trainings[-1][-1]["train_accuracy_fraction"]
    numbers["sparsity_fraction"] = 1 - last["nonzero_weights"] / last["weights"]
    return numbers


@functools.lru_cache(2)
def _data(settings_json: str, seed: int) -> Any:
    """A worker loads a data set once, not once a trial."""
    from tersor.pipeline.data.load import load_data
    from tersor.pipeline.recipe.recipe import DataSettings

    return load_data(**DataSettings.model_validate_json(settings_json).model_dump(), seed=seed)
