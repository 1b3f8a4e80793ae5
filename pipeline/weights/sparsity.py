"""Weight pruning: set small weights of Conv and Linear layers to zero (Han et al., arXiv:1506.02626)."""

from dataclasses import replace
from typing import Any

import torch

from tersor.models.layers import by_layer, by_weight, chosen_layers
from tersor.models.network import Network
from tersor.pipeline.recipe.recipe import Sparsity


def prune_weights(network: Network, settings: Sparsity) -> tuple[Network, dict[str, Any]]:
    """Zero the smallest weights by magnitude; masks are the zeros themselves.

    method `std`: |w| < amount x std of the layer (R2's threshold). `level`: the fraction `amount` of each
    layer. `global`: the fraction `amount` over all chosen layers, ranked together. `per_layer` overrides
    the amount of single layers (`std` and `level`). `n_of_m`: of every `of` weights that follow each other
    along the inputs, the `keep` largest stay (Mishra et al., arXiv:2104.08378); inputs that do not fill a
    group stay dense. Ties go by position: the earlier weight is pruned.

    Returns:
        The network with forms marked as pruned, and per layer: weights, non-zeros, sparsity fraction.

    Raises:
        BadInput: a pattern matches no layer.
    """
    where = f"stage `{settings.name}`"
    layers = chosen_layers(network, settings.layers, settings.exclude, where)
    layer_amounts = by_weight(by_layer(layers, settings.per_layer, where))
    weights = {f"{layer}.weight": network.tensors[f"{layer}.weight"] for layer in layers}
    if settings.method == "n_of_m":
        pruned = {name: n_of_m(weight, settings.keep, settings.of) for name, weight in weights.items()}
    else:
        pruned = small_to_zero(weights, settings.method, settings.amount, layer_amounts)
    forms = {name: replace(network.form(name), pruned=True) for name in pruned}
    result = network.with_tensors({**network.tensors, **pruned}, {**network.forms, **forms})
    return result, {"layers": sparsity_table(result)}


def small_to_zero(
    weights: dict[str, torch.Tensor], method: str, amount: float, own: dict[str, float]
) -> dict[str, torch.Tensor]:
    """Copies of the weights with the smallest of them zero.

    Args:
        weights: name -> float tensor.
        method: `std`, `level`, `global`; see `prune_weights`.
        amount: of all tensors that have none of their own.
        own: name -> amount, for `std` and `level`.
    """
    if method == "global":
        return _prune_globally(weights, amount)
    prune = _below_std if method == "std" else _lowest
    return {name: prune(weight, own.get(name, amount)) for name, weight in weights.items()}


def n_of_m(weight: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    """A copy with all but the `keep` largest of every `of` weights along dimension 1 zero.

    Args:
        weight: float (outputs, inputs, ...); the last inputs mod `of` inputs stay as they are.
        keep: at most `of`.
        of: size of a group.
    """
    whole = weight.shape[1] // of * of
    groups = weight[:, :whole].transpose(1, -1).unflatten(-1, (-1, of))
    rank = groups.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
    largest = torch.where(rank >= of - keep, groups, 0.0).flatten(-2).transpose(1, -1)
    return torch.cat([largest, weight[:, whole:]], 1)


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
