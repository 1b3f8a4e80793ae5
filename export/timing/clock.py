"""What the machine did while something was timed, and whether others used it: a busy clock is not believed.

A long run meets another process's turn and a short one does not, so that on a busy machine ratios come out
tight and wrong. Which signs tell, and which do not, was tried (docs/log.md): involuntary switches and the
share of elapsed time that a thread had the processor tell; wall time over processor time of single runs
does not.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

LEAST_SHARE = 0.97
"""Of elapsed time that a single thread has the processor on an idle machine: 0.99 or more."""
MOST_SWITCHES_PER_S, FEWEST_SWITCHES = 20.0, 5
"""Involuntary switches: 2 to 5 a second idle, 60 and more with one busy process a core. A few say nothing."""
MOST_STOLEN = 0.02
"""Processors that the hypervisor gave to others."""
MOST_CROWD = 0.2
"""By how much the processors in use may exceed those that are there: /proc/stat counts in 10 ms."""
STAT, GOVERNOR = Path("/proc/stat"), Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
TICKS_PER_S = 100


@dataclass(frozen=True)
class Signs:
    """What was seen while something was timed.

    elapsed_s: by the wall clock. processor_s: of the timing thread.
    involuntary_switches: how often the timing thread (all threads of the process, where `threads` is more
        than 1) had to make room. None: this system does not tell.
    others: processors that other processes used, on average. stolen: processors that the hypervisor gave
        to other machines. None: this system does not tell.
    threads: that were to run. processors: that are there.
    """

    elapsed_s: float
    processor_s: float
    involuntary_switches: int | None
    others: float | None
    stolen: float | None
    threads: int
    processors: int

    @property
    def share(self) -> float:
        """Fraction of elapsed time that the timing thread had a processor."""
        return self.processor_s / max(self.elapsed_s, 1e-9)

    @property
    def switches_per_s(self) -> float | None:
        """Involuntary switches a second."""
        if self.involuntary_switches is None:
            return None
        return self.involuntary_switches / max(self.elapsed_s, 1e-9)

    def busy(self, *, on_processor: bool = True) -> str | None:
        """Why times taken meanwhile are not to be believed, in words; None where nothing speaks against them.

        Args:
            on_processor: what was timed ran on the processor all the time: it did not wait for a GPU, or
                for threads of its own.
        """
        signs = []
        rate = self.switches_per_s
        if rate is not None and rate > MOST_SWITCHES_PER_S and self._switches > FEWEST_SWITCHES:
            signs.append(f"{rate:.0f} involuntary switches a second")
        if on_processor and self.threads == 1 and self.share < LEAST_SHARE:
            signs.append(f"{100 * self.share:.0f} % of the processor had")
        if self.others is not None and self.others + self.threads > self.processors + MOST_CROWD:
            signs.append(f"{self.others:.1f} of {self.processors} processors used by others")
        if self.stolen is not None and self.stolen > MOST_STOLEN:
            signs.append(f"{100 * self.stolen:.0f} % of a processor taken by the hypervisor")
        return ", ".join(signs) or None

    @property
    def _switches(self) -> int:
        return self.involuntary_switches or 0


@dataclass
class Watch:
    """Looks at the machine from its making on; `signs()` tells what was seen since."""

    threads: int = 1
    _began: "_Reading" = field(init=False)

    def __post_init__(self) -> None:
        self._began = _read(self.threads)

    def signs(self) -> Signs:
        """What was seen since the watch was made."""
        now, began = _read(self.threads), self._began
        elapsed = now.wall_s - began.wall_s
        own = (now.process_s - began.process_s) / max(elapsed, 1e-9)
        used, stolen = _rate(now.used_s, began.used_s, elapsed), _rate(now.stolen_s, began.stolen_s, elapsed)
        switches = None if now.switches is None or began.switches is None else now.switches - began.switches
        return Signs(
            elapsed,
            now.thread_s - began.thread_s,
            switches,
            None if used is None else max(0.0, used - own),
            stolen,
            self.threads,
            os.cpu_count() or 1,
        )


def together(signs: list[Signs]) -> Signs:
    """What was seen over several spans of time, at least one, of the same number of threads."""
    elapsed = sum(s.elapsed_s for s in signs)

    def average(values: list[float | None]) -> float | None:
        """Weighted by time; None where one of them is not told."""
        told = [v for v in values if v is not None]
        weights = [s.elapsed_s for s in signs]
        return float(np.average(told, weights=weights)) if len(told) == len(signs) and elapsed > 0 else None

    switches = [s.involuntary_switches for s in signs]
    return Signs(
        elapsed,
        sum(s.processor_s for s in signs),
        None if None in switches else sum(s or 0 for s in switches),
        average([s.others for s in signs]),
        average([s.stolen for s in signs]),
        signs[0].threads,
        signs[0].processors,
    )


def load_average() -> float | None:
    """Processes that ran or wanted to, over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def governor() -> str:
    """How the clock speed is chosen, such as `performance`; `not told` in most virtual machines."""
    try:
        return GOVERNOR.read_text().strip() or "not told"
    except OSError:
        return "not told"


@dataclass(frozen=True)
class _Reading:
    wall_s: float
    thread_s: float
    process_s: float
    switches: int | None
    used_s: float | None
    stolen_s: float | None


def _read(threads: int) -> _Reading:
    used, stolen = _machine_seconds()
    wall, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
    return _Reading(wall, thread, process, _switches(threads), used, stolen)


def _switches(threads: int) -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    own = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return resource.getrusage(own if threads == 1 else resource.RUSAGE_SELF).ru_nivcsw


def _machine_seconds() -> tuple[float | None, float | None]:
    """Seconds that all processors worked, and that the hypervisor took, since the machine started."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split("\n")[0].split()[1:9])
        return (user + nice + system + irq + softirq) / TICKS_PER_S, steal / TICKS_PER_S
    return None, None


def _rate(now: float | None, began: float | None, elapsed: float) -> float | None:
    return None if now is None or began is None else (now - began) / max(elapsed, 1e-9)
