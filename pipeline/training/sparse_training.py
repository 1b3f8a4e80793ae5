"""Sparsity that comes about while training: ramps of pruning, and optimizers that prefer zeros.

Ramps: automated gradual pruning (Zhu and Gupta, arXiv:1710.01878), s(t) = s1 + (s0 - s1) (1 - t)^3.
Penalties: L1; the proximal step of L1, soft thresholding; trimmed L1, which leaves the largest weights free
(Yun et al., arXiv:2002.04420); iterative hard thresholding (Blumensath and Davies, arXiv:0805.0510).
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tersor.errors import BadInput
from tersor.models.layers import by_layer, by_weight, chosen_layers
from tersor.models.network import Form, Network
from tersor.pipeline.recipe.recipe import Ramp, Training
from tersor.pipeline.weights.sparsity import small_to_zero


class SparseTraining:
    """What a training does beside following the gradient; nothing when its settings say so."""

    def __init__(self, module: nn.Module, network: Network, settings: Training) -> None:
        self.ramp, self.penalty = settings.ramp, settings.penalty
        where = f"stage `{getattr(settings, 'name', 'train')}`"
        self.free = _free_weights(module, network) if self.ramp or self.penalty else {}
        self.ramped = _ramped(network, self.ramp, self.free, where) if self.ramp else {}
        layers = [name.removesuffix(".weight") for name in self.ramped]
        self.final_amounts = (
            by_weight(by_layer(layers, self.ramp.per_layer, f"{where}, ramp")) if self.ramp else {}
        )
        self.masks = {
            name: weight.detach().ne(0)
            if network.form(name).pruned
            else torch.ones_like(weight, dtype=torch.bool)
            for name, weight in self.ramped.items()
        }
        self.length = 0
        if self.ramp:
            ramp_epochs = len(self.ramp.amounts) or self.ramp.epochs
            self.length = ramp_epochs or max(1, round(settings.epochs * 2 / 3))

    @property
    def names(self) -> Collection[str]:
        """Tensors whose zeros this class looks after, instead of a fixed mask."""
        return self.ramped

    def resumed(self, masks: dict[str, Tensor] | None) -> None:
        """Take up a checkpoint's masks; an old one has none, and they are read off its weights."""
        read = {name: weight.detach().ne(0) for name, weight in self.ramped.items()}
        self.masks = masks if masks is not None else read

    def before_step(self, step: int, batches: int) -> None:
        """Prune more when the ramp says so.

        Args:
            step: counted from the beginning of the training.
            batches: steps in an epoch.
        """
        if self.ramp is None or not self.prunes_at(step, batches):
            return
        epoch, batch = divmod(step, batches)
        begins = self._begins(batches)
        updates = len(begins)
        update = epoch * updates + begins.index(batch) + 1
        amount = partial(amount_at, self.ramp, update, self.length * updates)
        with torch.no_grad():
            pruned = small_to_zero(
                {name: weight.detach() * self.masks[name] for name, weight in self.ramped.items()},
                self.ramp.method,
                amount(),
                {name: amount(final_amount) for name, final_amount in self.final_amounts.items()},
            )
            for name, weight in self.ramped.items():
                self.masks[name] &= pruned[name].ne(0)
                weight.masked_fill_(~self.masks[name], 0.0)

    def prunes_at(self, step: int, batches: int) -> bool:
        """Whether `before_step` prunes there."""
        return self.ramp is not None and step % batches in self._begins(batches)

    def _begins(self, batches: int) -> list[int]:
        """The steps of an epoch at which a ramp prunes."""
        assert self.ramp is not None
        updates = min(self.ramp.updates_per_epoch, batches) if not self.ramp.amounts else 1
        return [update * batches // updates for update in range(updates)]

    def sparsity(self) -> dict[str, float]:
        """The fraction of zeros among the weights it works on; empty if there is nothing to do."""
        weights = [w.detach() for w in (self.ramped or self.free).values()]
        total = sum(w.numel() for w in weights)
        if not total:
            return {}
        alive = int(torch.stack([w.count_nonzero() for w in weights]).sum())
        return {"sparsity_fraction": (total - alive) / total}

    def after_backward(self) -> None:
        """Add the gradient of a penalty in the loss."""
        if self.penalty is None or self.penalty.kind not in ("l1", "trimmed_l1"):
            return
        for weight in self.free.values():
            if weight.grad is None:
                continue
            pull = weight.detach().sign() * self.penalty.weight
            if self.penalty.kind == "trimmed_l1":
                pull *= ~_largest(weight, self.penalty.keep)
            weight.grad += pull

    @torch.no_grad()
    def after_step(self, rate: float) -> None:
        """Project: soft or hard thresholds, then what the ramp has pruned back to zero.

        Args:
            rate: the learning rate of the step that was made.
        """
        if self.penalty is not None and self.penalty.kind == "proximal":
            for weight in self.free.values():
                weight.copy_(nn.functional.softshrink(weight, rate * self.penalty.weight))
        elif self.penalty is not None and self.penalty.kind == "hard_threshold":
            for weight in self.free.values():
                weight.masked_fill_(~_largest(weight, self.penalty.keep), 0.0)
        for name, weight in self.ramped.items():
            weight.masked_fill_(~self.masks[name], 0.0)  # times 0 would make -0.0, a second kind of zero

    def forms(self, network: Network) -> dict[str, Form]:
        """The network's forms; where training has made zeros they are pruned weights from now on."""
        zeroing = self.penalty is not None and self.penalty.makes_zeros
        names = set(self.ramped) | (set(self.free) if zeroing else set())
        return {**network.forms, **{name: replace(network.form(name), pruned=True) for name in names}}


def amount_at(ramp: Ramp, update: int, updates: int, own: float | None = None) -> float:
    """The amount at `update` (from 1) of `updates`, past the end the final one.

    Args:
        ramp: its shape, or its amount for every update.
        update: how many updates there have been, this one included.
        updates: until the ramp ends.
        own: a layer's own final amount.
    """
    if ramp.amounts:
        now = ramp.amounts[min(update, len(ramp.amounts)) - 1]
        return now if own is None else min(now, own)
    left = max(0.0, 1 - update / updates)
    final = ramp.amount if own is None else own
    return final + (ramp.start - final) * (left**3 if ramp.shape == "cubic" else left)


def _free_weights(module: nn.Module, network: Network) -> dict[str, Tensor]:
    """Trainable weights of Conv and Linear layers that are neither shared nor on a grid, by tensor name."""
    from tersor.models.layers import is_weight

    weights = {}
    for layer_name, layer in module.named_modules():
        name = f"{layer_name}.weight"
        if is_weight(layer) and name in network.tensors and network.form(name).kind == "dense":
            parametrizations = getattr(layer, "parametrizations", None)
            weights[name] = parametrizations.weight.original if parametrizations is not None else layer.weight
    return weights


def _ramped(network: Network, ramp: Ramp, free: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    layers = chosen_layers(network, ramp.layers, ramp.exclude, f"{where}, ramp")
    for layer in layers:
        if f"{layer}.weight" not in free:
            raise BadInput(
                "a ramp cannot prune weights that are already shared or quantized",
                got=f"layer {layer!r} with {network.form(f'{layer}.weight').kind} weights",
                where=f"{where}, ramp",
                todo="Put the ramp before the stage `sharing` or `linear`, or exclude the layer",
            )
    return {f"{layer}.weight": free[f"{layer}.weight"] for layer in layers}


def _largest(weight: Tensor, fraction: float) -> Tensor:
    """True for the `fraction` of the weights with the largest magnitudes (all that tie with the last)."""
    count = round(fraction * weight.numel())
    if not count:
        return torch.zeros_like(weight, dtype=torch.bool)
    magnitude = weight.detach().abs()
    # the smallest of the largest: kthvalue has no deterministic form on a GPU
    return magnitude >= magnitude.flatten().topk(count, sorted=False).values.min()
