"""How far the trials under way are: each worker leaves a word in a small file beside the records."""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tersor.files import write_json
from tersor.pipeline.study.job import Job
from tersor.progress import Tell

SECONDS = 2.0
"""How often a worker writes, and how often the study looks."""


def file_of(job: Job) -> Path:
    """Where a job says how far it is: on the disk that the workers and the study share anyway."""
    return Path(job.record).with_name(f"{job.key}.progress")


@contextlib.contextmanager
def heartbeat(job: Job) -> Iterator[Tell]:
    """What takes a job's progress (0 to 1, a few words); its file is gone when the job ends.

    A file that cannot be written is no reason for a trial to fail.
    """
    path, written = file_of(job), -SECONDS

    def tell(fraction: float, words: str) -> None:
        """Write it, at most every two seconds and never half."""
        nonlocal written
        if time.monotonic() - written >= SECONDS:
            written = time.monotonic()
            with contextlib.suppress(OSError):
                write_json(path, {"fraction": fraction, "words": words})

    try:
        yield tell
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def listen(jobs: Sequence[Job]) -> tuple[float, str]:
    """How many jobs' worth of work the jobs under way have done, and the words of the furthest."""
    done, furthest, words = 0.0, -1.0, ""
    for job in jobs:
        try:
            told = json.loads(file_of(job).read_text())
            fraction = float(told["fraction"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not begun, or just ended
        done += fraction
        if fraction > furthest:
            furthest, words = fraction, str(told["words"])
    if len(jobs) > 1 and words:
        words = f"{len(jobs)} under way, the furthest: {words}"
    return done, words
