"""Keep in fine-tuning what compression put into the weights: read off the values, held by parametrizations.

Zeros stay zero, shared values stay shared (the gradient goes to the centroids), uniformly
quantized values are trained through a straight-through estimator. `torch.nn.utils.parametrize` does the
bookkeeping and bakes away to plain tensors.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersor.models.layers import is_weight
from tersor.models.network import Form, Network
from tersor.pipeline.training.learned_steps import LearnGrid, integer_range, scales_of


class KeepZeros(nn.Module):
    """Weights that are zero stay zero; the others train freely."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", weight.ne(0).to(weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """Any weight -> the weight with zeros where there were zeros."""
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight itself is what is trained."""
        return weight


class _Lookup(torch.autograd.Function):
    """codebook[index]; the gradient of a centroid is the sum over its members (Han et al., arXiv:1510.00149).

    index_add in float64: on a CPU the bits of bincount, and deterministic on a GPU, where that is not.
    """

    @staticmethod
    def forward(ctx, codebook: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """codebook (k,), index of any shape -> values of the index's shape."""
        ctx.save_for_backward(index)
        ctx.count = codebook.numel()
        return codebook[index]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Sum the gradient over each centroid's members."""
        (index,) = ctx.saved_tensors
        total = torch.zeros(ctx.count, dtype=torch.float64, device=grad.device)
        total.index_add_(0, index.flatten(), grad.flatten().double())
        return total.to(grad.dtype), None


class KeepShared(nn.Module):
    """Weights that share a value go on sharing it; the few values are what is trained."""

    index: Tensor
    trainable: Tensor

    def __init__(self, weight: Tensor, pruned: bool) -> None:
        super().__init__()
        values, index = weight.unique(return_inverse=True)
        trainable = values.ne(0) if pruned else torch.ones_like(values, dtype=torch.bool)
        self.register_buffer("index", index)
        self.register_buffer("trainable", trainable.to(weight.dtype))

    def forward(self, codebook: Tensor) -> Tensor:
        """Codebook (k,) -> weight; the zero of a pruned layer stays exactly zero."""
        return _Lookup.apply(codebook * self.trainable, self.index)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The sorted distinct values of the weight, (k,)."""
        return weight.unique()


class KeepGrid(nn.Module):
    """Weights on a uniform grid stay on it; the gradient passes straight through the rounding.

    The rounded weight is clipped to the grid's ends; zeros of a pruned layer stay. Scales are fixed: see
    `learned_steps.LearnGrid` for those that are trained.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    mask: Tensor

    def __init__(self, weight: Tensor, form: Form) -> None:
        super().__init__()
        self.signs_only = form.bits == 1  # one bit has no zero to round to
        scale = scales_of(weight, form)
        low, high = integer_range((weight / scale).round(), form)
        self.register_buffer("scale", scale)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer(
            "mask", weight.ne(0).to(weight.dtype) if form.pruned else torch.ones_like(weight)
        )

    def forward(self, weight: Tensor) -> Tensor:
        """Any weight -> its nearest value on the grid, gradient 1."""
        steps = torch.where(weight < 0, -1.0, 1.0) if self.signs_only else (weight / self.scale).round()
        steps = torch.minimum(torch.maximum(steps, self.low), self.high)
        rounded = (steps * self.scale * self.mask).detach()
        # weight - weight is exactly 0, so the value is exactly the grid's and the gradient the mask's
        return rounded + (weight - weight.detach()) * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight itself is what is trained."""
        return weight


KEEPERS = (KeepZeros, KeepShared, KeepGrid, LearnGrid)


def constrain(
    module: nn.Module, network: Network, *, but: Collection[str] = (), learn_scales: bool = False
) -> list[str]:
    """Put the constraints that the network's weights and forms express onto `module`, in place.

    Only weights of Conv and Linear layers are looked at: biases and BatchNorm vectors are full of
    zeros and ones that mean nothing.

    Args:
        module: of the network.
        network: whose forms say what to keep.
        but: tensors that are left free.
        learn_scales: train the scales of `linear` weights too.

    Returns:
        The names of the constrained tensors.
    """
    constrained = []
    for layer_name, layer in module.named_modules():
        name = f"{layer_name}.weight"
        if not is_weight(layer) or name not in network.tensors or name in but:
            continue
        form, weight = network.form(name), layer.weight.detach()
        keeper: nn.Module | None = None
        if form.kind == "shared":
            keeper = KeepShared(weight, form.pruned)
        elif form.kind == "linear":
            keeper = LearnGrid(weight, form) if learn_scales else KeepGrid(weight, form)
        elif form.pruned:
            keeper = KeepZeros(weight)
        if keeper is not None:
            parametrize.register_parametrization(layer, "weight", keeper)
            constrained.append(name)
    return constrained


def bake(module: nn.Module) -> None:
    """Turn all constraints back into plain tensors, in place; parametrizations of the user's stay."""
    for layer in list(module.modules()):
        held = getattr(layer, "parametrizations", None)
        if held is not None and "weight" in held and isinstance(held["weight"][0], KEEPERS):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
