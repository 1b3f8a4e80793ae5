"""LoadGen as the engine, on what stands in for its library; the real one: benchmarks/bench_scenarios.py."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tersor.errors import TersorError, Unavailable
from tersor.export.timing.loadgen import LoadGen


class Library:
    """Issues queries of samples and writes the log, as the library does."""

    TestScenario = SimpleNamespace(SingleStream="SingleStream", Offline="Offline", Server="Server")
    TestMode = SimpleNamespace(PerformanceOnly="PerformanceOnly")
    TestSettings = LogSettings = staticmethod(lambda: SimpleNamespace(log_output=SimpleNamespace()))

    def __init__(self):
        self.asked, self.done, self.dropped = None, [], 0

    def ConstructSUT(self, issue, flush):  # noqa: N802
        return issue

    def ConstructQSL(self, *_):  # noqa: N802
        return "samples"

    def DestroyQSL(self, _):  # noqa: N802
        pass

    def DestroySUT(self, _):  # noqa: N802
        pass

    def QuerySampleResponse(self, one, *_):  # noqa: N802
        return one

    def QuerySamplesComplete(self, responses):  # noqa: N802
        self.done.append(responses)

    def StartTestWithLogSettings(self, issue, _, asked, log, audit):  # noqa: N802
        self.asked = asked
        assert not Path(audit).exists()
        count, each = (
            (1, asked.min_query_count) if asked.scenario == "Offline" else (asked.min_query_count, 1)
        )
        for query in range(count):
            issue([SimpleNamespace(id=query * each + sample) for sample in range(each)])
        told = {
            "result_query_count": count - self.dropped,
            "generated_samples_per_query": each,
            "result_qps_with_loadgen_overhead": 10.0,
            "result_samples_per_second": 20.0,
            "result_completed_samples_per_sec": 30.0,
            **{f"result_{p}.00_percentile_latency_ns": p * 1_000_000 for p in (50, 90, 99)},
        }
        lines = [f":::MLLOG {json.dumps({'key': k, 'value': v})}" for k, v in told.items()]
        Path(log.log_output.outdir, "mlperf_log_detail.txt").write_text("\n".join(lines))


@pytest.fixture
def library(monkeypatch):
    stand_in = Library()
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", stand_in)
    return stand_in


def test_queries_are_those_asked_for_and_latencies_those_of_the_log(library):
    ran = []
    told = LoadGen().server(lambda: ran.append(1), 250.0, 700, 5)
    assert (len(ran), told.queries, told.p50_ms, told.p99_ms, told.per_s) == (700, 700, 50.0, 99.0, 30.0)
    assert (library.asked.server_target_qps, library.asked.schedule_rng_seed) == (250.0, 5)


def test_offline_runs_whole_batches_and_answers_every_sample(library):
    ran = []
    assert LoadGen().offline(lambda: ran.append(1), 4, 8) == 20.0
    assert (len(ran), [len(batch) for batch in library.done]) == (4, [8] * 4)


def test_what_the_function_raises_comes_out_after_loadgen_has_ended(library):
    def fails():
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        LoadGen().single_stream(fails, 3)
    assert len(library.done) == 3, "or LoadGen would wait for ever"


def test_a_test_that_loadgen_cut_short_is_no_figure(library):
    library.dropped = 1
    with pytest.raises(TersorError, match="did not run the test as it was asked to"):
        LoadGen().single_stream(list, 10)


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(Unavailable, match=r"not available.*pip install 'tersor\[loadgen\]'"):
        LoadGen()
