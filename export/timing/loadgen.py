"""MLPerf's LoadGen as the engine of scenarios.py: it draws and issues the queries and takes the time.

LoadGen calls the function from the thread that started the test and goes on when it returns, so that here too
one worker serves queries in order of arrival. Its own part of a query is microseconds (a call from C++ into
Python and back), which counts for functions that take less than a tenth of a millisecond.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.errors import TersorError, Unavailable
from tersor.export.timing.scenarios import Call, Latency

LONGEST_BOUND_NS = 10**12
"""The server's own verdict is not asked for: scenarios.py judges p99."""


@dataclass(frozen=True)
class LoadGen:
    """The engine; see `Engine` for what each method gives.

    Its methods raise TersorError where LoadGen reports an error, and whatever the function raises.

    Raises:
        Unavailable: mlcommons-loadgen is not installed.
    """

    name: str = "loadgen"

    def __post_init__(self) -> None:
        _library()

    def single_stream(self, call: Call, queries: int) -> Latency:
        """One query after the other."""
        told = _run("SingleStream", call, queries)
        return _latency(told, told["result_qps_with_loadgen_overhead"])

    def offline(self, call: Call, runs: int, batch: int) -> float:
        """Samples a second, when `runs` batches are at hand at once."""
        told = _run("Offline", call, runs * batch, batch=batch, offline_expected_qps=1.0)
        return float(told["result_samples_per_second"])

    def server(self, call: Call, rate: float, queries: int, seed: int) -> Latency:
        """Queries that arrive by chance, `rate` a second on average; latency counts from their arrival."""
        told = _run(
            "Server",
            call,
            queries,
            server_target_qps=rate,
            server_target_latency_ns=LONGEST_BOUND_NS,
            schedule_rng_seed=seed,
        )
        return _latency(told, told["result_completed_samples_per_sec"])


def why_not() -> str | None:
    """Why LoadGen cannot be used here; None when it can."""
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError as error:
        return f"mlcommons-loadgen is not installed ({error})"
    return None


def _library() -> Any:
    """The module.

    Raises:
        Unavailable: it is not installed.
    """
    reason = why_not()
    if reason is not None:
        raise Unavailable(
            "MLPerf's LoadGen is not available", got=reason, todo="pip install 'tersor[loadgen]'"
        )
    import mlperf_loadgen

    return mlperf_loadgen


def _run(scenario: str, call: Call, queries: int, *, batch: int = 1, **settings: float) -> dict[str, Any]:
    """What LoadGen's log says of one test of so many queries (of samples, in Offline)."""
    library = _library()
    asked = library.TestSettings()
    asked.scenario = getattr(library.TestScenario, scenario)
    asked.mode = library.TestMode.PerformanceOnly
    asked.min_duration_ms, asked.min_query_count = 0, queries  # then exactly so many are issued
    for name, value in settings.items():
        setattr(asked, name, value)
    failures = list[BaseException]()
    issue = _issue(library, call, batch, failures)
    with tempfile.TemporaryDirectory() as folder, _handles(library, issue) as (system, samples):
        log = library.LogSettings()
        log.log_output.outdir, log.log_output.copy_summary_to_stdout = folder, False
        log.enable_trace = False
        # by default LoadGen would take settings from an audit.config where the user happens to stand
        library.StartTestWithLogSettings(system, samples, asked, log, str(Path(folder) / "no-audit.config"))
        told = _read_log(Path(folder) / "mlperf_log_detail.txt")
    if failures:
        raise failures[0]
    _check(told, queries)
    return told


def _issue(
    library: Any, call: Call, batch: int, failures: list[BaseException]
) -> Callable[[Sequence[Any]], None]:
    """What LoadGen calls with a query's samples; an exception must not reach its C++ code."""

    def issue(samples: Sequence[Any]) -> None:
        """Run the samples batch by batch and say that they are done."""
        ids = [sample.id for sample in samples]
        for start in range(0, len(ids), batch):
            try:
                if not failures:
                    call()
            except BaseException as error:  # an interrupt too: it is raised when LoadGen has returned
                failures.append(error)
            done = ids[start : start + batch]
            library.QuerySamplesComplete([library.QuerySampleResponse(one, 0, 0) for one in done])

    return issue


@contextmanager
def _handles(library: Any, issue: Callable[[Sequence[Any]], None]) -> Iterator[tuple[Any, Any]]:
    """The system under test and its one sample, which is always in memory."""
    system = library.ConstructSUT(issue, lambda: None)
    samples = library.ConstructQSL(1, 1, lambda _: None, lambda _: None)
    try:
        yield system, samples
    finally:
        library.DestroyQSL(samples)
        library.DestroySUT(system)


def _read_log(path: Path) -> dict[str, Any]:
    """The log's keys and values: each line is `:::MLLOG` and a JSON object; of a key told twice, the last."""
    entries = (json.loads(line.split(" ", 1)[1]) for line in path.read_text().splitlines() if " " in line)
    return {entry["key"]: entry["value"] for entry in entries}


def _check(told: dict[str, Any], samples: int) -> None:
    issued = told.get("result_query_count", 0) * told.get("generated_samples_per_query", 0)
    if told.get("num_errors") or issued != samples:
        raise TersorError(
            "LoadGen did not run the test as it was asked to",
            got=told.get("error_runtime", f"{issued} samples"),
            wanted=f"{samples} samples",
        )


def _latency(told: dict[str, Any], per_s: float) -> Latency:
    p50, p90, p99 = (told[f"result_{part}.00_percentile_latency_ns"] / 1e6 for part in (50, 90, 99))
    return Latency(told["result_query_count"], p50, p90, p99, float(per_s))
