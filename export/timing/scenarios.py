"""MLPerf's scenarios on any function: single stream, offline, server (a rate at a p99 bound).

The server is one worker that serves queries in order of arrival. Arrivals are drawn beforehand, so that the
worker waits for them itself: a query's latency is what is left of the ones before it and its own run, counted
from the moment it was due. A second thread and a queue would add only their own hand-over. The arrivals are
those that LoadGen draws from the same seed.

Names and percentiles are MLPerf's (arXiv:1911.02549); LoadGen itself is the engine in loadgen.py.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from tersor.errors import BadInput

Call = Callable[[], object]
"""One run of a whole batch."""
Scenario = Literal["single-stream", "offline", "server"]

RUNS = 3
"""Single stream and offline are run this often; the middle figure counts, the outer two are its range."""
WARM_UP_SECONDS, FEWEST_WARM_UPS = 0.05, 3
FEWEST_QUERIES = 100
P99_QUERIES = 662
"""The fewest that support a p99: two slower ones are then 99 % sure to be seen. LoadGen asks for as many."""
MOST_QUERIES, PROBE_SECONDS = 5000, 30.0
"""Queries of one server run unless it is said: 50 lie beyond p99; fewer where they take longer."""
OFFLINE_BATCHES = (1, 8, 32, 64)
FEWEST_BATCHES = 3

RESOLUTION = 0.02
"""The largest rate that meets the bound and the smallest that does not lie this far apart."""
FIRST_STEP, FURTHEST = 1.05, 16.0
"""How far the search goes from where it begins, at first, and at most."""
SCHEDULES = 40
"""Other arrivals tried on the measured service times, to tell how much hangs on those that were drawn."""


class Clock(Protocol):
    """Where time comes from, and what waits for it. Seconds."""

    def now(self) -> float:
        """Seconds since some moment."""

    def sleep_until(self, moment: float) -> None:
        """Wait until `now` is `moment`; return at once where it has passed."""


class WallClock:
    """The machine's. Waiting sleeps, as a server does: what waking costs is part of a query's latency."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Wait until `now` is `moment`; return at once where it has passed."""
        left = moment - time.perf_counter()
        if left > 0:
            time.sleep(left)


@dataclass(frozen=True)
class Latency:
    """Of the queries of one run: percentiles in milliseconds, and queries completed a second."""

    queries: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_s: float


class Engine(Protocol):
    """What issues queries and takes the time: ours (`Worker`) or LoadGen."""

    @property
    def name(self) -> str:
        """For the rows."""

    def single_stream(self, call: Call, queries: int) -> Latency:
        """One query after the other."""

    def offline(self, call: Call, runs: int, batch: int) -> float:
        """Samples a second, when `runs` batches are at hand at once."""

    def server(self, call: Call, rate: float, queries: int, seed: int) -> Latency:
        """Queries that arrive by chance, `rate` a second on average; latency counts from their arrival."""


@dataclass(frozen=True)
class Worker:
    """Our own engine: the thread that calls it serves the queries."""

    clock: Clock = WallClock()
    name: str = "tersor"

    def single_stream(self, call: Call, queries: int) -> Latency:
        """One query after the other."""
        now, latencies = self.clock.now, np.empty(queries)
        with _no_garbage_collection():
            start = began = now()
            for index in range(queries):
                call()
                ended = now()
                latencies[index] = ended - began
                began = ended
        return latency(latencies, began - start)

    def offline(self, call: Call, runs: int, batch: int) -> float:
        """Samples a second, when `runs` batches are at hand at once."""
        with _no_garbage_collection():
            began = self.clock.now()
            for _ in range(runs):
                call()
            return runs * batch / (self.clock.now() - began)

    def server(self, call: Call, rate: float, queries: int, seed: int) -> Latency:
        """Queries that arrive by chance, `rate` a second on average; latency counts from their arrival."""
        clock, latencies = self.clock, np.empty(queries)
        with _no_garbage_collection():
            start = clock.now()
            for index, arrival in enumerate((start + arrivals(rate, queries, seed)).tolist()):
                clock.sleep_until(arrival)
                call()
                latencies[index] = clock.now() - arrival
            return latency(latencies, clock.now() - start)


OURS = Worker()


@dataclass(frozen=True)
class SingleStream:
    """One query at a time, batch 1; MLPerf's figure is p90.

    p50_ms, p90_ms, p99_ms: middle of the runs, milliseconds; p99_ms is None where a run has too few queries
        (`P99_QUERIES`) to support it.
    p90_low_ms, p90_high_ms: lowest and highest of the runs.
    queries_per_s: queries completed a second, the engine's own time included.
    queries: of each run.
    """

    engine: str
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    p90_low_ms: float
    p90_high_ms: float
    queries_per_s: float
    queries: int
    scenario: Scenario = "single-stream"


@dataclass(frozen=True)
class Offline:
    """All samples at hand; the figure is the throughput at the best of the batch sizes tried.

    samples_per_s: middle of the runs; samples_low_per_s, samples_high_per_s: lowest and highest of them.
    tried: batch size -> samples a second.
    samples: of each run.
    """

    engine: str
    batch: int
    samples_per_s: float
    samples_low_per_s: float
    samples_high_per_s: float
    samples: int
    tried: Mapping[int, float]
    scenario: Scenario = "offline"


@dataclass(frozen=True)
class Server:
    """Queries of one sample that arrive by chance (Poisson); the figure is the rate that a p99 bound allows.

    rate_per_s: the largest rate tried whose p99 stayed within the bound; None where none did. A rate at which
        the worker cannot keep up does not count, however late a short run would show it.
    next_rate_per_s: the smallest rate looked at that did not do.
    rate_low_per_s, rate_high_per_s: where 95 % of runs with other arrivals, as many, would have ended: by the
        same search on the service times that were measured. What chance the arrivals have is in it, what the
        machine does otherwise from one minute to the next is not.
    p50_ms, p99_ms: at `rate_per_s`; where that is None, p99_ms is that of the lowest rate tried.
    service_p99_ms: p99 of a query that nothing waits with.
    queries: of each rate tried. rates: how many were tried.
    """

    engine: str
    bound_ms: float
    rate_per_s: float | None
    next_rate_per_s: float | None
    rate_low_per_s: float | None
    rate_high_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    service_p99_ms: float
    queries: int
    rates: int
    scenario: Scenario = "server"


def single_stream(
    call: Call,
    *,
    seconds: float = 2.0,
    engine: Engine = OURS,
    clock: Clock = OURS.clock,
    progress: Callable[[float], None] = lambda _: None,
) -> SingleStream:
    """Time a function that is called again as soon as it has returned.

    Args:
        call: one run of batch 1.
        seconds: time for all runs.
        engine: what takes the time.
        clock: for the warm-up, which tells how many queries fit.
        progress: told the fraction done.
    """
    queries = max(FEWEST_QUERIES, round(seconds / RUNS / _warm(call, clock)))
    runs = []
    for index in range(RUNS):
        runs.append(engine.single_stream(call, queries))
        progress((index + 1) / RUNS)
    p50, p90, p99, per_s = np.median([(r.p50_ms, r.p90_ms, r.p99_ms, r.per_s) for r in runs], axis=0).tolist()
    p90s = [run.p90_ms for run in runs]
    supported = p99 if queries >= P99_QUERIES else None
    return SingleStream(engine.name, p50, p90, supported, min(p90s), max(p90s), per_s, queries)


def offline(
    calls: Mapping[int, Call],
    *,
    seconds: float = 2.0,
    engine: Engine = OURS,
    clock: Clock = OURS.clock,
    progress: Callable[[float], None] = lambda _: None,
) -> Offline:
    """Throughput with all samples at hand, at the best batch size.

    Args:
        calls: batch size -> one run of such a batch.
        seconds: time for all runs of a batch size.
        engine, clock, progress: as for `single_stream`.

    Raises:
        BadInput: no batch size.
    """
    if not calls:
        raise BadInput("offline needs a batch size", got="none")
    rates, samples = dict[int, list[float]](), dict[int, int]()
    for done, (batch, call) in enumerate(calls.items()):
        runs = max(FEWEST_BATCHES, round(seconds / RUNS / _warm(call, clock)))
        rates[batch] = sorted(engine.offline(call, runs, batch) for _ in range(RUNS))
        samples[batch] = runs * batch
        progress((done + 1) / len(calls))
    tried = {batch: float(np.median(runs)) for batch, runs in rates.items()}
    best = max(tried, key=lambda batch: tried[batch])
    low, high = rates[best][0], rates[best][-1]
    return Offline(engine.name, best, tried[best], low, high, samples[best], tried)


def server(
    call: Call,
    bound_ms: float,
    *,
    queries: int | None = None,
    seed: int = 0,
    resolution: float = RESOLUTION,
    engine: Engine = OURS,
    clock: Clock = OURS.clock,
    progress: Callable[[float], None] = lambda _: None,
) -> Server:
    """The largest rate of arrivals at which 99 of 100 queries are answered within a bound, by bisection.

    The search begins where the queue of the measured service times says; every rate is then run. All rates
    have the same arrivals, stretched, so that p99 grows with the rate.

    Args:
        call: one run of batch 1.
        bound_ms: of p99, milliseconds from a query's arrival to its answer.
        queries: of each rate tried; default: 5,000, fewer (down to 662) where that takes over half a minute.
        seed: of the arrivals.
        resolution: fraction by which the two rates that are told may differ.
        engine, clock, progress: as for `single_stream`.

    Raises:
        BadInput: a bound or a resolution that is not positive, or too few queries for a p99.
    """
    _check(bound_ms, resolution, queries)
    each = _warm(call, clock)
    service = _service(call, P99_QUERIES, clock)
    count = queries or int(np.clip(PROBE_SECONDS / (2 * each), P99_QUERIES, MOST_QUERIES))
    begin, capacity = _rate_of_queue(service, count, seed, bound_ms), 1 / float(service.mean())
    tried: dict[float, Latency] = {}

    def meets(rate: float) -> bool:
        """Run a rate that can be kept up with."""
        if rate > capacity:
            return False
        tried[rate] = engine.server(call, rate, count, seed)
        progress(1 - 0.8 ** len(tried))
        return tried[rate].p99_ms <= bound_ms

    low, high = largest_rate(meets, begin, resolution) if begin else (None, None)
    return _server_of(engine.name, bound_ms, (low, high), begin, tried, service, count)


def arrivals(rate: float, queries: int, seed: int) -> np.ndarray:
    """When queries are due, seconds after the first, float64 (queries,): as LoadGen draws them of a seed.

    Gaps are exponential (a Poisson process): -log(1 - u) / rate, u of 64 bits out of two words of the
    Mersenne Twister, the low one first.
    """
    words = np.frombuffer(np.random.RandomState(seed).bytes(8 * queries), "<u4").astype(np.float64)
    gaps = -np.log1p(-(words[0::2] + words[1::2] * 2.0**32) / 2.0**64) / rate
    return np.concatenate([[0.0], np.cumsum(gaps[:-1])])


def queued(due: np.ndarray, service: np.ndarray) -> np.ndarray:
    """Latency of each query with one worker, in order of arrival: float64 (N,), the unit of what is given.

    Query i ends at max(due_i, end of i-1) + service_i (Lindley 1952); written out, at the sum of the service
    so far plus the largest of due_j less the service before j.
    """
    worked = np.cumsum(service)
    return worked + np.maximum.accumulate(due - (worked - service)) - due


def latency(latencies: np.ndarray, elapsed: float) -> Latency:
    """Percentiles and rate of a run's latencies, in seconds."""
    p50, p90, p99 = (1e3 * percentile(latencies, part) for part in (0.5, 0.9, 0.99))
    return Latency(len(latencies), p50, p90, p99, len(latencies) / elapsed)


def percentile(latencies: np.ndarray, fraction: float) -> float:
    """The latency at index floor(N x fraction) of the sorted ones, as LoadGen takes it: one that occurred."""
    return float(np.sort(latencies)[int(len(latencies) * fraction)])


def largest_rate(
    meets: Callable[[float], bool], begin: float, resolution: float
) -> tuple[float | None, float | None]:
    """The largest rate tried that meets what is asked and the smallest that does not; None: none was found.

    Steps from `begin` that grow, up or down, until one of each kind is known (at most 16-fold); then halves
    the ratio between them.
    """
    low, high, step, rate = None, None, FIRST_STEP, begin
    while (low is None or high is None) and begin / FURTHEST <= rate <= begin * FURTHEST:
        if meets(rate):
            low, rate = rate, rate * step
        else:
            high, rate = rate, rate / step
        step *= step
    while low is not None and high is not None and high / low > 1 + resolution:
        rate = math.sqrt(low * high)
        low, high = (rate, high) if meets(rate) else (low, rate)
    return low, high


def _server_of(
    engine: str,
    bound_ms: float,
    rates: tuple[float | None, float | None],
    begin: float | None,
    tried: Mapping[float, Latency],
    service: np.ndarray,
    queries: int,
) -> Server:
    low, high = rates
    at = tried.get(low or min(tried, default=0.0))
    factors = _factors(service, queries, bound_ms, begin) if low and begin else (None, None)
    outer = [low * factor if low and factor else None for factor in factors]
    p50, p99 = (at.p50_ms if at and low else None), (at.p99_ms if at else None)
    alone = 1e3 * percentile(service, 0.99)
    return Server(engine, bound_ms, low, high, outer[0], outer[1], p50, p99, alone, queries, len(tried))


def _check(bound_ms: float, resolution: float, queries: int | None) -> None:
    if not bound_ms > 0 or not resolution > 0:
        raise BadInput("a bound and a resolution are above zero", got=f"{bound_ms} ms, {resolution}")
    if queries is not None and queries < P99_QUERIES:
        raise BadInput("too few queries to tell a p99", got=queries, wanted=f"at least {P99_QUERIES}")


def _warm(call: Call, clock: Clock) -> float:
    """Warm up; the median of a run, seconds."""
    times, start = list[float](), clock.now()
    while len(times) < FEWEST_WARM_UPS or clock.now() - start < WARM_UP_SECONDS:
        times += _service(call, 1, clock).tolist()
    return max(1e-9, float(np.median(times)))


def _service(call: Call, runs: int, clock: Clock) -> np.ndarray:
    """Seconds of runs that nothing waits for, float64 (runs,)."""
    times = np.empty(runs)
    for index in range(runs):
        began = clock.now()
        call()
        times[index] = clock.now() - began
    return times


def _rate_of_queue(service: np.ndarray, queries: int, seed: int, bound_ms: float) -> float | None:
    """The largest rate of a queue with these service times, over and over, that meets the bound; or None."""
    needed = service[np.arange(queries) % len(service)]
    due, capacity = arrivals(1.0, queries, seed), 1 / float(service.mean())

    def meets(rate: float) -> bool:
        """Work out a rate that can be kept up with."""
        return rate <= capacity and 1e3 * percentile(queued(due / rate, needed), 0.99) <= bound_ms

    return largest_rate(meets, capacity / 2, 0.002)[0]


def _factors(service: np.ndarray, queries: int, bound_ms: float, begin: float) -> tuple[float, float]:
    """By which 95 % of other arrivals and orders of service change the rate `begin` of the drawn ones."""
    rng = np.random.default_rng(0)
    orders = (np.roll(service, rng.integers(len(service))) for _ in range(SCHEDULES))
    rates = [_rate_of_queue(order, queries, 1000 + at, bound_ms) or 0.0 for at, order in enumerate(orders)]
    low, high = np.percentile(rates, [2.5, 97.5]) / begin
    return float(low), float(high)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
