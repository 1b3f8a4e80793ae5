"""The optimizer, its learning rate and the compiler of its steps, as a recipe names them."""

import logging
import math
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tersor.errors import Unavailable
from tersor.pipeline.recipe.recipe import Training


def learning_rate(settings: Training, step: int, steps: int) -> float:
    """The rate at a step of `steps`; one_cycle: linear warm-up over 30 %, then cosine."""
    peak, at = settings.learning_rate, step / max(1, steps)
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "one_cycle":
        if at < 0.3:
            return peak * (0.04 + 0.96 * at / 0.3)
        at = (at - 0.3) / 0.7
    return peak * (0.5 * (1 + math.cos(math.pi * at)) + 1e-4)


def make_optimizer(module: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Weight decay acts on tensors of rank 2 and more: not on biases, BatchNorm or codebooks."""
    decayed = [p for p in module.parameters() if p.dim() >= 2]
    others = [p for p in module.parameters() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.learning_rate)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov)


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module's forward and backward pass by torch.compile: compiled once for each batch shape.

    Raises:
        Unavailable: there is no C++ compiler, which compiling for a CPU takes.
    """
    compiler = os.environ.get("CXX", "g++")
    if next(module.parameters()).device.type == "cpu" and shutil.which(compiler) is None:
        raise Unavailable(
            "no C++ compiler for `compiled: true`",
            got=f"no {compiler} on the PATH",
            where="the training's settings",
            todo="Install g++, or leave `compiled` out, which is slower",
        )
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a warning without a GPU
    return torch.compile(module, dynamic=False)


def forget_compiled() -> None:
    """Drop what torch.compile made for earlier trainings of this process.

    After eight variants of one forward pass it goes on without compiling, and the sums round otherwise: what
    a training computes would depend on what was trained before it.
    """
    torch._dynamo.reset()
