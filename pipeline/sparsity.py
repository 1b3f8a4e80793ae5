"""Weight pruning: set small weights of Conv and Linear layers to zero (Han et al., arXiv:1506.02626)."""

from dataclasses import replace
from typing import Any

import torch

from tersor.models.network import Network
from tersor.pipeline.layers import chosen_layers, matching
from tersor.pipeline.recipe import Sparsity


def prune_weights(network: Network, settings: Sparsity) -> tuple[Network, dict[str, Any]]:
    """Zero the smallest weights by magnitude; masks are the zeros themselves.

    method `std`: |w| < amount x std of the layer (R2's threshold). `level`: the fraction `amount` of each
    layer. `global`: the fraction `amount` over all chosen layers, ranked together. `per_layer` overrides
    the amount of single layers (`std` and `level`). Ties go by position: the earlier weight is pruned.

    Returns:
        The network with forms marked as pruned, and per layer: weights, non-zeros, sparsity fraction.

    Raises:
        BadInput: a pattern matches no layer.
    """
    where = f"stage `{settings.name}`"
    layers = chosen_layers(network, settings.layers, settings.exclude, where)
    matching(layers, settings.per_layer, where)
    weights = {f"{layer}.weight": network.tensors[f"{layer}.weight"] for layer in layers}
    if settings.method == "global":
        pruned = _prune_globally(weights, settings.amount)
    else:
        amounts = {f"{layer}.weight": settings.per_layer.get(layer, settings.amount) for layer in layers}
        prune = _below_std if settings.method == "std" else _lowest
        pruned = {name: prune(weight, amounts[name]) for name, weight in weights.items()}
    forms = {name: replace(network.form(name), pruned=True) for name in pruned}
    result = network.with_tensors({**network.tensors, **pruned}, {**network.forms, **forms})
    return result, {"layers": sparsity_table(result)}


def sparsity_table(network: Network) -> list[dict[str, Any]]:
    """Per weight tensor of rank 2 or more: name, weights, non-zeros, sparsity fraction."""
    rows = []
    for name, tensor in network.tensors.items():
        if tensor.dim() >= 2:
            total, alive = tensor.numel(), int(tensor.count_nonzero())
            row = {"tensor": name, "weights": total, "nonzero_weights": alive}
            rows.append({**row, "sparsity_fraction": 1 - alive / total})
    return rows


def _below_std(weight: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.where(weight.abs() < factor * weight.std(), 0.0, weight)


def _lowest(weight: torch.Tensor, fraction: float) -> torch.Tensor:
    flat = weight.flatten().clone()
    order = flat.abs().argsort(stable=True)
    flat[order[: round(fraction * flat.numel())]] = 0.0
    return flat.reshape(weight.shape)


def _prune_globally(weights: dict[str, torch.Tensor], fraction: float) -> dict[str, torch.Tensor]:
    together = _lowest(torch.cat([w.flatten() for w in weights.values()]), fraction)
    parts = together.split([w.numel() for w in weights.values()])
    return {name: part.reshape(weights[name].shape).clone() for name, part in zip(weights, parts)}
