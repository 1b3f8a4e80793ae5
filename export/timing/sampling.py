"""Samples of how long functions take: each alone in warm blocks, and all in turn; one sitting at a time."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from tersor.export.timing.clock import Signs, Watch

T = TypeVar("T")
SHORTEST_SAMPLE_MS = 0.2
"""A sample is the mean of as many runs as fill this time: the clock and the loop cost under 0.1 %."""
BLOCK_MS, FEWEST_IN_BLOCK = 20.0, 3
WARM_MS = 2.0
"""Runs at the start of a block that are dropped fill this time: by then caches hold what the model needs."""
LONG_MS = 50.0
"""A run of this length or more does not feel which caches it found: its block is one run, none dropped, and
where all are as long, being alone and being in turn are one thing, measured once."""
ALONE_PART = 2 / 3
"""Of a sitting's time; the rest is for running in turn. A device's queues get as much as being alone."""
QUEUE_MS = 20.0
"""Runs that are queued on a device and waited for together fill this time: launch and wait are shared."""
Way = Literal["alone", "in_turn", "device"]
WARM_UP_SECONDS = 0.05
"""Before a sitting's first block, for each function; no more than it is timed for."""


@dataclass(frozen=True)
class Sitting:
    """What one sitting gave: name -> milliseconds a run, float64 (samples,).

    alone: in blocks of one function's runs. in_turn: one sample each by turns, index i of all is one round.
    signs: what else the machine did meanwhile. device: queues of runs on a device; empty without one.
    """

    alone: Mapping[str, np.ndarray]
    in_turn: Mapping[str, np.ndarray]
    signs: Signs
    device: Mapping[str, np.ndarray] = field(default_factory=dict)

    def medians(self, way: Way) -> dict[str, float]:
        """name -> median in milliseconds."""
        samples: Mapping[str, np.ndarray] = getattr(self, way)
        return {name: float(np.median(values)) for name, values in samples.items()}


def sit(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    queues: Mapping[str, Callable[[int], float]] | None = None,
    threads: int = 1,
    turn: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Sitting:
    """Time functions of no arguments against each other, once.

    Args:
        calls: name -> function; one run of a whole batch.
        seconds: spent on each, about.
        queues: name -> function that queues so many runs on a device and returns milliseconds of one; timed
            besides, for 2/3 as long again.
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
        in_turn = alone
        if not all(sampler.long for sampler in samplers.values()):
            rest = budget * (1 - ALONE_PART)
            in_turn = _rounds(
                samplers, _Sampler.once, rest, lambda f: progress(ALONE_PART + (1 - ALONE_PART) * f)
            )
        device = _rounds(_queues(names, queues), _Queue.sample, budget * ALONE_PART) if queues else {}
        signs = watch.signs()
    finally:
        if collecting:
            gc.enable()
    alone, in_turn, device = ({n: part[n] for n in calls if part} for part in (alone, in_turn, device))
    return Sitting(alone, in_turn, signs, device)


def _rounds(
    samplers: Mapping[str, T],
    take: Callable[[T], Sequence[float]],
    budget: float,
    report: Callable[[float], None] = lambda _: None,
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


class _Queue:
    """Queues runs of one function on a device: as many as fill `QUEUE_MS`."""

    def __init__(self, queue: Callable[[int], float]) -> None:
        self._queue = queue
        self._runs = max(1, round(QUEUE_MS / max(queue(2), 1e-6)))

    def sample(self) -> list[float]:
        """Milliseconds of a run, the mean of one queue."""
        return [self._queue(self._runs)]


def _queues(names: Sequence[str], queues: Mapping[str, Callable[[int], float]]) -> dict[str, _Queue]:
    return {name: _Queue(queues[name]) for name in names}


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

    @property
    def long(self) -> bool:
        """Whether what ran before a run does not matter."""
        return self._fastest >= LONG_MS

    def block(self) -> list[float]:
        """Samples of runs that only this function's runs precede."""
        if self.long:
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
