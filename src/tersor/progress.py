"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere (CI, log files)."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS, LONGEST_QUIET_SECONDS = 5.0, 60.0
"""Without a terminal, a step that takes longer says where it is this often, less and less as it goes on."""

Tell = Callable[[float, str], None]
"""Told the fraction of a step that is done (0 to 1) and a few words."""


class Reporter:
    """Progress over steps of known relative length; the time left is that of the whole job.

    Args:
        steps: (name, weight) in order; weights are relative durations.
        quiet: say nothing at all.
        listener: is told the fraction of the whole job, without what came from a cache, and the words.
    """

    def __init__(
        self, steps: Sequence[tuple[str, float]], *, quiet: bool = False, listener: Tell | None = None
    ) -> None:
        self.steps = list(steps)
        self.total = sum(weight for _, weight in steps)
        self.done, self.index = 0.0, 0
        self.skipped = 0.0  # weight that came from a cache: no measure of speed
        self.quiet, self.console = quiet, Console(stderr=True, highlight=False)
        self.listener = listener
        self.started, self.told = time.monotonic(), time.monotonic()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> "Reporter":
        if self.console.is_terminal and not self.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
            self.bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    @contextmanager
    def step(self) -> Iterator[Tell]:
        """The next step; yields what tells how far it is."""
        name, weight = self.steps[self.index]
        self.index += 1
        began, self.told = time.monotonic(), time.monotonic()
        last = [""]

        def tell(fraction: float, words: str) -> None:
            """Remember the words and show them."""
            last[0] = words
            self._show(name, self.done + weight * fraction, words)

        self._show(name, self.done, "")
        yield tell
        self.done += weight
        if time.monotonic() - began < 0.05:
            self.skipped = min(self.skipped + weight, self.done)
        self.line(f"{self._place()} {name:<14} {time.monotonic() - began:6.1f} s  {last[0]}")

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

    def _show(self, name: str, done: float, words: str) -> None:
        if self.listener is not None and words:
            left = max(self.total - self.skipped, 1e-9)
            self.listener(min(1.0, max(0.0, done - self.skipped) / left), f"{name} {words}")
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=f"{self._place()} {name} {words}")
        elif time.monotonic() - self.told > self._quiet_seconds():
            self.told = time.monotonic()
            self.line(f"{self._place()} {name:<14} {words}{self._time_left(done)}")

    def _place(self) -> str:
        return f"[{self.index}/{len(self.steps)}]"

    def _quiet_seconds(self) -> float:
        return min(LONGEST_QUIET_SECONDS, max(QUIET_SECONDS, (time.monotonic() - self.started) / 20))

    def _time_left(self, done: float) -> str:
        worked = done - self.skipped
        if worked <= 0.02 * self.total:
            return ""  # the first images of a training also pay for what is loaded: no measure of speed
        left = (time.monotonic() - self.started) * (self.total - done) / worked
        return f", about {left:.0f} s left"


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
