"""Our scenarios beside MLPerf's LoadGen, on the same files. Not collected by pytest.

    python benchmarks/bench_scenarios.py FILE.onnx [...] [--bound-ms 3.0] [--rounds 5] [--force]

Needs mlcommons-loadgen (the extra `loadgen`). Both engines take turns; a line gives the middle of their
rounds and how far they are apart. Single stream: p90. Offline: samples a second at batch 32. Server: the rate
that the bound on p99 allows. First, whether both draw the same arrivals. Exit code 1 where they differ by
more than 3 %.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from tersor.export.timing.loadgen import LoadGen
from tersor.export.timing.scenarios import arrivals
from tersor.machine import cpu_features
from tersor.pipeline.lessons.scenarios_run import ENGINES, run_scenarios

NEAR = 0.03
FIGURES = {"single-stream": "p90_ms", "offline": "samples_per_s", "server": "rate_per_s"}


def arrivals_apart_ms(rate: float = 200.0, queries: int = 200, seed: int = 3) -> float:
    """How far LoadGen's queries are from ours of the same seed, milliseconds, the median."""
    seen = list[float]()
    LoadGen().server(lambda: seen.append(time.perf_counter()), rate, queries, seed)
    return 1e3 * float(np.median(np.abs(np.array(seen) - seen[0] - arrivals(rate, queries, seed))))


def figure(path: Path, scenario: str, engine: str, bound_ms: float, force: bool) -> float:
    """The scenario's own figure."""
    more = {"p99_ms": bound_ms, "queries": 2000} if scenario == "server" else {}
    batches = [32] if scenario == "offline" else None
    (row,) = run_scenarios([path], scenario, engine=engine, batches=batches, seconds=1.5, force=force, **more)
    told = row.plain()
    return float(
        told[{"single-stream": "p90_ms", "offline": "samples_per_s", "server": "rate_per_s"}[scenario]]
    )


def main() -> int:
    """Print a line for each file and scenario."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--bound-ms", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--force", action="store_true")
    asked = parser.parse_args()
    print(
        f"{cpu_features()}; one thread; {asked.rounds} rounds in turn; server: p99 within {asked.bound_ms} ms"
    )
    worst = 0.0
    for path in asked.files:
        for scenario in ("single-stream", "offline", "server"):
            found: dict[str, list[float]] = {engine: [] for engine in ENGINES}
            for _ in range(asked.rounds):
                for engine, values in found.items():
                    values.append(figure(path, scenario, engine, asked.bound_ms, asked.force))
            ours, theirs = (float(np.median(found[engine])) for engine in ENGINES)
            apart = ours / theirs - 1
            worst = max(worst, abs(apart))
            ranges = ", ".join(f"{engine} {min(v):.4g} to {max(v):.4g}" for engine, v in found.items())
            print(
                f"{path.name} {scenario}: {ours:.4g} and {theirs:.4g}, {100 * apart:+.1f} %  ({ranges})",
                flush=True,
            )
    return int(worst > NEAR)


if __name__ == "__main__":
    sys.exit(main())
