"""Run many trials at once: joblib's local processes, or a Ray cluster through the same code path.

Both are a pool that takes a function and a job and gives a future. A worker that dies takes no finished
trial with it: what it was working on is run again, alone in a process of its own, and recorded as failed
when that process dies too.
"""

import atexit
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tersor.errors import Unavailable
from tersor.machine import THREAD_VARIABLES
from tersor.pipeline.study.job import Job
from tersor.pipeline.study.trial import Trial, failed, finished, run_trial

"""Read by the libraries when they are loaded: they must stand when a worker starts."""
TRIES = 3
"""How often a trial alone is given to another worker when the one that watches it dies."""
WATCH_SECONDS = 2.0
"""How often the jobs under way are looked at."""
IDLE_SECONDS = 600
"""Idle local workers end after this time; until then the next round of a search finds them warm."""


class Pool(Protocol):
    """Workers: `submit` runs function(job) on one of them; `lost` is what a future of a dead one raises."""

    lost: tuple[type[BaseException], ...]

    def submit(self, function: Callable[[Job], Trial], job: Job) -> "Future[Trial]":
        """Run function(job) on a free worker."""
        ...

    def stop(self) -> None:
        """End all workers, at once."""
        ...


def run_jobs(
    jobs: Sequence[Job],
    engine: str,
    workers: int,
    done: Callable[[Trial], None],
    address: str | None = None,
    watch: Callable[[Sequence[Job]], None] | None = None,
) -> None:
    """Run jobs and hand each trial to `done` as it ends.

    Workers stay for the next call; `stop` ends them. An error or Ctrl-C ends them at once.

    Args:
        jobs: what to run; relative paths in them are relative to this process's folder.
        engine: `local` or `ray`.
        workers: how many trials at once.
        done: called in this process, in the order in which trials end.
        address: of a Ray cluster; None: a local one.
        watch: called in this process, every two seconds, with the jobs under way.

    Raises:
        Unavailable: Ray is not installed, the cluster cannot be reached, or does not see the folder.
    """
    if not jobs:
        return
    pool = _warm_pool(engine, workers, max(job.recipe["threads"] for job in jobs), address)
    try:
        lost = _run(pool, run_trial, jobs, workers, done, watch)
        for _ in range(TRIES):
            lost = _run(pool, run_alone, lost, workers, done, watch)
        for job in lost:
            done(_died(job, "the worker that watched it died too"))
    except BaseException:
        stop()
        raise


def prepare(engine: str, workers: int, threads: int, address: str | None = None) -> None:
    """Start the workers, or reach the cluster, that `run_jobs` will find with the same arguments.

    Raises:
        Unavailable: Ray is not installed, or the cluster cannot be reached.
    """
    _warm_pool(engine, workers, threads, address)


def default_workers() -> int:
    """One worker a core this process may use."""
    return len(os.sched_getaffinity(0))


def run_alone(job: Job) -> Trial:
    """Run a trial in a process of its own; its death becomes part of its record."""
    ended = subprocess.run([sys.executable, "-c", _ALONE], input=pickle.dumps(job), capture_output=True)
    if ended.returncode < 0:
        return _died(job, f"killed by {signal.Signals(-ended.returncode).name}, twice; out of memory?")
    if ended.returncode > 0:
        return _died(job, (ended.stderr.decode(errors="replace").strip().splitlines() or ["?"])[-1])
    if job.depth is not None:
        return finished(job)
    return Trial.read(Path(job.record), todo="Run the study again")


_ALONE = """
import pickle, sys
from tersor.pipeline.study.trial import run_trial
run_trial(pickle.load(sys.stdin.buffer))
"""


def stop() -> None:
    """End the workers that wait for the next call: before a timing, and when a study is done."""
    while _warm:
        _warm.popitem()[1].stop()


_warm: dict[tuple[Any, ...], Pool] = {}
atexit.register(stop)


def _warm_pool(engine: str, workers: int, threads: int, address: str | None) -> Pool:
    key = (engine, workers, threads, address)
    if key not in _warm:
        stop()
        ray = engine == "ray"
        _warm[key] = _Ray(workers, threads, address) if ray else _Local(workers, threads)
    return _warm[key]


def _run(
    pool: Pool,
    function: Callable[[Job], Trial],
    jobs: Sequence[Job],
    workers: int,
    done: Callable[[Trial], None],
    watch: Callable[[Sequence[Job]], None] | None,
) -> list[Job]:
    """Run all jobs, `workers` at a time; returns those whose worker died."""
    waiting, running, lost = deque(jobs), dict["Future[Trial]", Job](), list[Job]()
    ended: list[Trial] = []
    while waiting or running or ended:
        while waiting and len(running) < workers:
            job = waiting.popleft()
            running[pool.submit(function, job)] = job
        while ended:  # while the workers work on the next
            done(ended.pop(0))
        for future in wait(running, WATCH_SECONDS, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            try:
                ended.append(future.result())
            except pool.lost:
                lost.append(job)
        if watch is not None and running:
            watch(list(running.values()))
    return lost


def _died(job: Job, how: str) -> Trial:
    trial = replace(failed(job, f"its process died ({how})"), recipe=None)
    if job.depth is None:
        trial.write(Path(job.record))
    return trial


def _in_folder(folder: str, function: Callable[[Job], Trial], job: Job) -> Trial:
    """What a worker calls: a worker may be older than a change of folder here, or on another machine."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise Unavailable(
            "a worker does not see the folder the study runs in",
            got=error.strerror,
            where=f"{folder} on {socket.gethostname()}",
            todo="Run the study in a folder that all machines share under the same path",
        ) from error
    return function(job)


class _Local:
    """joblib's local processes (its loky), without the queue of joblib.Parallel.

    Parallel runs a single worker inside this process, where a trial that kills its worker kills the
    study, and gives up all trials under way when one worker dies.
    """

    def __init__(self, workers: int, threads: int) -> None:
        from joblib.externals.loky.process_executor import BrokenProcessPool

        # loky replaces a worker whose memory has grown, between two trials: nothing a reader could act on
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
        self.workers, self.env = workers, dict.fromkeys(THREAD_VARIABLES, str(threads))
        self.lost: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def _executor(self) -> Any:
        from joblib.externals.loky import get_reusable_executor

        return get_reusable_executor(
            self.workers, timeout=IDLE_SECONDS, env=self.env, initializer=_ignore_interrupts
        )

    def submit(self, function: Callable[[Job], Trial], job: Job) -> "Future[Trial]":
        """Run function(job); a pool that broke a moment ago is replaced."""
        while True:
            with contextlib.suppress(*self.lost):
                return self._executor().submit(_in_folder, os.getcwd(), function, job)

    def stop(self) -> None:
        """Kill all workers and what they started."""
        self._executor().shutdown(wait=True, kill_workers=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; the study answers it and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Ray:
    """Ray tasks, one a trial, each claiming the cores it uses, so that Ray spreads them over machines.

    Not ray.util.joblib: its pool hands trials out in turn, whether a worker is busy or free, claims no
    cores, and ends every trial under way when one worker dies.
    """

    def __init__(self, workers: int, threads: int, address: str | None) -> None:
        from tersor.pipeline.study.ray_cluster import connect, lost_worker, submitter

        self._disconnect = connect(address, workers * threads)
        self.lost = lost_worker()
        self._submit = submitter(workers, threads, dict.fromkeys(THREAD_VARIABLES, str(threads)))

    def submit(self, function: Callable[[Job], Trial], job: Job) -> "Future[Trial]":
        """Run function(job) where Ray has free cores."""
        return self._submit(_in_folder, os.getcwd(), function, job)

    def stop(self) -> None:
        """Leave the cluster, which ends what it still runs for this process; end a local one."""
        self._disconnect()
