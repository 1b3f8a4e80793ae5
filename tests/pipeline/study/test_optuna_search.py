"""Searches: seeded, resumable, told the mean over seeds; front and optimum found on cheap stand-ins."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trials import trial

from tersor.errors import BadInput
from tersor.pipeline.study.file import Point, StudyFile
from tersor.pipeline.study.optuna_search import rounds
from tersor.pipeline.study.trial import Trial

RECIPE = Path(__file__).parents[3] / "recipes" / "digits.yaml"
RATE, WIDTH = "train.learning_rate", "structure.sparsity"


def study(**changes: Any) -> StudyFile:
    content = {
        "name": "s",
        "recipe": str(RECIPE),
        "axes": {RATE: {"low": 0.001, "high": 1.0, "log": True}, WIDTH: {"low": 0.1, "high": 0.9}},
        "workers": 3,
        "search": {"kind": "tpe", "trials": 30},
    }
    return StudyFile.model_validate(content | changes)


def accuracy(point: Point) -> dict[str, float]:
    """Best, 1.0, at learning rate 0.03 and sparsity 0.5."""
    rate, width = point.settings[RATE], point.settings[WIDTH]
    value = 1 - (np.log10(rate / 0.03) / 3) ** 2 - (width - 0.5) ** 2
    return {"validation_accuracy_fraction": float(value), "bytes": 1e4 * (1 - width)}


def record(point: Point, metrics: dict[str, float] | None, **changes: Any) -> Trial:
    state = "failed" if metrics is None else "finished"
    head = {"trial": point.number, "settings": point.settings, "seed": point.seed, "state": state}
    return trial(**head, metrics=metrics or {}, **changes)


def run(asked: StudyFile, measure: Any = accuracy, most: int | None = None) -> list[Trial]:
    records: list[Trial] = []
    for points in itertools.islice(rounds(asked, None, records), most):
        records += [record(point, measure(point)) for point in points]
    return records


def test_the_same_study_asks_the_same_points() -> None:
    assert run(study()) == run(study())


def test_another_seed_asks_other_points() -> None:
    assert [r.settings for r in run(study(seeds=[1]))] != [r.settings for r in run(study(seeds=[2]))]


def test_a_restarted_search_asks_what_it_had_asked_and_goes_on() -> None:
    assert run(study(), most=4) == run(study())[:12]


def test_what_is_told_decides_what_is_asked() -> None:
    def upside_down(point: Point) -> dict[str, float]:
        return {k: -v for k, v in accuracy(point).items()}

    assert [r.settings for r in run(study())] != [r.settings for r in run(study(), upside_down)]


def test_tpe_comes_close_to_the_optimum() -> None:
    best = max(r.metrics["validation_accuracy_fraction"] for r in run(study()))
    assert best > 0.995


def test_a_round_has_a_point_for_each_worker_and_seeds_are_innermost() -> None:
    points = next(rounds(study(seeds=[7, 8]), None, []))
    assert [p.number for p in points] == [0, 1, 2, 3, 4, 5]
    assert [p.seed for p in points] == [7, 8, 7, 8, 7, 8]
    assert points[0].settings == points[1].settings != points[2].settings


def test_ranges_and_lists_give_values_that_a_recipe_takes() -> None:
    axes = {
        RATE: {"low": 0.001, "high": 1.0, "log": True},
        "train.batch_size": {"low": 16, "high": 64, "integer": True, "log": True},
        "train.optimizer": ["sgd", "adam"],
        "both": {"settings": ["sharing.bits", "sharing.values"], "values": [[3, 8], [4, 16]]},
    }
    for r in run(study(axes=axes), lambda _: {"validation_accuracy_fraction": 0.5}):
        settings = r.settings
        assert 0.001 <= settings[RATE] <= 1
        assert isinstance(settings["train.batch_size"], int)
        assert 16 <= settings["train.batch_size"] <= 64
        assert settings["train.optimizer"] in ("sgd", "adam")
        assert (settings["sharing.bits"], settings["sharing.values"]) in ((3, 8), (4, 16))


def test_no_setting_is_run_twice() -> None:
    asked = study(axes={WIDTH: [0.1, 0.2, 0.3]})
    records = run(asked, lambda _: {"validation_accuracy_fraction": 0.5})
    assert sorted(r.settings[WIDTH] for r in records) == [0.1, 0.2, 0.3]
    assert [r.trial for r in records] == [0, 1, 2]


def test_the_objective_is_the_mean_over_seeds() -> None:
    """Two seeds that differ by any amount around the same mean lead to the same search."""

    def noisy(point: Point) -> dict[str, float]:
        offset = 0.25 if point.seed else -0.25
        return {k: v + offset for k, v in accuracy(point).items()}

    seeds = study(seeds=[0, 1], search={"kind": "tpe", "trials": 24})
    assert [r.settings for r in run(seeds, noisy)] == [r.settings for r in run(seeds)]


def test_failed_trials_do_not_stop_a_search() -> None:
    records = run(study(), lambda point: accuracy(point) if point.number % 3 else None)
    assert len(records) == 30
    assert max(r.metrics.get("validation_accuracy_fraction", 0) for r in records) > 0.98


def test_a_loss_that_is_no_number_counts_as_failed() -> None:
    records = run(
        study(), lambda p: {"validation_accuracy_fraction": float("nan")} if p.number == 1 else accuracy(p)
    )
    assert len(records) == 30


def test_nsga2_finds_the_front() -> None:
    """Bytes and accuracy both are best on learning rate 0.03: the front is a line in one setting."""
    objectives = [{"metric": "validation_accuracy_fraction"}, {"metric": "bytes", "direction": "minimize"}]
    search = {"kind": "nsga2", "trials": 200, "objectives": objectives}
    records = run(study(search=search))
    first, last = records[:40], records[-40:]

    def distance(chosen: list[Trial]) -> float:
        return float(np.median([abs(np.log10(r.settings[RATE] / 0.03)) for r in chosen]))

    assert distance(last) < 0.5 * distance(first)
    widths = [r.settings[WIDTH] for r in last]
    assert max(widths) - min(widths) > 0.2  # a front, not a point
    assert records == run(study(search=search))


@pytest.mark.parametrize(("kind", "trials"), [("tpe", 80), ("nsga2", 200)])
def test_constraints_are_looked_at(kind: str, trials: int) -> None:
    """The optimum has 5,000 bytes; with at most 3,000 allowed the search must turn elsewhere."""

    def kept(**changes: Any) -> float:
        records = run(study(search={"kind": kind, "trials": trials}, workers=5, **changes))
        return float(np.mean([r.metrics["bytes"] <= 3000 for r in records[len(records) // 2 :]]))

    assert kept(constraints=[{"metric": "bytes", "max": 3000}]) > 0.4 > 0.25 > kept()


def test_a_missing_metric_is_told_with_those_there_are() -> None:
    asked = study(search={"kind": "tpe", "trials": 4, "objectives": [{"metric": "acuracy"}]})
    with pytest.raises(BadInput, match=r"'acuracy'.*one of bytes, validation_accuracy_fraction"):
        run(asked)


def test_a_missing_latency_says_why() -> None:
    def unmeasured(point: Point) -> dict[str, float]:
        return accuracy(point)

    asked = study(search={"kind": "tpe", "trials": 4, "objectives": [{"metric": "latency_p50_ms"}]})
    records: list[Trial] = []
    with pytest.raises(BadInput, match="no GPU here"):  # noqa: PT012 - the error comes from the second round
        for points in rounds(asked, None, records):
            records += [record(p, unmeasured(p), not_measured="no GPU here") for p in points]


def test_an_axis_that_names_no_setting_is_told() -> None:
    with pytest.raises(BadInput, match="Did you mean 'structure'"):
        run(study(axes={"structre.sparsity": {"low": 0.1, "high": 0.9}}))
