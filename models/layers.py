"""Which weights a stage works on: names matched by patterns, errors that suggest."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from tersor.errors import BadInput
from tersor.models.network import Network

V = TypeVar("V")


def weight_layers(network: Network) -> list[str]:
    """Names of all Conv and Linear layers, in the order of the definition."""
    return [name for name, layer in network.module().named_modules() if is_weight(layer)]


def matching(layers: Iterable[str], patterns: Iterable[str], where: str) -> set[str]:
    """Layers that match any of the shell patterns.

    Raises:
        BadInput: a pattern matches nothing; near names are suggested.
    """
    matches, layers = set[str](), list(layers)
    for pattern in patterns:
        hits = fnmatch.filter(layers, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, layers, 3)
            raise BadInput(
                f"no layer matches {pattern!r}",
                wanted=f"a pattern for some of {', '.join(layers[:8])}{' ...' if len(layers) > 8 else ''}",
                where=where,
                todo=f"Did you mean {', '.join(near)}?" if near else None,
            )
        matches.update(hits)
    return matches


def by_layer(layers: Iterable[str], given: Mapping[str, V], where: str) -> dict[str, V]:
    """The value of each layer that any pattern of `given` matches: of its own name, else of the last pattern.

    Raises:
        BadInput: a pattern matches nothing.
    """
    layers = list(layers)
    values = {
        layer: value for pattern, value in given.items() for layer in matching(layers, [pattern], where)
    }
    return values | {layer: given[layer] for layer in layers if layer in given}


def by_weight(amounts: Mapping[str, V]) -> dict[str, V]:
    """Values by layer as values by the name of the layer's weight."""
    return {f"{layer}.weight": value for layer, value in amounts.items()}


def chosen_layers(network: Network, patterns: Sequence[str], exclude: Sequence[str], where: str) -> list[str]:
    """Conv and Linear layers that match `patterns` (all, when empty) and not `exclude`, in order.

    Raises:
        BadInput: a pattern matches nothing, or no layer is left.
    """
    layers = weight_layers(network)
    chosen = matching(layers, patterns, where) if patterns else set(layers)
    chosen -= matching(layers, exclude, where)
    if not chosen:
        raise BadInput("no layer is left to work on", got=f"{len(layers)} layers, all excluded", where=where)
    return [name for name in layers if name in chosen]


def check_patterns(network: Network, settings: Any, where: str | None = None) -> None:
    """Check that every pattern of a stage that works on weights matches a layer; `where` is for the message.

    Raises:
        BadInput: as `chosen_layers`.
    """
    where = where or f"stage `{settings.name}`"
    layers = chosen_layers(network, settings.layers, settings.exclude, where)
    matching(layers, getattr(settings, "per_layer", {}), where)


def is_weight(layer: nn.Module) -> bool:
    """Whether the layer is one whose weight is pruned, shared and quantized: Conv or Linear."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
