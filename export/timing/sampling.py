"""Samples of how long functions take: each alone in warm blocks, and all in turn; one sitting at a time."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.export.timing.clock import Signs, Watch

SHORTEST_SAMPLE_MS = 0.2
"""A sample is the mean of as many runs as fill this time: the clock and the loop cost under 0.1 %."""
BLOCK_MS, FEWEST_IN_BLOCK = 20.0, 3
WARM_MS = 2.0
"""Runs at the start of a block that are dropped fill this time: by then caches hold what the model needs."""
LONG_MS = 100.0
"""A run of this length or more does not feel which caches it found: its block is one run, none dropped."""
ALONE_PART = 2 / 3
"""Of a sitting's time; the rest is for running in turn."""
WARM_UP_SECONDS = 0.05
"""Before a sitting's first block, for each function; no more than it is timed for."""


@dataclass(frozen=True)
class Sitting:
    """What one sitting gave: name -> milliseconds a run, float64 (samples,).

    alone: in blocks of one function's runs. in_turn: one sample each by turns, index i of all is one round.
    signs: what else the machine did meanwhile.
    """

    alone: Mapping[str, np.ndarray]
    in_turn: Mapping[str, np.ndarray]
    signs: Signs

    def medians(self, *, alone: bool) -> dict[str, float]:
        """name -> median in milliseconds."""
        samples = self.alone if alone else self.in_turn
        return {name: float(np.median(values)) for name, values in samples.items()}


def sit(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    threads: int = 1,
    turn: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Sitting:
    """Time functions of no arguments against each other, once.

    Args:
        calls: name -> function; one run of a whole batch.
        seconds: spent on each, about.
        threads: that the functions use.
        turn: which sitting it is: who runs after whom is drawn anew for each.
        progress: told the fraction done.
    """
    names = [list(calls)[at] for at in np.random.default_rng(turn).permutation(len(calls))]
    samplers = {name: _Sampler(calls[name]) for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for sampler in samplers.values():
            sampler.warm_up(min(WARM_UP_SECONDS, seconds))
        watch = Watch(threads)
        budget = seconds * len(names)
        alone = _rounds(samplers, _Sampler.block, budget * ALONE_PART, lambda f: progress(ALONE_PART * f))
        rest = budget * (1 - ALONE_PART)
        in_turn = _rounds(
            samplers, _Sampler.once, rest, lambda f: progress(ALONE_PART + (1 - ALONE_PART) * f)
        )
        signs = watch.signs()
    finally:
        if collecting:
            gc.enable()
    return Sitting({n: alone[n] for n in calls}, {n: in_turn[n] for n in calls}, signs)


def _rounds(
    samplers: Mapping[str, "_Sampler"],
    take: Callable[["_Sampler"], Sequence[float]],
    budget: float,
    report: Callable[[float], None],
) -> dict[str, np.ndarray]:
    """Rounds of all functions until the budget in seconds is spent.

    The order is the same in every round: rotating it would let a function run right after itself.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    start = reported = time.perf_counter()
    while True:
        for name, sampler in samplers.items():
            samples[name] += take(sampler)
        now = time.perf_counter()
        if now - start >= budget:
            return {name: np.array(values) for name, values in samples.items()}
        if now - reported > 0.2:
            report(min(1.0, (now - start) / budget))
            reported = now


class _Sampler:
    """Times one function: how many runs make a sample, and how many samples a block, is found by trying."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._runs = 1
        self._fastest = float("inf")

    def warm_up(self, seconds: float) -> None:
        """Run until caches, memory pools and clock speed are where they stay."""
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or self._fastest == float("inf"):
            self._fastest = min(self._fastest, self._sample())
        self._runs = max(1, round(SHORTEST_SAMPLE_MS / self._fastest))

    def block(self) -> list[float]:
        """Samples of runs that only this function's runs precede."""
        if self._fastest >= LONG_MS:
            return [self._sample()]
        start = time.perf_counter()
        self._sample()
        while (time.perf_counter() - start) * 1e3 < WARM_MS:
            self._sample()
        samples: list[float] = []
        start = time.perf_counter()
        while len(samples) < FEWEST_IN_BLOCK or (time.perf_counter() - start) * 1e3 < BLOCK_MS:
            samples.append(self._sample())
        return samples

    def once(self) -> list[float]:
        """One sample, whatever ran before."""
        return [self._sample()]

    def _sample(self) -> float:
        call = self._call
        start = time.perf_counter_ns()
        for _ in range(self._runs):
            call()
        return (time.perf_counter_ns() - start) / self._runs / 1e6
