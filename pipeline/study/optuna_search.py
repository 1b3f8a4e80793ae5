"""Optuna chooses the points of a study: rounds that are asked, run, and told back.

Everything is decided by the study file and the records: the sampler is seeded, so a search that was
interrupted asks for the same points again, finds their records, and goes on from there.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.errors import BadInput, Unavailable
from tersor.pipeline.study import engine
from tersor.pipeline.study.file import Axis, Limit, Point, Range, StudyFile, make_points
from tersor.pipeline.study.trial import Trial

FEWEST_GENERATIONS, LARGEST_POPULATION = 5, 50
"""NSGA-II's population: a fifth of the trials, at most Optuna's own 50; it gets better by generations."""


def rounds(study: StudyFile, data: Path | None, records: list[Trial]) -> Iterator[list[Point]]:
    """Yield the points of each round; the caller runs them and appends their records before the next.

    A round of TPE has as many settings as there are workers (so the points depend on `workers`), one of
    NSGA-II a whole population. Every setting is run with all seeds and judged by the mean over them; if a
    seed fails, or gives no number, the setting is told as failed. Settings that were asked before are not
    yielded again; they still count as trials.

    Args:
        study: its `search.trials` settings are asked for, `search.objectives` are looked at.
        data: what DATA= says.
        records: of all points yielded so far, in any order; found by their number.

    Raises:
        BadInput: an axis names no setting, or a record lacks the metric of an objective or constraint.
        Unavailable: Optuna is not installed.
    """
    optuna = _import_optuna()
    size = _round_size(study)
    directions = [objective.direction for objective in study.search.objectives]
    search = optuna.create_study(directions=directions, sampler=_sampler(study, size))
    told: dict[str, list[Trial]] = {}
    numbered = 0
    for first in range(0, study.search.trials, size):
        asked, points = [], list[Point]()
        for _ in range(min(size, study.search.trials - first)):
            trial = search.ask()
            settings = _ask(trial, study)
            asked.append((trial, _key(settings)))
            if _key(settings) not in told:
                told[_key(settings)] = []
                points += make_points(study, data, settings, numbered + len(points))
        numbered += len(points)
        if points:
            yield points
            by_number = {record.trial: record for record in records}
            for point in points:
                told[_key(point.settings)].append(by_number[point.number])
        for trial, key in asked:
            _tell(search, trial, study, told[key])


def _sampler(study: StudyFile, size: int) -> Any:
    optuna = _import_optuna()
    seed = (study.seeds or [0])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.search.kind == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
        # constant_liar: points of one round keep away from each other
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _round_size(study: StudyFile) -> int:
    if study.search.kind == "nsga2":
        return max(2, min(LARGEST_POPULATION, study.search.trials // FEWEST_GENERATIONS))
    return study.workers or max(1, engine.default_workers() // study.threads)


def _ask(trial: Any, study: StudyFile) -> dict[str, Any]:
    """Settings as Optuna proposes them."""
    settings: dict[str, Any] = {}
    for name, axis in study.axes.items():
        if isinstance(axis, Range):
            suggest = trial.suggest_int if axis.integer else trial.suggest_float
            number = int if axis.integer else float
            settings[name] = suggest(name, number(axis.low), number(axis.high), log=axis.log)
            continue
        values = axis.values if isinstance(axis, Axis) else axis
        chosen = values[_choice(trial, name, values)]
        settings |= dict(zip(axis.settings, chosen)) if isinstance(axis, Axis) else {name: chosen}
    return settings


def _choice(trial: Any, name: str, values: Sequence[Any]) -> int:
    """The index of a value of a list; of rising numbers Optuna is told that neighbours are alike."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and all(a < b for a, b in zip(values, values[1:])):
        return int(trial.suggest_int(name, 0, len(values) - 1))
    return int(trial.suggest_categorical(name, list(range(len(values)))))


def _tell(search: Any, trial: Any, study: StudyFile, records: Sequence[Trial]) -> None:
    """Tell the mean over the seeds of each objective, and by how much constraints are broken."""
    failed = _import_optuna().trial.TrialState.FAIL
    if not all(record.finished for record in records):
        search.tell(trial, state=failed)
        return
    limited = [limit.metric for limit in study.constraints]
    means = {
        metric: _mean(metric, records)
        for metric in {*limited, *(objective.metric for objective in study.search.objectives)}
    }
    if not all(math.isfinite(value) for value in means.values()):
        search.tell(trial, state=failed)
        return
    for index, limit in enumerate(study.constraints):
        trial.set_constraint(f"{index}", _excess(limit, means))
    search.tell(trial, [means[objective.metric] for objective in study.search.objectives])


def _excess(limit: Limit, means: Mapping[str, float]) -> float:
    """By how much a constraint is broken; 0 or less: it is kept."""
    value = means[limit.metric]
    over = [value - limit.max] if limit.max is not None else []
    under = [limit.min - value] if limit.min is not None else []
    return max([*over, *under], default=0.0)


def _mean(metric: str, records: Sequence[Trial]) -> float:
    for record in records:
        if metric not in record.metrics:
            raise BadInput(
                f"a search looks at the metric {metric!r}, which trial {record.trial} does not have",
                got=record.not_measured,
                wanted=f"one of {', '.join(sorted(record.metrics))}",
                where="search.objectives or constraints of the study",
                todo="Set `latency:` in the study to have it measured" if "latency" in metric else None,
            )
    return float(np.mean([record.metrics[metric] for record in records]))


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise Unavailable(
            "the study searches with Optuna, which is not installed",
            todo="pip install 'tersor[compress]', or use search: {kind: grid}",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
