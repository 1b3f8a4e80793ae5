"""What a run runs on: fixed where it decides the result, recorded where it may matter."""

import os
import platform
from typing import Any

import torch

from tersor.errors import Unavailable
from tersor.machine import cpu_features
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.identity import versions


def prepare_torch(recipe: Recipe) -> None:
    """Fix what could make two runs differ: threads, and operations without a deterministic form."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(recipe.threads)
    # the same as use_deterministic_algorithms(True), which imports torch's compiler: three seconds
    torch.set_deterministic_debug_mode("error")


def check_device(recipe: Recipe) -> None:
    """Check that the training's device is there.

    Raises:
        Unavailable: the recipe says cuda and torch sees no GPU.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable(
            "the recipe trains on `cuda`, which is not there",
            got="no GPU that torch can use",
            where="setting `device`",
            todo="Set device=cpu, or run on a machine with an NVIDIA GPU",
        )


def environment(recipe: Recipe) -> dict[str, Any]:
    """What the run ran on, for the record."""
    machine = {"python": platform.python_version(), "system": platform.system(), **cpu_features()}
    return {**versions(), **machine, "threads": recipe.threads, "device": recipe.device}
