"""Step sizes of uniform b-bit grids, for many channels at once: by maximum, by percentile, by least error.

A grid is `scale x integer` with integers from `first` to `last`, zero among them. What to search for is one
number a row, so everything works on rows (channels, weights of a channel) divided by their largest step.
"""

from typing import Literal

import torch
from torch import Tensor

Rule = Literal["max", "percentile", "mse"]
"""max: the largest weight fits. percentile: that share of a row's weights that are not zero fits, the rest
is clipped. mse: the least mean squared error."""

BLOCK = 1 << 16
"""Weights looked at together, so that the many passes of a search stay in the processor's cache."""
RATIOS = 0.06 ** (torch.arange(16, dtype=torch.float64) / 15)
"""Candidates of a search, from 1 down: parts of the step with which the largest weight just fits."""
FINER, POLISHES = 4, 2


def grid_of(rows: Tensor, bits: int, *, symmetric: bool, full_range: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The widest useful grid of each row.

    Args:
        rows: float64 (channels, n), finite.
        bits: 2 to 16.
        symmetric: integers -(2^(b-1) - 1) .. 2^(b-1) - 1 (2 bits: ternary); otherwise 2^b values from the
            row's smallest to its largest weight, zero among them.
        full_range: (symmetric) -2^(b-1) too: the fourth value at 2 bits.

    Returns:
        scale, first, last: float64 (channels, 1); scale 1 for rows of zeros, or so small that float32 has
        no step for them.
    """
    if symmetric:
        top = 2 ** (bits - 1) - 1
        bottom = top + 1 if full_range else top
        scale = torch.maximum(rows.amax(1, keepdim=True) / top, -rows.amin(1, keepdim=True) / bottom)
        first, last = torch.full_like(scale, -bottom), torch.full_like(scale, top)
        return _not_zero(scale), first, last
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = _not_zero((high - low) / (2**bits - 1))
    first = (low / scale).round()
    return scale, first, first + 2**bits - 1


def fitted(rows: Tensor, grid: tuple[Tensor, Tensor, Tensor], rule: Rule, percentile: float) -> Tensor:
    """The scale of each row by a rule.

    Args:
        rows: float32 (channels, n), finite.
        grid: what `grid_of` gave for them.
        rule: see `Rule`.
        percentile: of rule `percentile`, in per cent.

    Returns:
        float64 (channels, 1), greater than zero.
    """
    widest, first, last = grid
    if rule == "max":
        return widest
    scale = torch.empty_like(widest)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        units = (rows[part] / widest[part]).float()  # in largest steps: nothing can overflow when squared
        block = (units, first[part].float(), last[part].float())
        ratio = _percentile(*block, percentile) if rule == "percentile" else _least_error(*block)
        scale[part] = widest[part] * ratio.double()
    return scale


def _percentile(units: Tensor, first: Tensor, last: Tensor, percentile: float) -> Tensor:
    """The ratio with which that share of a row's weights fits; zeros of pruned weights do not count."""
    # a weight fits from the ratio on that brings it to the end of the grid on its side
    needed = torch.where(units < 0, units / first.clamp(max=-1), units / last.clamp(min=1))
    alive = (needed > 0).sum(1, keepdim=True)
    clipped = (alive * (1 - percentile / 100)).floor().long().clamp(max=units.shape[1] - 1)
    ratio = needed.sort(1, descending=True).values.gather(1, clipped)
    return torch.where(ratio > 0, ratio, torch.ones_like(ratio)).clamp(max=1)


def _least_error(units: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The ratio of least squared error: a coarse search, a finer one around its best, then least squares.

    For given integers q the best step is <w, q> / <q, q>; each polish takes it where it is better.
    """
    best = torch.ones(len(units), 1)
    least = _error(units, first, last, best)[0]
    for ratio in RATIOS[1:].tolist():
        best, least = _better(units, first, last, best, least, torch.full_like(best, ratio))
    between = float(RATIOS[1])
    middle = best
    for part in range(1, FINER):
        for exponent in (part / FINER, -part / FINER):
            tried = (middle * between**exponent).clamp(max=1)
            best, least = _better(units, first, last, best, least, tried)
    for _ in range(POLISHES):
        steps = _error(units, first, last, best)[1]
        squares = (steps * steps).sum(1, keepdim=True)
        tried = (units * steps).sum(1, keepdim=True) / squares.clamp(min=1)
        best, least = _better(units, first, last, best, least, torch.where(squares > 0, tried, best))
    return best


def _better(
    units: Tensor, first: Tensor, last: Tensor, best: Tensor, least: Tensor, tried: Tensor
) -> tuple[Tensor, Tensor]:
    error = _error(units, first, last, tried)[0]
    won = (error < least) & (tried > 0)
    return torch.where(won, tried, best), torch.where(won, error, least)


def _error(units: Tensor, first: Tensor, last: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of each row (rows, 1) at its ratio, and its integers."""
    steps = (units / ratio).round_()
    torch.minimum(torch.maximum(steps, first, out=steps), last, out=steps)
    return torch.addcmul(units, steps, ratio, value=-1).square_().sum(1, keepdim=True), steps


def _not_zero(scale: Tensor) -> Tensor:
    return torch.where(scale.float() < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
