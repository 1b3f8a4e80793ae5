"""Made-up results of studies, as pipeline.study writes them; the same each time."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

from tersor.pipeline.study.file import Limit, Top
from tersor.pipeline.study.results import summarize, top
from tersor.pipeline.study.trial import Trial

EPOCHS = 20


def study(seeds: Sequence[int] = (0,)) -> dict[str, Any]:
    """18 settings, packed size limited, every tenth trial failed."""
    axes = {
        "train.learning_rate": [0.01, 0.001, 0.1],
        "model": ["mnist", "lenet"],
        "sparsity.fraction": [0.5, 0.7, 0.9],
    }
    return _content("grid", axes, seeds, [Limit(metric="packed_bytes", max=60_000)])


def large() -> dict[str, Any]:
    """1,000 trials of one seed, with learning curves."""
    axes = {
        "train.learning_rate": [round(1e-4 * 1.6**i, 6) for i in range(20)],
        "sparsity.fraction": [0.5, 0.6, 0.7, 0.8, 0.9],
        "model": ["mnist", "lenet", "resnet20", "vgg", "wide"],
        "sharing.bits": [3, 5],
    }
    return _content("large", axes, [0], [])


def _content(
    name: str, axes: dict[str, list[Any]], seeds: Sequence[int], limits: list[Limit]
) -> dict[str, Any]:
    rng, records = random.Random(3), list[dict[str, Any]]()
    for values in itertools.product(*axes.values()):
        for seed in seeds:
            records.append(_record(len(records), dict(zip(axes, values)), seed, rng))
    summary = summarize([Trial.of({**record, "stages": []}) for record in records])
    tables = [
        Top(metric="validation_accuracy_fraction"),
        Top(metric="training_seconds", direction="minimize"),
    ]
    return {
        "name": name,
        "axes": list(axes),
        "trials": records,
        "summary": summary,
        "top": [{**t.model_dump(), "rows": top(summary, t, limits)} for t in tables],
        "constraints": [limit.model_dump() for limit in limits],
    }


def _record(number: int, settings: dict[str, Any], seed: int, rng: random.Random) -> dict[str, Any]:
    head = {"trial": number, "key": f"k{number}", "settings": settings, "seed": seed}
    if number % 10 == 7:
        error = f"training diverged: the loss is no longer a number\n  where: epoch {number}"
        return {**head, "state": "failed", "error": error, "metrics": {}, "stages": []}
    kept = 1 - settings["sparsity.fraction"]
    accuracy = 0.9 - 0.02 * kept**-0.5 + rng.gauss(0, 0.004)
    history = [
        {
            "epoch": e + 1,
            "train_loss": 0.2 + 2 * math.exp(-e / 4),
            "validation_loss": 0.3 + 2 * math.exp(-e / 5),
            "train_accuracy_fraction": 0.9,
            "validation_accuracy_fraction": accuracy,
            "seconds": 2.0 * e,
        }
        for e in range(EPOCHS)
    ]
    metrics = {
        "validation_accuracy_fraction": accuracy,
        "validation_loss": 0.3 + rng.gauss(0, 0.02),
        "test_accuracy_fraction": accuracy - 0.01,
        "weights": 120_000,
        "macs": 1_000_000 + 1000 * number,
        "packed_bytes": int(150_000 * kept * rng.uniform(0.9, 1.1)),
        "training_seconds": rng.uniform(60, 300),
        "seconds": 400.0,
        "epochs": EPOCHS,
        "sparsity_fraction": 1 - kept,
    }
    stages = [{"name": "train", "details": {"history": history}}]
    return {**head, "state": "finished", "error": None, "metrics": metrics, "stages": stages}
