"""MLPerf's scenarios on a clock that only work and waiting move on."""

import itertools

import numpy as np
import pytest

from tersor.errors import BadInput
from tersor.export.timing.scenarios import (
    P99_QUERIES,
    Worker,
    arrivals,
    largest_rate,
    offline,
    percentile,
    queued,
    server,
    single_stream,
)


class Clock:
    """Seconds since the start."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return self.seconds

    def sleep_until(self, moment):
        self.seconds = max(self.seconds, moment)


@pytest.fixture
def clock():
    return Clock()


def work(clock, *milliseconds):
    """A function that takes these times by turns."""
    times = itertools.cycle(milliseconds)

    def call():
        clock.seconds += next(times) / 1e3

    return call


def test_single_stream_tells_mlperfs_percentile_of_runs_one_after_the_other(clock):
    """Every eighth query takes 5 ms: beyond p50, at p90."""
    told = single_stream(work(clock, *[1.0] * 7, 5.0), engine=Worker(clock), clock=clock, seconds=6.0)
    assert (told.p50_ms, told.p90_ms) == (pytest.approx(1.0), pytest.approx(5.0))
    assert told.queries_per_s == pytest.approx(1e3 / 1.5, rel=0.01)
    assert told.queries == pytest.approx(2000, rel=0.01)


def test_a_p99_is_told_of_enough_queries_only(clock):
    few = single_stream(work(clock, 10.0), engine=Worker(clock), clock=clock, seconds=1.0)
    many = single_stream(work(clock, 1.0), engine=Worker(clock), clock=clock, seconds=3.0)
    assert (few.p99_ms, many.p99_ms) == (None, pytest.approx(1.0))


def test_offline_takes_the_batch_of_the_largest_throughput_and_tells_all(clock):
    calls = {1: work(clock, 1.0), 8: work(clock, 4.0), 32: work(clock, 20.0)}
    told = offline(calls, engine=Worker(clock), clock=clock)
    assert (told.batch, told.samples_per_s) == (8, pytest.approx(2000.0))
    assert dict(told.tried) == pytest.approx({1: 1000.0, 8: 2000.0, 32: 1600.0})
    with pytest.raises(BadInput, match="offline needs a batch size"):
        offline({}, engine=Worker(clock), clock=clock)


def test_the_percentile_is_a_latency_that_occurred():
    assert percentile(np.arange(100.0, 0.0, -1.0), 0.99) == 100.0
    assert percentile(np.arange(1.0, 11.0), 0.5) == 6.0


def test_arrivals_are_a_poisson_process_of_the_seed():
    due = arrivals(50.0, 20_000, 3)
    gaps = np.diff(due)
    assert due[0] == 0.0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03), "exponential gaps: as wide as long"
    assert np.array_equal(due, arrivals(50.0, 20_000, 3))
    assert not np.array_equal(due, arrivals(50.0, 20_000, 4))


def test_the_worker_serves_in_order_of_arrival_as_the_queue_says(clock):
    """What the worker measures on the clock is what Lindley's recursion works out."""
    told = Worker(clock).server(work(clock, 4.0, 1.0), 300.0, 1000, 7)
    latencies = 1e3 * queued(arrivals(300.0, 1000, 7), np.tile([4e-3, 1e-3], 500))
    assert told.p99_ms == pytest.approx(np.sort(latencies)[990])
    assert told.p50_ms == pytest.approx(np.sort(latencies)[500])


def p99_at(rate, service_ms, queries):
    """Milliseconds, of a queue of one worker written out query by query."""
    free, latencies = 0.0, []
    for due in arrivals(rate, queries, 0):
        free = max(free, due) + service_ms / 1e3
        latencies.append(1e3 * (free - due))
    return sorted(latencies)[int(0.99 * queries)]


def test_a_server_tells_the_largest_rate_whose_p99_keeps_within_the_bound(clock):
    told = server(work(clock, 1.0), 5.0, queries=1000, engine=Worker(clock), clock=clock)
    assert p99_at(told.rate_per_s, 1.0, 1000) <= 5.0 < p99_at(told.next_rate_per_s, 1.0, 1000)
    assert told.next_rate_per_s / told.rate_per_s <= 1.02
    assert told.p99_ms == pytest.approx(p99_at(told.rate_per_s, 1.0, 1000))
    assert told.rate_low_per_s < told.rate_per_s < told.rate_high_per_s, "other arrivals give others"


def test_a_rate_that_cannot_be_kept_up_with_does_not_count(clock):
    """A short run of 700 queries would end before a queue of 1 s is long."""
    told = server(work(clock, 1.0), 1000.0, queries=700, engine=Worker(clock), clock=clock)
    assert told.rate_per_s <= 1000.0


def test_a_bound_below_one_run_is_met_by_no_rate(clock):
    told = server(work(clock, 4.0), 3.0, queries=P99_QUERIES, engine=Worker(clock), clock=clock)
    assert (told.rate_per_s, told.service_p99_ms) == (None, pytest.approx(4.0))


@pytest.mark.parametrize(
    ("bound", "queries", "words"),
    [
        (0.0, 1000, "above zero"),
        (float("nan"), 1000, "above zero"),
        (5.0, 100, "too few queries to tell a p99"),
    ],
)
def test_what_a_server_cannot_be_asked_is_told(clock, bound, queries, words):
    with pytest.raises(BadInput, match=words):
        server(work(clock, 1.0), bound, queries=queries, engine=Worker(clock), clock=clock)


def test_the_search_gives_up_where_all_or_none_meets():
    assert largest_rate(lambda _: True, 10.0, 0.02)[1] is None
    assert largest_rate(lambda _: False, 10.0, 0.02)[0] is None
    low, high = largest_rate(lambda rate: rate <= 37.0, 10.0, 0.02)
    assert low <= 37.0 < high <= low * 1.02
