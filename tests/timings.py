"""Benchmarks with given times, for tests of what is made of them: nothing is timed, nothing can be slow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.export.timing.benchmark import FEWEST_ROUNDS, LatencyRow, _row


def given_times(ms: Callable[[Path], float]) -> Callable[..., list[LatencyRow]]:
    """What stands in for `benchmark`: every run of a file takes `ms(file)` milliseconds."""

    def benchmark(
        models: Mapping[str, Path],
        target: str,
        *,
        baseline: str,
        batches: Sequence[int],
        threads: Sequence[int],
        **_: Any,
    ) -> list[LatencyRow]:
        samples = {name: np.full(FEWEST_ROUNDS, ms(file)) for name, file in models.items()}
        return [
            _row(name, target, batch, count, samples[name], samples[baseline])
            for batch in batches
            for count in threads
            for name in models
        ]

    return benchmark
