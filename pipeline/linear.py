"""Uniform b-bit weights: value = scale x integer."""

from typing import Any

import torch

from tersor.models.errors import BadInput
from tersor.models.network import Form, Network
from tersor.pipeline.layers import chosen_layers, matching
from tersor.pipeline.recipe import Linear


def quantize_weights(network: Network, settings: Linear) -> tuple[Network, dict[str, Any]]:
    """Round the weights of each chosen layer to a grid of 2^bits steps.

    Returns:
        The network with forms `linear`, and per layer: bits, distinct values, root mean square error.

    Raises:
        BadInput: a pattern matches no layer, or a weight is NaN or infinite.
    """
    where = f"stage `{settings.name}`"
    tensors, forms, rows = dict(network.tensors), dict(network.forms), []
    layers = chosen_layers(network, settings.layers, settings.exclude, where)
    matching(layers, settings.per_layer, where)
    for layer in layers:
        name, bits = f"{layer}.weight", settings.per_layer.get(layer, settings.bits)
        weight, old = tensors[name], network.form(name)
        if not bool(weight.isfinite().all()):
            raise BadInput("a weight is NaN or infinite", where=f"{where}, tensor {name!r}")
        axis = 0 if settings.per_channel else None
        rounded, scale = round_to_grid(weight, bits, symmetric=settings.symmetric, axis=axis)
        form = Form("linear", old.pruned, bits, axis, tuple(scale.flatten().tolist()))
        error = float((rounded - weight).double().square().mean().sqrt())
        rows.append(
            {"tensor": name, "bits": bits, "values": int(rounded.unique().numel()), "rms_error": error}
        )
        tensors[name], forms[name] = rounded, form
    return network.with_tensors(tensors, forms), {"bits": settings.bits, "layers": rows}


def round_to_grid(
    weight: torch.Tensor, bits: int, *, symmetric: bool = True, axis: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to scale x integer.

    Args:
        weight: float32 of any shape.
        bits: 1 to 16. One bit means sign x mean |w| (XNOR-Net, arXiv:1603.05279); there zeros stay zeros.
        symmetric: integers -(2^(b-1) - 1) .. 2^(b-1) - 1, scale = max |w| / (2^(b-1) - 1);
            otherwise 2^b - 1 steps between min and max, zero being one of them (R4's scheme).
        axis: one scale for each index along it; None: one for the tensor.

    Returns:
        Rounded weights, and the scales, shaped to broadcast. An all-zero tensor or channel has scale 1.
    """
    dims = [d for d in range(weight.dim()) if d != axis]
    if bits == 1:
        alive = weight.ne(0).sum(dims, keepdim=True).clamp(min=1)
        scale = _not_zero(weight.abs().sum(dims, keepdim=True) / alive)
        return weight.sign() * scale, scale
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = _not_zero(weight.abs().amax(dims, keepdim=True) / top)
        return (weight / scale).round().clamp(-top, top) * scale, scale
    low = weight.amin(dims, keepdim=True).clamp(max=0)
    high = weight.amax(dims, keepdim=True).clamp(min=0)
    scale = _not_zero((high - low) / (2**bits - 1))
    first = (low / scale).round()
    steps = torch.minimum(torch.maximum((weight / scale).round(), first), first + 2**bits - 1)
    return steps * scale, scale


def _not_zero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
