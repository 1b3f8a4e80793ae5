"""How long a model takes, as a record; and the arithmetic from samples to medians, ratios and intervals.

A *sitting* opens every session anew, times all of them and closes them. Between sittings differs what no
sample within one shows: where memory lies, which speed the processor runs at. So intervals are of sittings:
Student's t over the logarithms of each one's ratio of medians.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tersor.records import Record

FEWEST_SITTINGS, MOST_SITTINGS = 4, 10
LEAST_NOISE = 0.005
"""Sittings that agree by chance do not make the clock finer than this."""
STUDENT_T = (np.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
"""97.5 % points by degrees of freedom, which are sittings less one."""


@dataclass(frozen=True)
class LatencyRow(Record):
    """One model on one target at one batch size and number of threads.

    file: its name; None where it stands elsewhere, as in a manifest.
    p50_ms: milliseconds per run of a whole batch, *alone*: in blocks of this model's runs only, the first
        of each dropped; as it will be served. The mean (geometric) of the sittings' medians.
    p90_ms, p99_ms: percentiles of all runs alone.
    speedup: the baseline's p50 over this one. Both have 95 % intervals, never narrower than the noise.
    distinguishable: the speed-up's interval leaves out 1.
    throughput_per_s: images a second at p50.
    rounds: runs, or means of several very short ones, that were timed alone.
    in_turn_p50_ms, in_turn_speedup: the same where the models run by turns, one run each: each finds
        caches that the others have filled.
    device_p50_ms, device_speedup: the same on a GPU, inputs and outputs staying there.
    noise_fraction: by how much the baseline differs from itself, opened twice: nothing less is told apart.
    sittings: how often all sessions were opened anew.
    narrow: whether the speed-up's interval is within the precision asked for.
    busy: signs that others used the machine, where the row was kept in spite of them.
    """

    TODO: ClassVar[str] = "Get the bundle again"

    file: str | None = field(default=None, kw_only=True)
    provider: str
    batch: int
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    speedup: float
    p50_low_ms: float
    p50_high_ms: float
    speedup_low: float
    speedup_high: float
    distinguishable: bool
    throughput_per_s: float
    rounds: int
    in_turn_p50_ms: float | None = None
    in_turn_speedup: float | None = None
    in_turn_speedup_low: float | None = None
    in_turn_speedup_high: float | None = None
    device_p50_ms: float | None = None
    device_speedup: float | None = None
    device_speedup_low: float | None = None
    device_speedup_high: float | None = None
    noise_fraction: float | None = None
    sittings: int | None = None
    narrow: bool | None = None
    busy: str | None = None
    rest: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def decisive(self) -> tuple[float, float, float]:
        """The speed-up that decides, with its interval: on the device where that was timed, else alone.

        Returns:
            low, middle, high.
        """
        low, middle, high = self.device_speedup_low, self.device_speedup, self.device_speedup_high
        if low is None or middle is None or high is None:
            return self.speedup_low, self.speedup, self.speedup_high
        return low, middle, high


def ratio_told(low: float | None, middle: float | None, high: float | None, unit: str = "x") -> str:
    """A ratio with its interval, such as `2.00x [1.90, 2.10]`; empty where it was not measured."""
    if low is None or middle is None or high is None:
        return ""
    return f"{middle:.2f}{unit} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Figure:
    """A median and a ratio with their 95 % intervals (each low, middle, high)."""

    p50_ms: tuple[float, float, float]
    speedup: tuple[float, float, float]

    @property
    def half_width(self) -> float:
        """Of the ratio's interval, as a fraction of the ratio."""
        low, middle, high = self.speedup
        return max(high / middle, middle / low) - 1.0


def figure(base: Sequence[float], own: Sequence[float], noise: float) -> Figure:
    """From the medians of each sitting to a median and a ratio.

    Args:
        base, own: milliseconds, a sitting each; the same sittings.
        noise: fraction that no interval's half is narrower than.
    """
    logs = np.log(np.asarray(own, np.float64))
    ratios = np.log(np.asarray(base, np.float64)) - logs
    return Figure(_interval(logs, 0.0), _interval(ratios, 0.0 if base is own else noise))


def noise_of(base: Sequence[float], again: Sequence[float]) -> float:
    """The noise floor: the end farther from 1 of the interval of a model's ratio to itself, less 1.

    Args:
        base, again: medians of two sessions of one file, milliseconds, a sitting each.
    """
    low, _, high = figure(base, again, 0.0).speedup
    finite = [abs(np.log(end)) for end in (low, high) if 0 < end < np.inf]
    return float(max([LEAST_NOISE, *np.expm1(finite)]))


def _interval(logs: np.ndarray, least: float) -> tuple[float, float, float]:
    """exp of mean and of mean -+ t s / sqrt(n), at least `least` to either side."""
    count, mean = len(logs), float(np.mean(logs))
    spread = float(np.std(logs, ddof=1)) if count > 1 else 0.0
    reach = STUDENT_T[min(count - 1, len(STUDENT_T) - 1)] * spread / np.sqrt(count) if count > 1 else 0.0
    reach = max(reach, float(np.log1p(least)))
    return float(np.exp(mean - reach)), float(np.exp(mean)), float(np.exp(mean + reach))
