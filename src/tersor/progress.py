"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere (CI, log files)."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

QUIET_SECONDS, LONGEST_QUIET_SECONDS = 5.0, 60.0
"""Without a terminal, a step that takes longer says where it is this often, less and less as it goes on."""

DOUBT = 3
"""A step's own speed counts as much as what was thought of it after so many words: few come in jumps."""

LEAST_FRACTION = 0.02
"""Of a step: what its first moments took (imports, memory) says nothing of the rest."""

Tell = Callable[[float, str], None]
"""Told the fraction of a step that is done (0 to 1) and a few words."""


class Step(NamedTuple):
    """A part of a job.

    weight: its duration, relative to those of other steps; `timed`: in seconds, whatever the machine, as of
    work that goes on until so much time is over.
    """

    name: str
    weight: float
    timed: bool = False


class Reporter:
    """Progress over steps of known relative length; times elapsed and left are those of the whole job.

    What is left of a step is judged by its own speed, the steps after it by the speed of those before,
    but for timed ones.

    Args:
        steps: (name, weight) or `Step`, in order.
        quiet: say nothing at all.
        listener: is told the fraction of the whole job, without what came from a cache, and the words.
    """

    def __init__(
        self, steps: Sequence[tuple[str, float] | Step], *, quiet: bool = False, listener: Tell | None = None
    ) -> None:
        self.steps = [Step(*step) for step in steps]
        self.total = sum(step.weight for step in self.steps)
        self.done, self.index = 0.0, 0
        self.skipped = 0.0  # weight that came from a cache: no measure of speed
        self.quiet, self.console = quiet, Console(stderr=True, highlight=False)
        self.listener = listener
        self.fresh_weight, self.fresh_seconds = 0.0, 0.0  # of the steps that ended and no cache had
        self.started, self.told = time.monotonic(), time.monotonic()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> "Reporter":
        if self.console.is_terminal and not self.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=self.console)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, left="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    @contextmanager
    def step(self) -> Iterator[Tell]:
        """The next step; yields what tells how far it is."""
        name, weight, timed = self.steps[self.index]
        self.index += 1
        began, self.told = time.monotonic(), time.monotonic()
        last, fractions, skipped = [""], set[float](), self.skipped

        def tell(fraction: float, words: str) -> None:
            """Remember the words and show them."""
            last[0] = words
            if 0 < fraction < 1:
                fractions.add(fraction)
            left = self._seconds_left(fraction, time.monotonic() - began, len(fractions))
            self._show(name, self.done + weight * fraction, words, left)

        self._show(name, self.done, "", None)
        yield tell
        self.done += weight
        seconds = time.monotonic() - began
        if seconds < 0.05:
            self.skipped = min(self.skipped + weight, self.done)
        if (fresh := weight - (self.skipped - skipped)) > 0 and not timed:
            self.fresh_weight, self.fresh_seconds = self.fresh_weight + fresh, self.fresh_seconds + seconds
        self.line(f"{self._place()} {name:<14} {seconds:6.1f} s  {last[0]}")

    def reused(self) -> None:
        """Say that a cache had the step under way: it tells nothing about the speed."""
        self.skipped += self.steps[self.index - 1].weight

    def announce(self, words: str) -> None:
        """Say what the step under way does, where no bar shows it."""
        if self.bar is not None:
            self.bar.update(self.task, description=f"{self._place()} {words}")
        else:
            self.line(f"{self._place()} {words}")

    def line(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def _show(self, name: str, done: float, words: str, seconds_left: float | None) -> None:
        if self.listener is not None and words:
            left = max(self.total - self.skipped, 1e-9)
            self.listener(min(1.0, max(0.0, done - self.skipped) / left), f"{name} {words}")
        if self.bar is not None:
            told = {"description": f"{self._place()} {name} {words}", "left": _left(seconds_left)}
            self.bar.update(self.task, completed=done, **told)  # type: ignore[arg-type]
        elif time.monotonic() - self.told > self._quiet_seconds():
            self.told = time.monotonic()
            elapsed = clock(self.told - self.started)
            both = ", ".join(part for part in (elapsed, _left(seconds_left)) if part)
            self.line(f"{self._place()} {name:<14} {words}  {both}")

    def _place(self) -> str:
        return f"[{self.index}/{len(self.steps)}]"

    def _quiet_seconds(self) -> float:
        return min(LONGEST_QUIET_SECONDS, max(QUIET_SECONDS, (time.monotonic() - self.started) / 20))

    def _seconds_left(self, fraction: float, spent: float, words: int) -> float | None:
        """Seconds until the whole job ends; None before anything tells of the speed.

        Args:
            fraction, spent, words: of the step under way: the part that is done, seconds, and how many
                fractions it has told.
        """
        step, later = self.steps[self.index - 1], self.steps[self.index :]
        before = self.fresh_seconds / self.fresh_weight if self.fresh_weight else None
        thought = step.weight if step.timed else None if before is None else before * step.weight
        own = spent / fraction if fraction >= LEAST_FRACTION and words else None
        if own is not None:
            trust = words / (words + DOUBT)
            whole = own**trust * thought ** (1 - trust) if thought else own
            left = whole * (1 - fraction)
        elif thought is not None:  # one that is late will take a while longer
            whole, left = thought, max(thought - spent, spent / 4)
        else:
            return None
        speed = before if before is not None else whole / max(step.weight, 1e-9)
        return max(0.0, left) + sum(s.weight * (1.0 if s.timed else speed) for s in later)


def clock(seconds: float) -> str:
    """Minutes and seconds as a clock shows them: 1:05, or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {clock(seconds)} left"


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
