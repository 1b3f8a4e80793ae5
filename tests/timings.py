"""Benchmarks with given times, for tests of what is made of them: nothing is timed, nothing can be slow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.export.timing.benchmark import AGAIN, Timings, _Asked, _rows_of
from tersor.export.timing.clock import Signs
from tersor.export.timing.latency import FEWEST_SITTINGS
from tersor.export.timing.sampling import Sitting

QUIET = Signs(1.0, 1.0, 2, 0.0, 0.0, 1, 2)
"""What is seen of a machine that nobody else uses."""
BUSY = Signs(1.0, 0.4, 100, 1.6, 0.0, 1, 2)
"""And of one that others use."""


def sitting(ms: Mapping[str, float], signs: Signs = QUIET) -> Sitting:
    """One in which every run of a model takes the given milliseconds."""
    samples = {name: np.full(30, value) for name, value in ms.items()}
    return Sitting(samples, samples, signs)


def given_times(ms: Callable[[Path], float]) -> Callable[..., Timings]:
    """What stands in for `benchmark`: every run of a file takes `ms(file)` milliseconds."""

    def benchmark(
        models: Mapping[str, Path],
        target: str,
        *,
        baseline: str,
        batches: Sequence[int],
        threads: Sequence[int],
        **_: Any,
    ) -> Timings:
        times = {AGAIN: ms(models[baseline]), **{name: ms(file) for name, file in models.items()}}
        sittings = [sitting(times)] * FEWEST_SITTINGS
        settings = [_Asked(target, b, t, on_processor=True, force=False) for b in batches for t in threads]
        return Timings(tuple(row for asked in settings for row in _rows_of(sittings, baseline, asked)))

    return benchmark
