"""R4's exercise ends as its methods promise."""

from pathlib import Path

import numpy as np
import pytest

from tersor.pipeline.lessons.sparse_linear import ALIVE, COLUMNS, RUNS, problem, run_all, track


def test_gradient_descent_finds_least_squares_and_no_zeros() -> None:
    inputs, outputs, _ = problem()
    run = track("gradient", 0.0, steps=2000)
    assert np.allclose(run.weights[-1], np.linalg.lstsq(inputs, outputs, rcond=None)[0], atol=1e-6)
    assert run.nonzero == COLUMNS


@pytest.mark.parametrize(("method", "strength"), [("pruning", 0.75), ("hard_threshold", 0.25)])
def test_pruning_and_hard_thresholds_find_the_true_weights(method: str, strength: float) -> None:
    run = track(method, strength)  # type: ignore[arg-type]
    assert run.nonzero == ALIVE
    assert np.array_equal(run.weights[-1] != 0, run.truth != 0)
    assert run.error < 0.02


def test_the_proximal_method_solves_the_lasso() -> None:
    # Optimality: |gradient| <= threshold / rate at zeros, gradient = -threshold / rate x sign elsewhere.
    inputs, outputs, _ = problem()
    run = track("proximal", 0.02, steps=3000)
    weights = run.weights[-1]
    gradient = 2 * inputs.T @ (inputs @ weights - outputs) / len(outputs)
    limit = 0.02 / 0.05
    assert np.all(np.abs(gradient[weights == 0]) <= limit + 1e-9)
    assert np.allclose(gradient[weights != 0], -limit * np.sign(weights[weights != 0]), atol=1e-6)
    assert run.nonzero < COLUMNS


def test_trimming_removes_the_bias_of_l1() -> None:
    assert track("trimmed_l1", 0.5).error < 0.2 * track("l1", 0.5).error


def test_the_picture_and_the_table_are_written(tmp_path: Path) -> None:
    lines: list[str] = []
    run_all(tmp_path / "new" / "picture.png", lines.append)
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert len(lines) == 1 + len(RUNS)
