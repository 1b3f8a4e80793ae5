"""Quantization-aware training: rounded forward, gradients straight through, scales learned if asked.

Learned step sizes after LSQ (Esser et al., arXiv:1902.08153): inside the grid the derivative of a rounded
value by its scale is round(v) - v with v = x / scale, outside it is the grid's end; the gradient is divided
by sqrt(count x largest integer). What is trained is a multiplier, 1 at the start, of the scale at the start:
with SGD its steps are those of the paper, with Adam they are relative to the scale, whose size varies
from layer to layer by orders of magnitude.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from tersor.models.network import Activation, Form, Network

SMALLEST = 0.01
"""A multiplier stays above this part of its start, so that a scale never changes its sign."""


class _Rounded(torch.autograd.Function):
    """x -> integer x scale, integers clipped to first .. last; scale = start x multiplier."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, multiplier: Tensor, start: Tensor, first: Tensor, last: Tensor, count: int
    ) -> Tensor:
        """All but x broadcast to it; count: values that share a scale (of one image, for activations)."""
        scale = start * multiplier.clamp(min=SMALLEST)
        ctx.save_for_backward(x, multiplier, start, first, last)
        ctx.count = count
        integers = torch.minimum(torch.maximum((x / scale).round(), first), last)
        return integers * scale + 0.0  # + 0.0: no -0.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through inside the grid; of the multiplier as LSQ has it."""
        x, multiplier, start, first, last = ctx.saved_tensors
        values = x / (start * multiplier.clamp(min=SMALLEST))
        inside = (values >= first) & (values <= last)
        ends = torch.minimum(torch.maximum(values, first), last)
        by_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, values.round() - values, ends)
            by_scale = (grad * slope).sum_to_size(multiplier.shape)
            top = torch.maximum(last, -first).clamp(min=1)
            by_scale = by_scale / (start * (ctx.count * top).sqrt())
        return grad * inside, by_scale, None, None, None, None


class LearnGrid(nn.Module):
    """Weights on a b-bit grid stay on one whose scales are trained; zeros of a pruned layer stay zeros."""

    start: Tensor
    first: Tensor
    last: Tensor
    mask: Tensor

    def __init__(self, weight: Tensor, form: Form) -> None:
        super().__init__()
        self.signs_only = form.bits == 1
        scale = scales_of(weight, form)
        first, last = integer_range((weight / scale).round(), form)
        self.count = weight.numel() // scale.numel()
        self.multiplier = nn.Parameter(torch.ones_like(scale).flatten())
        self.register_buffer("start", scale)
        self.register_buffer("first", first)
        self.register_buffer("last", last)
        self.register_buffer("mask", _mask(weight, form))

    def forward(self, weight: Tensor) -> Tensor:
        """Any weight -> its nearest value on the grid."""
        multiplier = self.multiplier.reshape(self.start.shape)
        if self.signs_only:
            scale = self.start * multiplier.clamp(min=SMALLEST)
            signs = torch.where(weight < 0, -1.0, 1.0) * self.mask
            slowly = _slowed(scale, 1 / (math.sqrt(self.count) * self.start.square()))
            return signs * slowly + (weight - weight.detach()) * self.mask
        rounded = _Rounded.apply(weight, multiplier, self.start, self.first, self.last, self.count)
        return rounded * self.mask + 0.0

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight itself is what is trained, beside the multiplier."""
        return weight

    def scale(self) -> tuple[float, ...]:
        """The scales as trained."""
        multiplier = self.multiplier.detach().reshape(self.start.shape)
        return tuple((self.start * multiplier.clamp(min=SMALLEST)).flatten().tolist())


class InputGrid(nn.Module):
    """What a layer's input is rounded to: float32 of any shape, gradient straight through.

    The scale is a parameter when it is to be learned; the zero point stays.
    """

    start: Tensor
    first: Tensor
    last: Tensor
    multiplier: Tensor
    handle: RemovableHandle | None = None

    def __init__(self, grid: Activation, *, learn: bool) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("start", torch.tensor([grid.scale]))
        self.register_buffer("first", torch.tensor([-float(grid.zero_point)]))
        self.register_buffer("last", torch.tensor([2.0**grid.bits - 1 - grid.zero_point]))
        one = torch.ones(1)
        if learn:
            self.multiplier = nn.Parameter(one)
        else:
            self.register_buffer("multiplier", one)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same, on the grid."""
        count = x.numel() // max(1, len(x))
        return _Rounded.apply(x.float(), self.multiplier, self.start, self.first, self.last, count)

    def now(self) -> Activation:
        """The grid as trained."""
        scale = float(self.start * self.multiplier.detach().clamp(min=SMALLEST))
        return Activation(self.grid.bits, scale, self.grid.zero_point)


def attach_grids(module: nn.Module, network: Network, *, learn: bool = False) -> list[str]:
    """Round the inputs of the layers that `network.activations` names, in place; their names."""
    for name, grid in network.activations.items():
        layer = module.get_submodule(name)
        device = next(layer.parameters()).device
        rounding = InputGrid(grid, learn=learn).to(device)
        layer.add_module("input_grid", rounding)
        rounding.handle = layer.register_forward_pre_hook(_round_input)
    return list(network.activations)


def simulated(network: Network) -> nn.Module:
    """The network's module in eval mode, its layers' inputs rounded as `network.activations` say."""
    module = network.module()
    attach_grids(module, network)
    return module


def take_grids(module: nn.Module) -> dict[str, Activation]:
    """The input grids as trained, removed from `module` in place."""
    grids = {}
    for name, layer in module.named_modules():
        if isinstance(grid := getattr(layer, "input_grid", None), InputGrid):
            grids[name] = grid.now()
            if grid.handle is not None:
                grid.handle.remove()
            del layer.input_grid
    return grids


def learned_forms(module: nn.Module, network: Network) -> dict[str, Form]:
    """The forms of the network's tensors, with the scales that `module` has learned; before `bake`."""
    forms = dict(network.forms)
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            keeper = layer.parametrizations.weight[0]
            if isinstance(keeper, LearnGrid):
                forms[f"{name}.weight"] = replace(network.form(f"{name}.weight"), scale=keeper.scale())
    return forms


def scales_of(weight: Tensor, form: Form) -> Tensor:
    """The scales of a `linear` weight, shaped to broadcast against it."""
    shape = [1] * weight.dim()
    if form.axis is not None:
        shape[form.axis] = -1
    return torch.tensor(form.scale, dtype=weight.dtype, device=weight.device).reshape(shape)


def integer_range(steps: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """First and last integer of a grid, of the scales' shape: the whole of it, not only what is in use.

    Args:
        steps: the integers in use, float32, shaped as the weight.
        form: `linear`, with bits and axis.

    A symmetric grid if they fit one, one with -2^(b-1) if they fit that, else 2^b values from the smallest
    on: as the stage `linear` makes them.
    """
    bits = form.bits or 8
    dims = [d for d in range(steps.dim()) if d != form.axis]
    low, high = steps.amin(dims, keepdim=True), steps.amax(dims, keepdim=True)
    top = max(1, 2 ** (bits - 1) - 1)
    if float(low.min()) >= -top and float(high.max()) <= top:
        return torch.full_like(low, -top), torch.full_like(high, top)
    if float(low.min()) >= -top - 1 and float(high.max()) <= top:
        return torch.full_like(low, -top - 1), torch.full_like(high, top)
    return low, torch.maximum(high, low + 2**bits - 1)


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.input_grid(inputs[0]), *inputs[1:])  # type: ignore[operator]


def _mask(weight: Tensor, form: Form) -> Tensor:
    return weight.ne(0).to(weight.dtype) if form.pruned else torch.ones_like(weight)


def _slowed(value: Tensor, factor: Tensor) -> Tensor:
    """The value exactly, its gradient times `factor`."""
    return value.detach() + (value - value.detach()) * factor
