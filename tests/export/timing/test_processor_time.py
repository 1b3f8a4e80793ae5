"""Processor time: of the first run of a block nothing is kept, of the others a low percentile."""

import pytest

from tersor.export.timing import processor_time
from tersor.export.timing.processor_time import BLOCKS, processor_ms


@pytest.fixture
def spent(monkeypatch):
    """A processor clock that only work moves on: nanoseconds so far."""
    now = {"ns": 0}
    monkeypatch.setattr(processor_time.time, "thread_time_ns", lambda: now["ns"])
    monkeypatch.setattr(processor_time.time, "thread_time", lambda: now["ns"] / 1e9)
    return now


def test_the_first_run_of_a_block_and_disturbed_ones_do_not_count(spent):
    runs = {"a": 0, "b": 0}
    last = {"name": ""}

    def work(name, ms):
        runs[name] += 1
        cold = last["name"] != name  # it finds the caches of another
        last["name"] = name
        disturbed = runs[name] % 5 == 0
        spent["ns"] += 1_000_000 * (ms + 50 * cold + 7 * disturbed)

    times = processor_ms({"a": lambda: work("a", 1), "b": lambda: work("b", 4)}, 0.2)
    assert times == {"a": pytest.approx(1.0), "b": pytest.approx(4.0)}


def test_a_long_run_is_repeated_no_more_than_it_must(spent):
    runs = {"n": 0}

    def work():
        runs["n"] += 1
        spent["ns"] += 10**10

    processor_ms({"long": work}, 0.1)
    assert runs["n"] == BLOCKS * (1 + processor_time.FEWEST_RUNS)
