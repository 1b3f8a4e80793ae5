"""R4's exercise: five ways to a sparse linear model, step by step, with the loss and every weight drawn.

Y = X W + noise with few weights that are not zero; loss |X w - Y|^2 / n, gradient 2 X'(X w - Y) / n. Plain
gradient descent, iterative pruning, L1 (the penalty's gradient), proximal L1 (soft threshold after every
step), trimmed L1 (the largest weights free), iterative hard thresholding; for sources see
training/sparse_training.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tersor.pipeline.show.palette import ACCENT, OTHER, SAGE
from tersor.pipeline.show.picture import PADS, PLAIN, png

Method = Literal["gradient", "pruning", "l1", "proximal", "trimmed_l1", "hard_threshold"]
Vector = NDArray[np.float64]

ROWS, COLUMNS, ALIVE, NOISE = 80, 20, 5, 0.1
STEPS, RATE = 200, 0.05
SMALL = 1e-3
"""Weights below are counted as zero: the gradient of L1 swings around zero and never hits it."""
RUNS: tuple[tuple[Method, float], ...] = (
    ("gradient", 0.0),
    ("pruning", 0.75),
    *(("l1", alpha) for alpha in (0.2, 0.5, 1.0, 2.0)),
    *(("proximal", threshold) for threshold in (0.004, 0.01, 0.02, 0.04)),
    ("trimmed_l1", 0.5),
    ("hard_threshold", 0.25),
)
"""Method and its strength: R4's alphas and thresholds; fraction pruned; trimmed L1's alpha; fraction kept."""


@dataclass(frozen=True)
class Track:
    """One run: loss [steps], weights [steps, columns], the true weights [columns]."""

    method: Method
    strength: float
    losses: Vector
    weights: Vector
    truth: Vector

    @property
    def nonzero(self) -> int:
        """Weights that are not (nearly) zero at the end."""
        return int((np.abs(self.weights[-1]) >= SMALL).sum())

    @property
    def error(self) -> float:
        """Root mean square difference to the true weights at the end."""
        return float(np.sqrt(np.square(self.weights[-1] - self.truth).mean()))

    @property
    def title(self) -> str:
        """Method and strength in a few words."""
        return f"{self.method.replace('_', ' ')} {self.strength:g}" if self.strength else "gradient descent"


def problem(seed: int = 0) -> tuple[Vector, Vector, Vector]:
    """X [80, 20], Y [80] and the true weights [20], of which 5 are not zero."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(COLUMNS)
    truth[rng.choice(COLUMNS, ALIVE, replace=False)] = rng.choice([-1, 1], ALIVE) * rng.uniform(
        0.5, 1.5, ALIVE
    )
    inputs = rng.normal(size=(ROWS, COLUMNS))
    return inputs, inputs @ truth + NOISE * rng.normal(size=ROWS), truth


def track(method: Method, strength: float, *, steps: int = STEPS, seed: int = 0) -> Track:
    """Run one method; see RUNS for what `strength` is."""
    inputs, outputs, truth = problem(seed)
    weights = np.random.default_rng(seed + 1).normal(0, 0.5, COLUMNS)
    losses, path = np.empty(steps), np.empty((steps, COLUMNS))
    alive = np.ones(COLUMNS, bool)
    for step in range(steps):
        residual = inputs @ weights - outputs
        gradient = 2 * inputs.T @ residual / ROWS
        losses[step], path[step] = np.square(residual).mean(), weights
        weights = weights - RATE * (gradient + _pull(method, strength, weights))
        if method == "pruning" and step % 20 == 19:
            zeros = round(strength * COLUMNS * min(1.0, (step + 1) / (steps / 2)))
            alive[np.argsort(np.abs(weights), kind="stable")[:zeros]] = False
        weights = _projected(method, strength, weights) * alive
    return Track(method, strength, losses, path, truth)


def _pull(method: Method, strength: float, weights: Vector) -> Vector:
    """The gradient of the penalty in the loss."""
    if method == "l1":
        return strength * np.sign(weights)
    if method == "trimmed_l1":
        free = np.abs(weights) >= np.sort(np.abs(weights))[-ALIVE]
        return strength * np.sign(weights) * ~free
    return np.zeros_like(weights)


def _projected(method: Method, strength: float, weights: Vector) -> Vector:
    """What a step ends with: soft or hard thresholds."""
    if method == "proximal":
        return np.sign(weights) * np.maximum(np.abs(weights) - strength, 0)
    if method == "hard_threshold":
        nonzeros = round(strength * COLUMNS)
        return np.where(np.abs(weights) >= np.sort(np.abs(weights))[-nonzeros], weights, 0.0)
    return weights


def draw(tracks: list[Track], path: Path) -> None:
    """Write a PNG: for each run the loss (top) and every weight (bottom), true non-zero ones in colour."""
    across = 4
    down = -(-len(tracks) // across)
    path.parent.mkdir(parents=True, exist_ok=True)
    with png(path, (3.1 * across, 3.4 * down), style=PLAIN, dpi=130, pads=PADS) as figure:
        axes = figure.subplots(2 * down, across, sharex=True, squeeze=False, height_ratios=[1, 1.8] * down)
        for axis in axes.flat:
            axis.set_visible(False)
        for i, run in enumerate(tracks):
            top, bottom = axes[2 * (i // across)][i % across], axes[2 * (i // across) + 1][i % across]
            for axis in (top, bottom):
                axis.set_visible(True)
            top.semilogy(run.losses, color=ACCENT)
            top.set_ylim(0.004, 30)
            top.set_title(f"{run.title}: {run.nonzero} of {COLUMNS} left", fontsize=9, loc="left")
            for weight, true in zip(run.weights.T, run.truth):
                style = {"color": OTHER, "zorder": 2} if true else {"color": SAGE, "linewidth": 0.8}
                bottom.plot(weight, **style)
            bottom.set_ylim(-1.8, 1.8)
            if i % across == 0:
                top.set_ylabel("loss", fontsize=8)
                bottom.set_ylabel("weights", fontsize=8)
            bottom.set_xlabel("step", fontsize=8)
            for axis in (top, bottom):
                axis.tick_params(labelsize=7)


def as_json(tracks: list[Track]) -> list[dict[str, Any]]:
    """What each run came to, as plain data."""
    return [
        {
            "method": run.method,
            "strength": run.strength,
            "loss": float(run.losses[-1]),
            "nonzero": run.nonzero,
            "error": run.error,
        }
        for run in tracks
    ]


def run_all(path: Path, tell: Callable[[str], None]) -> list[Track]:
    """Every run of RUNS, drawn to `path`, a line told for each."""
    tracks = [track(method, strength) for method, strength in RUNS]
    tell(f"{'method':<22}{'loss':>10}{'non-zero':>10}{'error of weights':>18}")
    for run in tracks:
        tell(f"{run.title:<22}{run.losses[-1]:>10.4f}{run.nonzero:>10}{run.error:>18.4f}")
    draw(tracks, path)
    return tracks
