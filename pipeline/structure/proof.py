"""The proof that a rebuilt network is right.

The masked network and the rebuilt one must give the same outputs. Masked means that nobody reads the
removed channels: they are zero in every tensor, rows and columns, and what mixes channels without a
weight (a mean over them, a LayerNorm, an attention's products) mixes those that stay. Both run in
float64, so that the only differences left are mistakes.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from tersor.errors import BadInput, TersorError
from tersor.models.network import Network
from tersor.models.program import Program, Step, Tensor, Value, called, leaves, mapped
from tersor.pipeline.structure.capture import capture
from tersor.pipeline.structure.coupling import Coupling
from tersor.pipeline.structure.narrowing import Cutting
from tersor.pipeline.structure.rules import RULES

PROOF_BOUND = 1e-5
"""Largest |masked - rebuilt| of any output that is accepted, as a fraction of the largest output."""


class Proof(NamedTuple):
    """How far a rebuilt network is from the masked one.

    difference: largest |masked - rebuilt| of an output.
    gap: largest |conv-only mask - rebuilt|.
    relative: largest |masked - rebuilt| over the largest output.
    """

    difference: float
    gap: float
    relative: float

    def told(self) -> dict[str, float]:
        """As the details of the stage."""
        return {
            "masked_max_abs_diff": self.difference,
            "masked_max_rel_diff": self.relative,
            "conv_mask_max_abs_diff": self.gap,
        }


def prove(
    module: nn.Module, rebuilt: nn.Module, coupling: Coupling, removed: np.ndarray, images: torch.Tensor
) -> Proof:
    """Compare masked and rebuilt network on images (N, C, H, W), in float64.

    Args:
        module: the network before, at full width, with the weights that `rebuilt` was cut from.
        coupling: of this network; its captured program says what is computed.

    Raises:
        TersorError: the first exceeds PROOF_BOUND of the largest output, or the captured program is not
        what the
            module computes.
    """
    images = images if coupling.captured.any_batch else images[:2]
    tensors = tensors_of(module, coupling)
    with torch.no_grad():
        small = outputs_of(rebuilt, images)
        masked_outputs = reference(coupling, tensors, removed, images)
        conv_only = interpret(coupling.captured.program, rows_masked(coupling, tensors, removed), images)
    difference, relative = distance(masked_outputs, small)
    gap, _ = distance(conv_only, small)
    if not relative <= PROOF_BOUND:
        raise TersorError(
            "the rebuilt network does not compute what the masked one does",
            got=f"an output that differs by {difference:.3g}, {relative:.3g} of the largest",
            wanted=f"at most {PROOF_BOUND:g} of it",
            where="stage `structure`, after the rebuild",
            todo="Exclude layers with `exclude` until it holds, and report the network",
        )
    return Proof(difference, gap, relative)


def randomised(net: Network) -> Network:
    """Statistics of norms drawn anew, and noise on every tensor that holds one value throughout.

    A branch that is multiplied by zero, or by ConvNeXt's 1e-6, shows no mistake: on fresh weights a proof
    would say little.
    """
    generator, tensors = torch.Generator().manual_seed(1), dict(net.tensors)
    for norm in {n.removesuffix(".running_var") for n in tensors if n.endswith(".running_var")}:
        for leaf, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            if (key := f"{norm}.{leaf}") in tensors:
                tensors[key] = low + torch.rand(tensors[key].shape, generator=generator)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensors[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    return net.with_tensors(tensors)


def check_captured(module: nn.Module, coupling: Coupling, images: torch.Tensor) -> None:
    """The captured program has to compute what the module does: all else is read off it.

    Raises:
        TersorError: it does not.
    """
    images = images if coupling.captured.any_batch else images[:2]
    with torch.no_grad():
        own = outputs_of(module, images)
        program = interpret(coupling.captured.program, tensors_of(module, coupling), images)
    difference, relative = distance(own, program)
    if not relative <= PROOF_BOUND:
        raise BadInput(
            "channels cannot be pruned: the network's output changes from one call to the next",
            got=f"an output that differs by {difference:.3g} between the network and its exported graph",
            wanted="a forward pass that gives the same for the same images, whatever else is in the batch",
            where=f"{type(module).__name__}.forward",
            todo="Leave random numbers and dropout out of evaluation, and do not let images depend on "
            "each other",
        )


def tensors_of(module: nn.Module, coupling: Coupling) -> dict[str, torch.Tensor]:
    """What the captured program reads, with the values of a module of the same definition."""
    state, captured = module.state_dict(), coupling.captured
    return {
        name: tensor if name in captured.computed or name not in state else state[name].detach()
        for name, tensor in captured.tensors.items()
    }


def outputs_of(module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """All outputs of a module in float64; through its graph where Python casts to float32 itself."""
    double = copy.deepcopy(module).double().eval()
    try:
        return _flat(double(images.double()))
    except RuntimeError as error:
        if "dtype" not in str(error) and "type" not in str(error):
            raise
    captured = capture(module, images[:2])
    return interpret(captured.program, captured.tensors, images)


def reference(
    coupling: Coupling, tensors: Mapping[str, torch.Tensor], removed: np.ndarray, images: torch.Tensor
) -> list[torch.Tensor]:
    """The masked network's outputs, float64."""
    cut = Cutting(coupling, removed)
    zeroed = {name: _zeroed(tensor, cut.kept_dims(Tensor(name))) for name, tensor in tensors.items()}
    return interpret(coupling.captured.program, zeroed, images, cut)


def rows_masked(
    coupling: Coupling, tensors: Mapping[str, torch.Tensor], removed: np.ndarray
) -> dict[str, torch.Tensor]:
    """Tensors in which the removed channels of layers are zero, but norms still send their constants on."""
    masked = dict(tensors)
    for name in coupling.layers():
        keep = coupling.keep(name, removed)
        for tensor in (f"{name}.weight", f"{name}.bias", name):
            if tensor in masked and masked[tensor].dim() and len(masked[tensor]) == len(keep):
                masked[tensor] = _zeroed(masked[tensor], [keep])
    return masked


def interpret(
    program: Program, tensors: Mapping[str, torch.Tensor], images: torch.Tensor, cut: Cutting | None = None
) -> list[torch.Tensor]:
    """Run a program in float64; with `cut`, steps that mix channels see only those that stay."""
    values: dict[str, Any] = {program.inputs[0]: images.double()}
    doubles = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    last = {
        leaf.name: step.name
        for step in program.steps
        for leaf in leaves(step.arguments)
        if isinstance(leaf, Value)
    }
    kept_alive = {leaf.name for leaf in leaves(program.output) if isinstance(leaf, Value)}

    def value_of(leaf: Any) -> Any:
        """What an argument is in this run."""
        if isinstance(leaf, Value):
            return values[leaf.name]
        if isinstance(leaf, Tensor):
            return doubles[leaf.name]
        return torch.float64 if leaf in (torch.float32, torch.float16, torch.bfloat16) else leaf

    for step in program.steps:
        if cut is not None and _mixes(step, cut):
            values[step.name] = _among_the_kept(step, cut, value_of)
        else:
            values[step.name] = called(step, value_of)
        for leaf in leaves(step.arguments):
            if isinstance(leaf, Value) and last[leaf.name] == step.name and leaf.name not in kept_alive:
                values.pop(leaf.name, None)
    return _flat(mapped(program.output, value_of))


def _mixes(step: Step, cut: Cutting) -> bool:
    rule = RULES.get(step.operator)
    given = step.bound()
    if rule is None:
        return False
    mixes = rule.mixes or isinstance(given.get("weight"), Value)
    if step.operator.startswith("conv"):  # a kernel that slides over channels
        mixes = mixes or any(k is not None and not k.all() for k in cut.kept_dims(given["input"])[2:])
    return mixes and any(cut.loses(leaf) for leaf in leaves(given) if isinstance(leaf, Value | Tensor))


def _among_the_kept(step: Step, cut: Cutting, value_of: Any) -> Any:
    """The step computed on the channels that stay, and zero elsewhere."""

    def kept_of(leaf: Any) -> Any:
        """The part of an argument that stays."""
        value = value_of(leaf)
        if isinstance(leaf, Value | Tensor) and isinstance(value, torch.Tensor):
            for dim, keep in enumerate(cut.kept_dims(leaf)):
                if keep is not None and not keep.all():
                    value = value.index_select(dim, torch.from_numpy(np.flatnonzero(keep)))
        return value

    narrower = Step(step.name, step.operator, {**step.arguments, **cut.changes(step)})
    result = called(narrower, kept_of)
    sets = cut.kept_dims(Value(step.name)) if isinstance(result, torch.Tensor) else []
    return _spread(result, sets) if isinstance(result, torch.Tensor) else result


def _spread(result: torch.Tensor, kept_dims: list[np.ndarray | None]) -> torch.Tensor:
    for dim, keep in enumerate(kept_dims):
        if keep is not None and not keep.all():
            shape = list(result.shape)
            shape[dim] = len(keep)
            result = result.new_zeros(shape).index_copy(dim, torch.from_numpy(np.flatnonzero(keep)), result)
    return result


def _zeroed(tensor: torch.Tensor, kept_dims: list[np.ndarray | None]) -> torch.Tensor:
    if not tensor.is_floating_point() or all(keep is None or keep.all() for keep in kept_dims):
        return tensor
    tensor = tensor.clone()
    for dim, keep in enumerate(kept_dims):
        if keep is not None and not keep.all():
            tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~keep)), 0)
    return tensor


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> tuple[float, float]:
    """Largest |one - other| of any output, and the same over the largest output; inf where shapes differ."""
    if [o.shape for o in one] != [o.shape for o in other]:
        return float("inf"), float("inf")
    absolute, relative = 0.0, 0.0
    for a, b in zip(one, other, strict=True):
        if not a.numel():
            continue
        difference = float((a.double() - b.double()).abs().max())
        size = float(a.abs().max())
        if difference != difference:
            return float("inf"), float("inf")
        absolute = max(absolute, difference)
        relative = max(relative, difference / size if size else difference)
    return absolute, relative


def _flat(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def check_widths(rebuilt: Network, kept: Mapping[str, torch.Tensor]) -> None:
    """ModelSpeedup also drops channels that were constant on its random input; nobody asked for that."""
    for name, keep in kept.items():
        got, asked = rebuilt.tensors[f"{name}.weight"].shape[0], int(keep.sum())
        if got != asked:
            raise TersorError(
                f"NNI removed other channels of layer {name!r} than asked",
                got=f"{got} channels left",
                wanted=f"{asked}",
                where="stage `structure`",
                todo="Exclude the layer with `exclude`, or prune before weights are pruned to zero",
            )


def check_runs(rebuilt: nn.Module, example: torch.Tensor) -> None:
    """A number of features written into forward still stands there after the channels are gone."""
    entered = [""]
    for name, layer in rebuilt.named_modules():
        layer.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
    try:
        with torch.no_grad():
            rebuilt(example)
    except Exception as error:
        raise BadInput(
            "channels cannot be pruned: the narrower network does not run",
            got=f"{type(error).__name__}: {error}",
            where=f"at or before layer {entered[-1]!r}",
            todo="A reshape with a number written in must become `torch.flatten(x, 1)` or take the number "
            "from x.shape; or list the layers before it under `exclude` of the structure stage",
        ) from error
