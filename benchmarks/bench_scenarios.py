"""Our scenarios beside MLPerf's LoadGen, on the same files. Not collected by pytest.

    python benchmarks/bench_scenarios.py FILE.onnx [...] [--rounds 9] [--force]

Needs mlcommons-loadgen (the extra `loadgen`). Both engines take turns; a line gives the middle of their
rounds and how far they are apart. Single stream: p90. Offline: samples a second at batch 32. Server: p99 at
half the rate that one worker can do: the rate that a bound allows follows from it, and from how fast the
machine is at the moment. First, whether both draw the same arrivals. Exit code 1 where they differ by more
than 3 %.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from tersor.export.timing.loadgen import LoadGen
from tersor.export.timing.peers import onnxruntime_peer
from tersor.export.timing.scenarios import OURS, arrivals
from tersor.machine import cpu_features
from tersor.pipeline.lessons.scenarios_run import ENGINES, run_scenarios

NEAR = 0.03
FIGURES = {"single-stream": "p90_ms", "offline": "samples_per_s"}
QUERIES, WARM_UPS = 2000, 100


def arrivals_apart_ms(rate: float = 200.0, queries: int = 200, seed: int = 3) -> float:
    """How far LoadGen's queries are from ours of the same seed, milliseconds, the median."""
    seen = list[float]()
    LoadGen().server(lambda: seen.append(time.perf_counter()), rate, queries, seed)
    return 1e3 * float(np.median(np.abs(np.array(seen) - seen[0] - arrivals(rate, queries, seed))))


def figure(path: Path, scenario: str, engine: str, rate: float, force: bool) -> float:
    """The scenario's own figure; of the server p99 at a given rate."""
    if scenario == "server":
        return server_p99_ms(path, engine, rate)
    batches = [32] if scenario == "offline" else None
    (row,) = run_scenarios([path], scenario, engine=engine, batches=batches, seconds=1.5, force=force)
    return float(row.plain()[FIGURES[scenario]])


def server_p99_ms(path: Path, engine: str, rate: float) -> float:
    """Milliseconds, of queries that arrive at this rate."""
    call = onnxruntime_peer(path.read_bytes(), "cpu", batch=1, threads=1)[0].run
    for _ in range(WARM_UPS):
        call()
    return (LoadGen() if engine == "loadgen" else OURS).server(call, rate, QUERIES, 0).p99_ms


def middle_rate(path: Path) -> float:
    """Half of what one worker can do, queries a second."""
    (row,) = run_scenarios([path], "single-stream", seconds=1.0, force=True)
    return 0.5 * float(row.plain()["queries_per_s"])


def main() -> int:
    """Print a line for each file and scenario."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--force", action="store_true")
    asked = parser.parse_args()
    print(f"{cpu_features()}; one thread; {asked.rounds} rounds in turn")
    worst = 0.0
    for path in asked.files:
        rate = middle_rate(path)
        for scenario in ("single-stream", "offline", "server"):
            found: dict[str, list[float]] = {engine: [] for engine in ENGINES}
            for _ in range(asked.rounds):
                for engine, values in found.items():
                    values.append(figure(path, scenario, engine, rate, asked.force))
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
