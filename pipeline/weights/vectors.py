"""Rounding of BatchNorm and biases: BatchNorm's four vectors become two, rounded as the biases are.

In a network that is compressed a hundredfold these vectors are a third of the file. BatchNorm computes
w (x - m) / sqrt(v + eps) + b. With w' = w sqrt(1 + eps) / sqrt(v + eps), b' = b - m w / sqrt(v + eps), m' = 0
and v' = 1 it computes the same, and two vectors that are constant cost nothing.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import BadInput
from tersor.models.layers import is_weight, matching
from tersor.models.network import Network
from tersor.pipeline.recipe.recipe import Vectors

DEAD = 1e-6
"""Of BatchNorm's eps: a channel of less variance varies by less than a thousandth of its scale."""


def round_vectors(network: Network, settings: Vectors) -> tuple[Network, dict[str, Any]]:
    """Fold and round; weights of Conv and Linear layers stay as they are.

    Returns:
        The network, and per tensor: values, step of its grid, largest error.

    Raises:
        BadInput: a pattern matches no layer, or there is nothing to round.
    """
    module = network.module()
    layers = {n: layer for n, layer in module.named_modules() if _is_norm(layer) or is_weight(layer)}
    tensors, rows = dict(network.tensors), []
    where = f"stage `{settings.name}`"
    chosen = matching(layers, settings.layers, where) if settings.layers else set(layers)
    chosen -= matching(layers, settings.exclude, where)
    for name in (name for name in layers if name in chosen):
        layer = layers[name]
        if _is_norm(layer) and layer.track_running_stats and layer.affine:
            tensors |= {f"{name}.{part}": value for part, value in _folded(layer).items()}
        parts = ("weight", "bias") if _is_norm(layer) else ("bias",)
        for key in (f"{name}.{part}" for part in parts):
            if key in tensors:
                rounded, step = to_grid(tensors[key], settings.bits)
                error = float((rounded - tensors[key]).abs().max())
                rows.append({"tensor": key, "values": rounded.numel(), "step": step, "largest_error": error})
                tensors[key] = rounded
    if not rows:
        raise BadInput("there are no biases and no BatchNorm vectors to round", where=where)
    return network.with_tensors(tensors, network.forms), {"tensors": rows}


def to_grid(values: Tensor, bits: int) -> tuple[Tensor, float]:
    """Values rounded to multiples of a power of two, and that step.

    Args:
        values: float32, finite.
        bits: the multiples lie in -2^(bits - 1) .. 2^(bits - 1) - 1 and fill at least half of that range.
    """
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not largest:
        return values.clone(), 0.0
    most = 2 ** (bits - 1) - 1
    step = 2.0 ** math.ceil(math.log2(largest / most))
    if round(largest / (step / 2)) <= most:  # log2 of a float may be off by its last bit
        step /= 2
    return (values / step).round().clamp(-most - 1, most) * step, step


def _folded(layer: Any) -> dict[str, Tensor]:
    """BatchNorm's tensors with mean 0 and variance 1, computed in float64; dead channels get scale 0."""
    scale = layer.weight.detach().double() / (layer.running_var.double() + layer.eps).sqrt()
    # What a dead filter gives does not vary; divided by sqrt(eps) its scale would be hundreds of times the
    # others', and the step that fits it would round all of them away. Its channel is the constant `bias`.
    dead = layer.running_var.double() < DEAD * layer.eps
    scale = scale.masked_fill(dead, 0.0)
    shift = layer.bias.detach().double() - layer.running_mean.double() * scale
    return {
        "weight": (scale * math.sqrt(1 + layer.eps)).float(),
        "bias": shift.float(),
        "running_mean": torch.zeros_like(layer.running_mean),
        "running_var": torch.ones_like(layer.running_var),
    }


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
