"""Time models against each other: interleaved in one process, with intervals, never on a fallback."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tersor.errors import BadInput
from tersor.export.codec.pack import unpack_bytes
from tersor.export.timing.parity import outputs
from tersor.export.timing.providers import TARGETS, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SHORTEST_SAMPLE_MS = 0.2
"""A sample is the mean of as many runs as fill this time: the clock and the loop cost under 0.1 %."""
FEWEST_ROUNDS, MOST_ROUNDS = 30, 4000
WARM_UP_SECONDS = 0.05
RESAMPLES = 400
SAME_FILE_FRACTION = 0.03
"""Two sessions of one file differ by up to this much, through where their memory happens to lie."""


def time_files(
    models: Sequence[Path],
    target: str,
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    progress: Callable[[float], None] = lambda _: None,
) -> list["LatencyRow"]:
    """Time .onnx and .tsr files against the first one; as `benchmark`.

    Raises:
        BadInput: a file is missing or damaged. Unavailable: the target is not there.
    """
    missing = [path for path in models if not path.is_file()]
    if missing:
        raise BadInput("a model file is missing", where=missing[0], todo="Run `tersor deploy` first")
    return benchmark(
        {str(p): unpack_bytes(p.read_bytes()) if p.suffix == ".tsr" else p for p in models},
        target,
        baseline=str(models[0]),
        batches=batches,
        threads=threads,
        seconds_per_model=seconds,
        progress=progress,
    )


class Runs(Protocol):
    """What is timed: an ONNX Runtime session, or a function that stands in for one."""

    def run(self, _outputs: None, _feed: dict[str, Any], /) -> Any:
        """One run."""


@dataclass(frozen=True)
class _Call:
    """A function timed the way a session is."""

    call: Callable[[], object]

    def run(self, _outputs: None, _feed: dict[str, Any], /) -> object:
        """Call it."""
        return self.call()


@dataclass(frozen=True)
class LatencyRow:
    """One model on one target at one batch size and number of threads.

    p50_ms, p90_ms, p99_ms: percentiles over the rounds, milliseconds per run of a whole batch.
    p50_low_ms, p50_high_ms: 95 % interval of the median (order statistics).
    speedup: the baseline's p50 over this model's, same interleaved run; speedup_low and
        speedup_high are its 95 % interval (bootstrap over blocks of rounds).
    distinguishable: the two medians' intervals do not overlap, the speed-up's interval leaves out
        1, and it differs from 1 by more than two sessions of one file do (3 %).
    throughput_per_s: images a second at p50.
    rounds: samples taken.
    """

    file: str
    provider: str
    batch: int
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    speedup: float
    p50_low_ms: float
    p50_high_ms: float
    speedup_low: float
    speedup_high: float
    distinguishable: bool
    throughput_per_s: float
    rounds: int


def benchmark(
    models: Mapping[str, Path | bytes],
    target: str,
    *,
    baseline: str,
    batches: Sequence[int] = (1, 64),
    threads: Sequence[int] = (1,),
    seconds_per_model: float = 1.0,
    inputs: np.ndarray | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[LatencyRow]:
    """Time every model at every batch size and number of threads.

    All models of one (batch, threads) run in turn in this process, one sample each a round, the
    order rotated every round, so that a slow moment of the machine hits all of them. Runs go
    through Python with numpy arrays, copies to and from a GPU included. Very fast models are timed
    over several runs a sample, whose mean then counts as one run in the percentiles.

    Args:
        models: name -> file, or bytes.
        target: a key of `providers.TARGETS`.
        baseline: the name whose p50 the speed-ups divide.
        batches: images per run.
        threads: intra-op threads; with more than one, idle workers sleep (see `open_session`).
        seconds_per_model: time spent per model at each (batch, threads).
        inputs: images to run, float32 (N, C, H, W), repeated as needed; None: noise.
        progress: called with the fraction done, 0 to 1.

    Returns:
        One row per batch, threads and model, in this order.

    Raises:
        BadInput: the baseline is not among the models; a model does not load or fit the inputs.
        Unavailable: the target is not there or does not run every node.
    """
    if baseline not in models:
        raise BadInput("the baseline is not among the models", got=baseline, wanted=", ".join(models))
    rows: list[LatencyRow] = []
    settings = [(batch, count) for batch in batches for count in threads]
    for done, (batch, count) in enumerate(settings):
        sessions = {name: open_session(model, target, threads=count) for name, model in models.items()}
        feeds = {name: _feed(session, inputs, batch) for name, session in sessions.items()}
        for name, session in sessions.items():
            outputs(session, next(iter(feeds[name].values())))  # a wrong shape is told here, in words

        def report(fraction: float, done: int = done) -> None:
            """Tell the fraction of all settings that is done."""
            if progress is not None:
                progress((done + fraction) / len(settings))

        samples = _interleave(sessions, feeds, seconds_per_model, report)
        rows += [
            _row(name, TARGETS[target], batch, count, samples[name], samples[baseline]) for name in models
        ]
        del sessions  # before the next ones open: idle sessions hold threads and memory
        report(1.0)
    return rows


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    provider: str,
    batch: int,
    threads: int,
    seconds_per_call: float = 1.0,
    progress: Callable[[float], None] = lambda _: None,
) -> list[LatencyRow]:
    """Time functions against each other the way `benchmark` times models: interleaved, with intervals.

    Args:
        calls: name -> a function of no arguments, one run of a whole batch each.
        baseline: the name whose p50 the speed-ups divide.
        provider, batch, threads: what the rows are to say; the functions see to it themselves.
        seconds_per_call: time spent per function.
        progress: called with the fraction done, 0 to 1.

    Raises:
        BadInput: the baseline is not among the functions.
    """
    if baseline not in calls:
        raise BadInput("the baseline is not among the functions", got=baseline, wanted=", ".join(calls))
    runs = {name: _Call(call) for name, call in calls.items()}
    samples = _interleave(runs, dict.fromkeys(calls, {}), seconds_per_call, progress)
    return [_row(name, provider, batch, threads, samples[name], samples[baseline]) for name in calls]


def _feed(session: "InferenceSession", inputs: np.ndarray | None, batch: int) -> dict[str, np.ndarray]:
    entry = session.get_inputs()[0]
    if inputs is None:
        shape = [d if isinstance(d, int) else 1 for d in entry.shape[1:]]
        inputs = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    chosen = inputs[np.arange(batch) % len(inputs)]
    return {entry.name: np.ascontiguousarray(chosen, np.float32)}


def _interleave(
    sessions: Mapping[str, Runs],
    feeds: Mapping[str, dict[str, np.ndarray]],
    seconds_per_model: float,
    report: Callable[[float], None],
) -> dict[str, np.ndarray]:
    """Milliseconds per run: name -> float64 (rounds,); index i of all models is the same round."""
    runs = {name: _runs_per_sample(sessions[name], feeds[name]) for name in sessions}
    names = list(sessions)
    samples: dict[str, list[float]] = {name: [] for name in names}
    budget = seconds_per_model * len(names)
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = reported = time.perf_counter()
        for turn in range(MOST_ROUNDS):
            for step in range(len(names)):
                name = names[(turn + step) % len(names)]
                samples[name].append(_sample_ms(sessions[name], feeds[name], runs[name]))
            now = time.perf_counter()
            if now - start >= budget and turn + 1 >= FEWEST_ROUNDS:
                break
            if now - reported > 0.2:
                report(min(1.0, (now - start) / budget))
                reported = now
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(values) for name, values in samples.items()}


def _runs_per_sample(session: Runs, feed: dict[str, np.ndarray]) -> int:
    """Warm up, and return how many runs make one sample."""
    fastest, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < WARM_UP_SECONDS or fastest == float("inf"):
        fastest = min(fastest, _sample_ms(session, feed, 1))
    return max(1, round(SHORTEST_SAMPLE_MS / fastest))


def _sample_ms(session: Runs, feed: dict[str, Any], runs: int) -> float:
    run = session.run
    start = time.perf_counter_ns()
    for _ in range(runs):
        run(None, feed)
    return (time.perf_counter_ns() - start) / runs / 1e6


def _row(
    name: str, provider: str, batch: int, threads: int, samples: np.ndarray, base: np.ndarray
) -> LatencyRow:
    p50, p90, p99 = (float(v) for v in np.percentile(samples, [50, 90, 99]))
    low, high = _median_interval(samples)
    speedup = float(np.median(base)) / p50
    speedup_low, speedup_high = _ratio_interval(base, samples)
    base_low, base_high = _median_interval(base)
    apart = (low > base_high or high < base_low) and not speedup_low <= 1.0 <= speedup_high
    return LatencyRow(
        name,
        provider,
        batch,
        threads,
        p50,
        p90,
        p99,
        speedup,
        low,
        high,
        speedup_low,
        speedup_high,
        apart and abs(speedup - 1.0) > SAME_FILE_FRACTION,
        batch / p50 * 1e3,
        len(samples),
    )


def _median_interval(samples: np.ndarray) -> tuple[float, float]:
    """95 % interval of the median: the ranks n/2 -+ 0.98 sqrt(n) (normal limit of the binomial)."""
    ordered, count = np.sort(samples), len(samples)
    reach = 0.98 * np.sqrt(count)
    low = max(0, int(np.floor(count / 2 - reach)))
    high = min(count - 1, int(np.ceil(count / 2 + reach)))
    return float(ordered[low]), float(ordered[high])


def _ratio_interval(base: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of median(base) / median(samples).

    Whole blocks of consecutive rounds are drawn, the same for both: neighbouring rounds resemble
    each other, and drawing single ones would make the interval too narrow.
    """
    blocks = min(30, len(samples))
    size = len(samples) // blocks
    rng = np.random.default_rng(0)
    shaped = [a[: blocks * size].reshape(blocks, size) for a in (base, samples)]
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, blocks, blocks)
        ratios[i] = np.median(shaped[0][drawn]) / np.median(shaped[1][drawn])
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
