"""Structural pruning: remove channels with an NNI pruner, rebuild, and prove the rebuilt network right.

Proof: the masked network (removed channels zero *after* BatchNorm) and the rebuilt one must give the
same logits. Both run in float64, so that the only differences left are mistakes.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from tersor.models.errors import BadInput, TersorError
from tersor.models.network import Network
from tersor.pipeline import nni_room
from tersor.pipeline.channels import frozen_layers
from tersor.pipeline.evaluation import reestimate_batch_norm
from tersor.pipeline.layers import matching
from tersor.pipeline.recipe import Structure

PROOF_BOUND = 1e-5
"""Largest |masked - rebuilt| of any logit that is accepted."""


def prune_channels(
    network: Network, settings: Structure, images: np.ndarray, progress: Callable[[float, str], None]
) -> tuple[Network, dict[str, Any]]:
    """Remove output channels of convolutions (and neurons), smaller but equal to the masked network.

    Args:
        network: dense weights; sharing and weight pruning come later.
        settings: pruner, sparsity, align, layers, exclude.
        images: training images (N, C, H, W), float32, preprocessed: the first 64 serve the proof,
            all of them the new BatchNorm statistics.
        progress: told fraction done and what is being done.

    Returns:
        The narrower network, and what was asked and achieved: widths before and after, ratio,
        `masked_max_abs_diff` (the proof), `conv_mask_max_abs_diff` (the gap to a mask on the
        convolutions alone, which is what the pruner's own masked model computes).

    Raises:
        BadInput: no layer matches, or the network cannot be traced or rebuilt (before any training).
        TersorError: the rebuilt network differs from the masked one.
    """
    module = network.module()
    example = torch.from_numpy(images[:2])
    progress(0.0, "tracing")
    plan = plan_widths(module, example, settings)
    remove = {layer: before - after for layer, (before, after) in plan.items()}
    progress(0.1, f"{settings.pruner} chooses channels")
    kept = nni_room.channel_masks(module, example, settings.pruner, remove)
    progress(0.4, "rebuilding")
    rebuilt = network.with_tensors(nni_room.speed_up(module, example, kept), forms={})
    _check_widths(rebuilt, kept)
    _check_runs(rebuilt.module(), example)
    proof_images = torch.from_numpy(images[:64])
    difference, gap = prove(module, rebuilt.module(), kept, proof_images)
    progress(0.8, "new BatchNorm statistics")
    if settings.reestimate_batch_norm:
        rebuilt = rebuilt.with_module(reestimate_batch_norm(rebuilt.module(), images))
    before, after = sum(b for b, _ in plan.values()), sum(int(k.sum()) for k in kept.values())
    return rebuilt, {
        "asked_sparsity_fraction": settings.sparsity,
        "achieved_sparsity_fraction": 1 - after / before,
        "widths": {name: [len(k), int(k.sum())] for name, k in kept.items()},
        "masked_max_abs_diff": difference,
        "conv_mask_max_abs_diff": gap,
    }


def try_structure(network: Network, settings: Structure) -> None:
    """Plan, mask, rebuild and prove on fresh weights: what cannot be pruned fails before training.

    Raises:
        BadInput, TersorError: as `prune_channels`.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, *network.input_shape, generator=generator).numpy()
    prune_channels(network, settings, images, lambda *_: None)


def plan_widths(module: nn.Module, example: torch.Tensor, settings: Structure) -> dict[str, tuple[int, int]]:
    """Choose how many channels each layer keeps.

    The kept count is (1 - sparsity) x width, rounded to the nearest multiple of `align` (at least one
    block, at most the width); without `align`, floor(sparsity x width) channels go, as NNI does it.
    Layers whose width something outside fixes (the outputs, a zero-padding shortcut) are never touched.

    Returns:
        layer -> (width before, width after).

    Raises:
        BadInput: a pattern matches no layer, or nothing is left to prune.
    """
    where = f"stage `{settings.name}`"
    layers = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    layers += [n for n, m in module.named_modules() if settings.linear and isinstance(m, nn.Linear)]
    protected = frozen_layers(module, example)
    chosen = matching(layers, settings.layers, where) if settings.layers else set(layers)
    chosen -= matching(layers, settings.exclude, where) | protected
    for group in nni_room.dependency_groups(module, example):
        if not group & set(layers) <= chosen or group & protected:
            chosen -= group  # channels of a group go together or not at all
    if not chosen:
        raise BadInput(
            "there is no layer whose channels could be pruned",
            got=f"{len(layers)} candidates, {len(protected)} of them of a width that the network fixes",
            where=f"{where}, settings `layers` and `exclude`",
        )
    plan = {}
    for name in layers:
        if name in chosen:
            width = nni_room.width_of(module, name)
            plan[name] = (width, kept_width(width, settings.sparsity, settings.align))
    return plan


def kept_width(width: int, sparsity: float, align: int | None) -> int:
    """Channels kept of `width` when the fraction `sparsity` is to go; see `plan_widths`."""
    if align is None or width <= align:
        return max(1, width - int(sparsity * width + 1e-9))
    return min(width, max(align, round((1 - sparsity) * width / align) * align))


def prove(
    module: nn.Module, rebuilt: nn.Module, kept: Mapping[str, torch.Tensor], images: torch.Tensor
) -> tuple[float, float]:
    """Compare masked and rebuilt network on images (N, C, H, W), in float64.

    Returns:
        (largest |masked - rebuilt| of a logit, largest |conv-only mask - rebuilt|).

    Raises:
        TersorError: the first exceeds PROOF_BOUND.
    """
    with torch.no_grad():
        images = images.double()
        small = copy.deepcopy(rebuilt).double()(images)
        difference = float((masked(module, kept).double()(images) - small).abs().max())
        conv_only = masked(module, kept, batch_norm=False).double()(images)
        gap = float((conv_only - small).abs().max())
    if not difference <= PROOF_BOUND:
        raise TersorError(
            "the rebuilt network does not compute what the masked one does",
            got=f"a logit that differs by {difference:.3g}",
            wanted=f"at most {PROOF_BOUND:g}",
            where="stage `structure`, after NNI's ModelSpeedup",
            todo="Exclude layers with `exclude` until it holds, and report the network",
        )
    return difference, gap


def masked(module: nn.Module, kept: Mapping[str, torch.Tensor], *, batch_norm: bool = True) -> nn.Module:
    """A copy of `module` in which the channels that are not kept are zero.

    With `batch_norm` they are zero after the BatchNorm that follows as well (its weight and bias are
    masked too); without, a removed channel still sends its BatchNorm constant on.
    """
    copied = copy.deepcopy(module).eval()
    norms = _following_batch_norms(copied)
    for name, keep in kept.items():
        layers = [name] + (norms.get(name, []) if batch_norm else [])
        for layer in (copied.get_submodule(n) for n in layers):
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    tensor.data[~keep] = 0  # type: ignore[operator]
    return copied


def _following_batch_norms(module: nn.Module) -> dict[str, list[str]]:
    traced = nni_room.trace(module)
    following: dict[str, list[str]] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(
            traced.get_submodule(node.target), nn.modules.batchnorm._BatchNorm
        ):
            continue
        for source in node.all_input_nodes:
            following.setdefault(str(source.target), []).append(str(node.target))
    return following


def _check_widths(rebuilt: Network, kept: Mapping[str, torch.Tensor]) -> None:
    """ModelSpeedup also drops channels that were constant on its random input; nobody asked for that."""
    for name, keep in kept.items():
        got, wanted = rebuilt.tensors[f"{name}.weight"].shape[0], int(keep.sum())
        if got != wanted:
            raise TersorError(
                f"NNI removed other channels of layer {name!r} than asked",
                got=f"{got} channels left",
                wanted=f"{wanted}",
                where="stage `structure`",
                todo="Exclude the layer with `exclude`, or prune before weights are pruned to zero",
            )


def _check_runs(rebuilt: nn.Module, example: torch.Tensor) -> None:
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
