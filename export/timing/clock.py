"""How long calls take by the processor's own clock, which other processes do not stop."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def processor_ms(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Low percentile of the processor time of a run, in ms: what a run takes where nothing disturbs it.

    Args:
        calls: name -> one run. Interleaved, in blocks.
        seconds: of processor time, for each of them.
    """
    runs = {name: _runs(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = 0.0
    while spent < seconds * len(calls):
        for name, call in calls.items():
            for turn in range(7):
                start = time.thread_time_ns()
                for _ in range(runs[name]):
                    call()
                taken = time.thread_time_ns() - start
                spent += taken / 1e9
                if turn > 1:
                    samples[name].append(taken / runs[name] / 1e6)
    return {name: float(np.percentile(values, 10)) for name, values in samples.items()}


def _runs(call: Callable[[], object]) -> int:
    """How many runs make one sample of 0.2 ms or more."""
    fastest = float("inf")
    for _ in range(5):
        start = time.thread_time_ns()
        call()
        fastest = min(fastest, (time.thread_time_ns() - start) / 1e6)
    return max(1, round(0.2 / max(fastest, 1e-3)))
