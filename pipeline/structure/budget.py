"""The search of widths for the stage `structure`: budget, and the real network's time, in fp32 or int8."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tersor.errors import BadInput
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.layer_timing import LayerShape
from tersor.export.timing.processor_time import processor_ms
from tersor.export.timing.providers import open_session
from tersor.models.network import Network
from tersor.pipeline.recipe.structure import Structure
from tersor.pipeline.structure.coupling import Coupling
from tersor.pipeline.structure.elimination import Table, minimise, total
from tersor.pipeline.structure.forecast import Forecast, Precision, onnx_of
from tersor.pipeline.structure.narrowing import narrowed
from tersor.pipeline.structure.search import Problem, pose, solve
from tersor.pipeline.structure.staircase import SAME_STEP, Setting, layer_shapes, with_widths
from tersor.pipeline.structure.widths import Pruning, Space
from tersor.progress import Tell

AIM_FRACTION = 0.98
CLOSE_FRACTION = 0.95
"""A network that uses at least this much of the time allowed is not widened further."""
SECONDS_PER_MODEL = 1.0
NEAR_SETS = 16
"""`align: auto` looks this many channels further than planned: a block of ONNX Runtime's convolutions."""
WITNESS_SETS = 8
"""And times so many more, to see whether a wider one beats the last of those: int8 has steps of 4 or 8."""


@dataclass(frozen=True)
class Measuring:
    """What counting by measurement needs.

    baseline: what speed-ups and fractions refer to.
    profiles: folder of measured layer latencies.
    tell: told the fraction done and a few words.
    """

    baseline: Network
    profiles: Path
    tell: Tell


Counted = tuple[list[int], dict[str, Any]]
"""How many sets of each space go, and what there is to tell of how they were chosen."""


def by_ratio(pruning: Pruning, _measuring: Measuring) -> Counted:
    """As many as the settings' sparsity says."""
    return pruning.removals(), {}


def within_budget(pruning: Pruning, measuring: Measuring) -> Counted:
    """How many sets of each space go so that the network is within `settings.search`.

    Returns:
        Sets to remove of each space; and `search`: the budget, and for a budget of time every round's
        predicted and measured latency in milliseconds.

    Raises:
        BadInput: no widths are within the budget.
    """
    search, tell = pruning.settings.search, measuring.tell
    assert search is not None
    if not search.timed:
        return _by_count(pruning, measuring.baseline)
    setting = Setting(search.threads, search.batch, pruning.settings.precision == "int8")
    forecast = Forecast(
        pruning.network,
        measuring.profiles,
        setting,
        lambda done: tell(0.6 * done, "timing layers at all widths"),
    )
    problem = with_rest(pose(pruning, forecast.prices), forecast)

    def build(choice: Sequence[int]) -> tuple[Network, list[int]]:
        """The network at these widths, and how many sets go of each space."""
        counts = [int(k[-1] - k[at]) for k, at in zip(problem.kept, choice, strict=True)]
        tensors = narrowed(pruning.module, pruning.coupling, pruning.choose(counts))
        return pruning.network.with_tensors(tensors, forms={}), counts

    clock = Clock(measuring.baseline, search.threads, search.batch, pruning.settings.precision)
    fastest = minimise([len(sizes) for sizes in problem.kept], problem.costs)
    middle = [(low + high) // 2 for low, high in zip(fastest, problem.full(), strict=True)]
    narrowest = [0] * len(problem.kept)
    first = {tuple(choice) for choice in (fastest, middle, problem.full(), narrowest)}
    times = {choice: clock.time(build(choice)[0]) for choice in sorted(first)}
    allowed = search.latency_ms or clock.baseline_ms / (search.speedup or 1.0)
    if min(times.values()) > allowed:
        raise BadInput(
            "no widths are within the budget",
            got=f"{allowed:.4g} ms allowed",
            wanted=f"at least {min(times.values()):.4g} ms, what the fastest widths take here",
            where=f"stage `{pruning.settings.name}`, setting `search`",
            todo="Ask for less, raise max_cut, or let more layers be pruned (`linear`, `layers`)",
        )
    counts, rounds, met = _narrow_down(problem, build, clock, allowed, times, search.rounds, tell)
    outcome = {
        "precision": pruning.settings.precision,
        "allowed_ms": allowed,
        "baseline_ms": clock.baseline_ms,
        "budget_met": met,
        "rounds": rounds,
        "rest_ms": vars(forecast.rest),
        "doubtful_layer_times": len(forecast.stairs.doubtful),
    }
    return counts, {"search": {**search.model_dump(exclude_none=True), **outcome}}


def with_rest(problem: Problem, forecast: Forecast) -> Problem:
    """What a run takes besides its layers, among the costs: the same for all choices, and by activations."""
    fixed: Table = ((), np.array(forecast.rest.fixed_ms))
    return replace(problem, costs=[*problem.costs, fixed, *_by_activations(problem, forecast.rest.scaled_ms)])


def _narrow_down(
    problem: Problem,
    build: Callable[[Sequence[int]], tuple[Network, list[int]]],
    clock: "Clock",
    allowed: float,
    times: Mapping[tuple[int, ...], float],
    rounds: int,
    tell: Tell,
) -> tuple[list[int], list[dict[str, float]], bool]:
    """Predict, build, time and correct, until the network takes nearly what is allowed.

    Args:
        times: milliseconds of the networks timed so far. The fastest by its layers need not be: ONNX Runtime
            lays out a whole network otherwise than its layers alone, and narrow ones without blocks.

    Returns:
        Sets to remove of each space, of the best of all timed networks within the budget (else of the
        fastest), every round's prediction and measurement, and whether the budget is met.
    """
    predictions = list[dict[str, float]]()
    tried = [_judged(problem, choice, build(choice)[1], ms, allowed) for choice, ms in times.items()]
    sums = {choice: total(problem.costs, choice) for choice in times}
    least = min(sums.values())
    anchors = {sums[choice]: ms for choice, ms in times.items() if any(choice) or sums[choice] == least}
    for turn in range(rounds):
        tell(0.6 + 0.4 * turn / rounds, f"timing the network, round {turn + 1}")
        choice = solve(problem, _sum_for(AIM_FRACTION * allowed, anchors))
        summed, (candidate, counts) = total(problem.costs, choice), build(choice)
        predicted, measured = _time_for(summed, anchors), clock.time(candidate)
        predictions.append({"predicted_ms": predicted, "measured_ms": measured})
        tried.append(_judged(problem, choice, counts, measured, allowed))
        if CLOSE_FRACTION * allowed <= measured <= allowed:
            break
        anchors[summed] = measured
    met, _, counts = max(tried)
    return counts, predictions, met


def _judged(
    problem: Problem, choice: Sequence[int], counts: list[int], ms: float, allowed: float
) -> tuple[bool, float, list[int]]:
    """Whether within the budget; of those within the importance kept counts, of others the time."""
    within = ms <= allowed
    return within, problem.value(choice) if within else -ms, counts


def _time_for(summed: float, anchors: Mapping[float, float]) -> float:
    """Milliseconds of a network whose layers sum up to `summed`, between networks that were timed.

    Layers by themselves keep their weights in the cache: the sum is not the network's time, but grows so.
    """
    sums = sorted(anchors)
    return float(np.interp(summed, sums, np.maximum.accumulate([anchors[s] for s in sums])))


def _sum_for(allowed_ms: float, anchors: Mapping[float, float]) -> float:
    """The sum of layers at which a network takes `allowed_ms`: the largest one, to waste nothing."""
    sums = np.linspace(min(anchors), max(anchors), 20_001)
    within = [s for s in sums if _time_for(s, anchors) <= allowed_ms]
    return max(within, default=min(anchors))


class Clock:
    """Times networks beside the baseline; a slow moment of the machine hits both and is divided out."""

    def __init__(self, baseline: Network, threads: int, batch: int, precision: Precision = "fp32") -> None:
        self.baseline, self.threads, self.batch, self.precision = baseline, threads, batch, precision
        self.baseline_ms = 0.0
        self.baseline_onnx = b""

    def time(self, network: Network) -> float:
        """Milliseconds of a run, as it would be at the baseline's first speed.

        On one thread the processor time of a run, a low percentile, which holds when others share the
        machine; with more threads the median of the elapsed time, for which it should be idle.
        """
        self.baseline_onnx = self.baseline_onnx or onnx_of(self.baseline, self.precision)
        models = {"baseline": self.baseline_onnx, "network": onnx_of(network, self.precision)}
        baseline, candidate = self._on_one_thread(models) if self.threads == 1 else self._on_several(models)
        self.baseline_ms = self.baseline_ms or baseline
        return candidate * self.baseline_ms / baseline

    def _on_one_thread(self, models: Mapping[str, bytes]) -> tuple[float, float]:
        generator = np.random.default_rng(0)
        images = generator.standard_normal((self.batch, *self.baseline.input_shape)).astype(np.float32)
        sessions = {name: open_session(model, "cpu") for name, model in models.items()}
        calls = {
            name: lambda session=session: session.run(None, {session.get_inputs()[0].name: images})
            for name, session in sessions.items()
        }
        times = processor_ms(calls, SECONDS_PER_MODEL)
        return times["baseline"], times["network"]

    def _on_several(self, models: Mapping[str, bytes]) -> tuple[float, float]:
        timed = benchmark(
            models,
            "cpu",
            baseline="baseline",
            batches=(self.batch,),
            threads=(self.threads,),
            seconds_per_model=SECONDS_PER_MODEL,
            force=True,  # what it decides is held against the clock again, by deploy
        )
        baseline, candidate = (row.p50_ms for row in timed.rows)
        return baseline, candidate


def to_the_steps_end(pruning: Pruning, measuring: Measuring) -> Counted:
    """`align: auto`: each space as wide as it can be without taking longer than planned (within 4 %).

    The time of a space is that of the layers that write and read it, their other side as it is now. A width
    that a wider one beats is not taken: it is off the fast kernel.

    Returns:
        Sets that go, and `aligned`: first layer of the space -> [planned width, width].
    """
    forecast = Forecast(
        pruning.network, measuring.profiles, Setting(int8=pruning.settings.precision == "int8")
    )
    shapes = layer_shapes(pruning.module, pruning.network.input_shape)
    widened, aligned = [], dict[str, list[int]]()
    for at, (space, planned) in enumerate(zip(pruning.spaces, pruning.removals(), strict=True)):
        measuring.tell(at / len(pruning.spaces), "timing layers around the planned widths")
        reach = range(planned, max(-1, planned - (NEAR_SETS + WITNESS_SETS) // space.per_set - 1), -1)
        plans = [_plans(pruning.coupling, shapes, space, fewer) for fewer in reach]
        prices = forecast.prices({shape for plan in plans for shape, _ in plan})
        times = [sum(prices[shape] * calls for shape, calls in plan) for plan in plans]
        best = reach[end_of_step(times, 1 + NEAR_SETS // space.per_set)]
        widened.append(best)
        aligned[space.layers[0]] = [space.width - n * space.per_set for n in (planned, best)]
    doubtful = len(forecast.stairs.doubtful)
    return widened, {
        "aligned": aligned,
        "precision": pruning.settings.precision,
        "doubtful_layer_times": doubtful,
    }


def _plans(
    coupling: Coupling, shapes: Mapping[str, tuple[LayerShape, int]], space: Space, fewer: int
) -> list[tuple[LayerShape, int]]:
    """The layers that write or read a space when so many of its sets are gone, and the calls of each."""
    removed = space.sets[:fewer]
    return [
        (
            with_widths(
                shape,
                *(int(k.sum()) for k in (coupling.keep_inputs(n, removed), coupling.keep(n, removed))),
            ),
            calls,
        )
        for n, (shape, calls) in shapes.items()
        if n in coupling.inputs and (n in space.layers or np.isin(coupling.inputs[n], space.sets).any())
    ]


def end_of_step(times: Sequence[float], reach: int) -> int:
    """The last of the first `reach` places that takes no longer than the first (within 4 %).

    A place that a later one beats (by 4 %) is off the fast kernel and counts only where no other is in reach.

    Args:
        times: by width, ascending; the first is the planned one.
        reach: at least 1; what comes after serves as witness alone.
    """
    within = [i for i, ms in enumerate(times[:reach]) if ms <= times[0] * SAME_STEP]
    unbeaten = [i for i in within if times[i] <= min(times[i:]) * SAME_STEP]
    return max(unbeaten or within)


WAYS: Mapping[str, Callable[[Pruning, Measuring], Counted]] = {
    "ratio": by_ratio,
    "steps": to_the_steps_end,
    "budget": within_budget,
}
"""The ways to count how many channels go."""


def way_of(settings: Structure) -> str:
    """Which of `WAYS` the settings ask for."""
    return "budget" if settings.search is not None else "steps" if settings.align == "auto" else "ratio"


def _by_count(pruning: Pruning, baseline: Network) -> Counted:
    """Budgets of multiply-adds or parameters, which need no clock."""
    from tersor.models.cost import cost

    search = pruning.settings.search
    assert search is not None
    by_macs = search.macs is not None

    def prices(shapes: set[LayerShape]) -> Mapping[LayerShape, float]:
        """Multiply-adds, or weights, of each shape."""
        return {s: float(s.macs if by_macs else s.weights) for s in shapes}

    problem = pose(pruning, prices)
    counted, whole = cost(pruning.network), cost(baseline)
    full = float(counted.macs if by_macs else counted.parameters)
    rest = _by_activations(problem, full - total(problem.costs, problem.full()))
    budget = (search.macs or 0) * whole.macs if by_macs else (search.parameters or 0) * whole.parameters
    choice = solve(problem, budget, rest)
    counts = [int(k[-1] - k[at]) for k, at in zip(problem.kept, choice, strict=True)]
    return counts, {"search": {**search.model_dump(exclude_none=True), "budget": budget}}


def _by_activations(problem: Problem, amount: float) -> list[Table]:
    """What the layers' tables do not explain, taken as proportional to the activations."""
    return [((at,), fraction * amount) for at, fraction in enumerate(problem.activations)]
