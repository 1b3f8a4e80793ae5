"""Run many trials at once: joblib's local processes, or a Ray cluster through the same code path.

A worker that dies takes no finished trial with it: every trial writes its own record, and what has none is
run again; in the last round each trial has a process of its own, so that the one that kills its worker is
found and recorded.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib

from tersor.models.errors import Unavailable
from tersor.pipeline.store import write_json
from tersor.pipeline.trial import Job, run_trial

ROUNDS = 2
"""How often a pool that lost a worker is started again before trials run one by one."""


def run_jobs(
    jobs: Sequence[Job],
    engine: str,
    workers: int,
    done: Callable[[dict[str, Any]], None],
    address: str | None = None,
) -> None:
    """Run jobs and hand each record to `done` as it comes.

    Args:
        engine: `local` or `ray`.
        workers: how many at once.
        address: of a Ray cluster; None: a local one.

    Raises:
        Unavailable: Ray is not installed or the cluster cannot be reached.
    """
    left = list(jobs)
    with _backend(engine, workers, address):
        for _ in range(ROUNDS):
            if left:
                left = _one_pool(left, workers, done)
    for job in left:
        if _one_pool([job], 1, done, backend="loky"):
            done(_lost(job))


def default_workers() -> int:
    """One worker a core this process may use."""
    return len(os.sched_getaffinity(0))


def _one_pool(
    jobs: list[Job], workers: int, done: Callable[[dict[str, Any]], None], backend: str | None = None
) -> list[Job]:
    """Run jobs in one pool; returns those without a record because a worker died."""
    seen: set[str] = set()
    pool = joblib.Parallel(
        n_jobs=workers, backend=backend, return_as="generator_unordered", pre_dispatch="2*n_jobs"
    )
    try:
        for record in pool(joblib.delayed(run_trial)(job) for job in jobs):
            seen.add(record["key"])
            done(record)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # joblib, loky and ray each have their own classes for a dead worker
        if not _is_lost_worker(error):
            raise
    return [job for job in jobs if job.key not in seen]


def _is_lost_worker(error: BaseException) -> bool:
    words = f"{type(error).__name__} {error}"
    return any(
        w in words
        for w in ("TerminatedWorker", "BrokenProcessPool", "ActorDied", "RayActorError", "WorkerCrashed")
    )


def _lost(job: Job) -> dict[str, Any]:
    record = {
        "trial": job.number, "key": job.key, "settings": job.settings, "seed": job.recipe["seed"],
        "state": "failed", "error": "its worker died (killed, or out of memory)", "metrics": {}, "stages": [],
    }  # fmt: skip
    write_json(Path(job.record), record)
    return record


@contextlib.contextmanager
def _backend(engine: str, workers: int, address: str | None) -> Iterator[None]:
    if engine == "local":
        with joblib.parallel_config(backend="loky", n_jobs=workers):
            yield
        return
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise Unavailable(
            "the study asks for Ray, which is not installed",
            todo="pip install 'tersor[cluster]', or use engine: local",
        ) from error
    quietly = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=address, num_cpus=None if address else workers, ignore_reinit_error=True, **quietly)
    except Exception as error:
        raise Unavailable(
            "the Ray cluster cannot be reached",
            got=str(error).splitlines()[0],
            where=address or "a local cluster",
            todo="Check `address`, or use engine: local",
        ) from error
    register_ray()
    try:
        with joblib.parallel_config(backend="ray", n_jobs=workers):
            yield
    finally:
        ray.shutdown()
