"""The search of widths for the stage `structure`: budget, prediction, and the real network's time."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.errors import BadInput
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.layer_timing import LayerShape
from tersor.models.network import Network
from tersor.pipeline.recipe.structure import Structure
from tersor.pipeline.structure.elimination import Table, minimise, total
from tersor.pipeline.structure.narrowing import narrowed
from tersor.pipeline.structure.search import Problem, pose, solve
from tersor.pipeline.structure.staircase import SAME_STEP, Setting, Staircase, layer_shapes, with_widths
from tersor.pipeline.structure.widths import Pruning
from tersor.progress import Tell

AIM_FRACTION = 0.98
CLOSE_FRACTION = 0.95
"""A network that uses at least this much of the time allowed is not widened further."""
SECONDS_PER_MODEL = 1.0
NEAR_SETS = 16
"""`align: auto` looks this many channels further than planned: a block of ONNX Runtime's convolutions."""


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
    stairs = Staircase(measuring.profiles, Setting(search.threads, search.batch))
    problem = pose(
        pruning,
        lambda shapes: stairs.measure(shapes, lambda done: tell(0.6 * done, "timing layers at all widths")),
    )

    def build(choice: Sequence[int]) -> tuple[Network, list[int]]:
        """The network at these widths, and how many sets go of each space."""
        counts = [int(k[-1] - k[at]) for k, at in zip(problem.kept, choice, strict=True)]
        tensors = narrowed(pruning.module, pruning.coupling, pruning.choose(counts))
        return pruning.network.with_tensors(tensors, forms={}), counts

    clock = Clock(measuring.baseline, search.threads, search.batch)
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
    outcome = {"allowed_ms": allowed, "baseline_ms": clock.baseline_ms, "budget_met": met, "rounds": rounds}
    return counts, {"search": {**search.model_dump(exclude_none=True), **outcome}}


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

    Layers by themselves keep their weights in the cache, and the profiler adds to each of them: the sum is
    not the network's time, but grows with it.
    """
    sums = sorted(anchors)
    return float(np.interp(summed, sums, np.maximum.accumulate([anchors[s] for s in sums])))


def _sum_for(allowed_ms: float, anchors: Mapping[float, float]) -> float:
    """The sum of layers at which a network takes `allowed_ms`: the largest one, to waste nothing."""
    sums = np.linspace(min(anchors), max(anchors), 20_001)
    within = [s for s in sums if _time_for(s, anchors) <= allowed_ms]
    return max(within, default=min(anchors))


class Clock:
    """Times networks in turn with the baseline; a slow moment of the machine hits both and is divided out."""

    def __init__(self, baseline: Network, threads: int, batch: int) -> None:
        self.baseline, self.threads, self.batch = baseline, threads, batch
        self.baseline_ms = 0.0

    def time(self, network: Network) -> float:
        """p50 in milliseconds, as it would be at the baseline's first speed."""
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{name}.onnx" for name in ("baseline", "network")}
            export_onnx(self.baseline, files["baseline"])
            export_onnx(network, files["network"])
            timed = benchmark(
                files,
                "cpu",
                baseline="baseline",
                batches=(self.batch,),
                threads=(self.threads,),
                seconds_per_model=SECONDS_PER_MODEL,
                force=True,  # what it decides is held against the clock again, by deploy
            )
        baseline, candidate = (row.p50_ms for row in timed.rows)
        self.baseline_ms = self.baseline_ms or baseline
        return candidate * self.baseline_ms / baseline


def to_the_steps_end(pruning: Pruning, measuring: Measuring) -> Counted:
    """`align: auto`: each space as wide as it can be without taking longer than planned (within 4 %).

    The time of a space is that of the layers that write and read it, their other side as it is now.

    Returns:
        Sets that go, and `aligned`: first layer of the space -> [planned width, width].
    """
    stairs, coupling = Staircase(measuring.profiles, Setting()), pruning.coupling
    shapes = layer_shapes(pruning.module, pruning.network.input_shape)
    widened, aligned = [], dict[str, list[int]]()
    for at, (space, planned) in enumerate(zip(pruning.spaces, pruning.removals(), strict=True)):
        measuring.tell(at / len(pruning.spaces), "timing layers around the planned widths")
        reach = range(planned, max(-1, planned - NEAR_SETS // space.per_set - 1), -1)
        times = []
        for fewer in reach:
            removed = space.sets[:fewer]
            plans = [
                with_widths(
                    shape,
                    *(int(k.sum()) for k in (coupling.keep_inputs(n, removed), coupling.keep(n, removed))),
                )
                for n, (shape, _) in shapes.items()
                if n in coupling.inputs
                and (n in space.layers or np.isin(coupling.inputs[n], space.sets).any())
            ]
            times.append(sum(stairs.measure(plans)[plan] for plan in plans))
        best = max(i for i, ms in enumerate(times) if ms <= times[0] * SAME_STEP)
        widened.append(reach[best])
        aligned[space.layers[0]] = [space.width - n * space.per_set for n in (planned, reach[best])]
    return widened, {"aligned": aligned}


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
    rest = _rest(problem, full - total(problem.costs, problem.full()))
    budget = (search.macs or 0) * whole.macs if by_macs else (search.parameters or 0) * whole.parameters
    choice = solve(problem, budget, rest)
    counts = [int(k[-1] - k[at]) for k, at in zip(problem.kept, choice, strict=True)]
    return counts, {"search": {**search.model_dump(exclude_none=True), "budget": budget}}


def _rest(problem: Problem, amount: float) -> list[Table]:
    """What the layers' tables do not explain, taken as proportional to the activations."""
    return [((at,), fraction * amount) for at, fraction in enumerate(problem.activations)]
