"""Weights that are no tensors of their own but computed from others: weight norm, spectral norm, masks."""

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tersor.errors import BadInput
from tersor.models.network import Network

HOOKS = {
    WeightNorm: "torch.nn.utils.remove_weight_norm(layer)",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm(layer)",
    prune.BasePruningMethod: "torch.nn.utils.prune.remove(layer, 'weight')",
}
"""What computes a weight before each call -> how it is made a plain tensor again."""


def check_no_hooks(network: Network) -> None:
    """Weights that a hook computes are no tensors that can be copied, pruned or written.

    Raises:
        BadInput: a layer has one; the layer and the remedy are named.
    """
    for name, module in network.module().named_modules():
        for hook in module._forward_pre_hooks.values():
            for kind, remedy in HOOKS.items():
                if isinstance(hook, kind):
                    raise BadInput(
                        f"layer {name!r} computes its weight anew before each call",
                        got=f"{type(hook).__name__}, a hook",
                        wanted="a weight that is a tensor of its own",
                        where=f"network {network.definition!r}",
                        todo=f"Call {remedy} before the factory returns, and save weights after that too",
                    )


def check_plain(network: Network, stage: str) -> None:
    """Weights that a parametrization computes cannot be changed by a stage.

    Args:
        stage: the name of the stage that changes weights.

    Raises:
        BadInput: a layer has one; the layer and the remedies are named.
    """
    for name, module in network.module().named_modules():
        if parametrize.is_parametrized(module):
            kinds = [type(p).__name__ for each in module.parametrizations.values() for p in each]
            raise BadInput(
                f"layer {name!r} computes its weight from other tensors",
                got=f"a parametrization, {', '.join(kinds)}",
                wanted="a weight that is a tensor of its own",
                where=f"network {network.definition!r}, stage `{stage}`",
                todo="Set `fold_parametrizations: true` on a structure stage before it, or call "
                f"parametrize.remove_parametrizations(layer, {next(iter(module.parametrizations))!r}) in "
                "the factory",
            )


def plain(module: nn.Module) -> bool:
    """Whether no layer's weight is computed by a parametrization."""
    return not any(map(parametrize.is_parametrized, module.modules()))
