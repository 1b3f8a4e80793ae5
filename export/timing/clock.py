"""Processor time of a run: what holds when other processes share the machine."""

import time
from collections.abc import Callable, Mapping

import numpy as np

PERCENTILE = 10
BLOCKS = 5
FEWEST_RUNS = 4


def processor_ms(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of processor time of this thread that a run of each call takes, a low percentile.

    Args:
        calls: name -> a function of no arguments; blocks of runs of all of them in turn.
        seconds: processor time spent on each call.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(BLOCKS):
        for name, call in calls.items():
            call()  # finds the caches of another
            runs, began = list[float](), time.thread_time()
            while len(runs) < FEWEST_RUNS or time.thread_time() - began < seconds / BLOCKS:
                start = time.thread_time_ns()
                call()
                runs.append((time.thread_time_ns() - start) / 1e6)
            found[name].append(float(np.percentile(runs, PERCENTILE)))
    return {name: float(np.median(blocks)) for name, blocks in found.items()}
