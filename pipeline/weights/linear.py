"""Uniform (affine) quantization of weights to b bits: value = scale x integer."""

from typing import Any

import torch

from tersor.errors import BadInput
from tersor.models.layers import by_layer, chosen_layers
from tersor.models.network import Form, Network
from tersor.pipeline.recipe.recipe import Linear
from tersor.pipeline.weights.grid_scales import Rule, fitted, grid_of

MOST_BITS = 16


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
    layer_bits = by_layer(layers, settings.per_layer, where)
    for layer in layers:
        name, bits = f"{layer}.weight", layer_bits.get(layer, settings.bits)
        weight, old = tensors[name], network.form(name)
        if not bool(weight.isfinite().all()):
            raise BadInput("a weight is NaN or infinite", where=f"{where}, tensor {name!r}")
        axis = 0 if settings.per_channel else None
        rounded, scale = round_to_grid(
            weight,
            bits,
            symmetric=settings.symmetric,
            axis=axis,
            full_range=settings.full_range,
            rule=settings.scale,
            percentile=settings.percentile,
        )
        form = Form("linear", old.pruned, bits, axis, tuple(scale.flatten().tolist()))
        error = float((rounded - weight).double().square().mean().sqrt())
        rows.append(
            {"tensor": name, "bits": bits, "values": int(rounded.unique().numel()), "rms_error": error}
        )
        tensors[name], forms[name] = rounded, form
    return network.with_tensors(tensors, forms), {"bits": settings.bits, "layers": rows}


def round_to_grid(
    weight: torch.Tensor,
    bits: int,
    *,
    symmetric: bool = True,
    axis: int | None = None,
    full_range: bool = False,
    rule: Rule = "max",
    percentile: float = 99.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to scale x integer.

    Args:
        weight: float32 of any shape, finite.
        bits: 1 to 16. One bit means sign x mean |w|, the least squared error there is (XNOR-Net,
            arXiv:1603.05279), whatever the rule; there zeros stay zeros.
        symmetric: integers -(2^(b-1) - 1) .. 2^(b-1) - 1, so 2 bits are ternary (arXiv:1605.04711);
            otherwise 2^b - 1 steps between min and max, zero being one of them (R4's scheme).
        axis: one scale for each index along it; None: one for the tensor.
        full_range: (symmetric) -2^(b-1) too; at 2 bits four values instead of three.
        rule: how the scale is chosen, see `grid_scales.Rule`.
        percentile: of that rule, in per cent.

    Returns:
        Rounded weights, and the scales, shaped to broadcast. An all-zero tensor or channel has scale 1, and
        so has one of weights so small (below 1e-38) that float32 has no step for them: they become zeros.

    Raises:
        BadInput: `bits` is not 1 to 16, or the tensor is empty.
    """
    if bits not in range(1, MOST_BITS + 1) or not weight.numel():
        raise BadInput(
            "weights cannot be rounded to such a grid",
            got=f"{bits} bits, {weight.numel()} weights",
            wanted=f"a whole number of bits, 1 to {MOST_BITS}, and at least one weight",
        )
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).flatten(1)
    shape = [1] * weight.dim()
    if axis is not None:
        shape[axis] = -1
    if bits == 1:
        alive = rows.ne(0).sum(1).clamp(min=1)
        mean = (rows.double().abs().sum(1) / alive).float()
        scale = torch.where(mean == 0, torch.ones_like(mean), mean).reshape(shape)
        return weight.sign() * scale + 0.0, scale
    first, last, steps = _chosen_grid(rows, bits, symmetric, full_range, rule, percentile)
    scale = steps.reshape(shape)
    integers = (weight / scale).round()
    integers = torch.minimum(torch.maximum(integers, first.reshape(shape)), last.reshape(shape))
    return integers * scale + 0.0, scale  # + 0.0: no second kind of zero, -0.0


def _chosen_grid(
    rows: torch.Tensor, bits: int, symmetric: bool, full_range: bool, rule: Rule, percentile: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First and last integer and the step of each row, float32 (rows,)."""
    ends = torch.stack([rows.amin(1), rows.amax(1)], 1).double()
    grid = grid_of(ends, bits, symmetric=symmetric, full_range=full_range)
    steps = fitted(rows, grid, rule, percentile)
    return grid[1].flatten().float(), grid[2].flatten().float(), steps.flatten().float()
