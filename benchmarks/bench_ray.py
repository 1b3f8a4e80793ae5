"""How much faster two local Ray workers finish a CPU-bound study than one. Not collected by pytest.

Run on an idle machine of two cores or more: OMP_NUM_THREADS=1 python benchmarks/bench_ray.py [trials]
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.study import engine
from tersor.pipeline.study.job import Job
from tersor.pipeline.study.trial import Trial


def jobs(count: int) -> list[Job]:
    """Trainings on digits that differ in their seed, one thread each, seconds long."""
    trainings = []
    for seed in range(count):
        recipe = Recipe.model_validate(
            {
                "name": f"bench-{seed}",
                "seed": seed,
                "threads": 1,
                "model": "mnist",
                "data": {"kind": "digits"},
                "stages": [{"stage": "train", "epochs": 60, "batch_size": 64}],
            }
        )
        plain = recipe.model_dump(mode="json")
        trainings.append(Job(seed, f"{seed}", {"seed": seed}, plain, "runs", f"{seed}.json", False))
    return trainings


def seconds(workers: int, count: int, folder: Path) -> float:
    """Of a whole study: the start of Ray and of its workers included."""
    folder.mkdir()
    os.chdir(folder)
    began, records = time.perf_counter(), list[Trial]()
    engine.run_jobs(jobs(count), "ray", workers, records.append)
    spent = time.perf_counter() - began
    assert [record.state for record in records] == ["finished"] * count
    engine.stop()
    return spent


def main(count: int) -> None:
    """Print both times and their ratio."""
    print(f"{count} trials, 1 thread each; load before: {os.getloadavg()[0]:.1f}", flush=True)
    with TemporaryDirectory() as base:
        one, two = (seconds(workers, count, Path(base) / f"{workers}") for workers in (1, 2))
        os.chdir("/")  # away from what is removed
    print(f"1 worker {one:.1f} s, 2 workers {two:.1f} s: {one / two:.2f}x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
