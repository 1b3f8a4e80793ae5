"""Whether a network gives the same for the same image: found out on fresh weights, before any training.

What it gives must depend on nothing but its tensors and that image. Random numbers, dropout that evaluation
leaves on, statistics of the batch, or tensors drawn at random that no state dict holds would train to the
end, and then be another network in the file.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tersor.errors import BadInput
from tersor.models.network import Network

IMAGES = 4
BOUND = 1e-3
"""Of the largest value: kernels differ by less from batch to batch, by 1e-6 or so."""
Trace = dict[tuple[str, int], torch.Tensor]
"""Name of a module and which of its outputs -> what it gave; in the order in which modules finish, inner ones
first."""


def check_repeatable(network: Network) -> None:
    """Run random images through twice, through a second build, and one of them alone.

    Raises:
        BadInput: the outputs differ; the cause and the first module where it shows are named.
    """
    images = torch.rand(IMAGES, *network.input_shape, generator=torch.Generator().manual_seed(0))
    module = network.module()
    first = _trace(module, images)
    where = f"network {network.definition!r}"
    if (name := _first_difference(first, _trace(module, images))) is not None:
        raise BadInput(
            "the network gives another output each time it is run",
            got=f"one image, two outputs in evaluation, first seen after layer {name!r}",
            wanted="a forward pass without random numbers once `eval()` was called",
            where=where,
            todo="Call F.dropout and its like with training=self.training, and draw nothing at random there",
        )
    other = network.module()
    if (name := _first_difference(first, _trace(other, images))) is not None:
        hidden = list(_hidden_differences(module, other))
        raise BadInput(
            "the network holds values that are no part of its weights",
            got="two networks with equal weights and other outputs"
            + (f"; {', '.join(hidden)} differ" if hidden else f", first seen after layer {name!r}"),
            wanted="all that decides the output in parameters and persistent buffers",
            where=where,
            todo="Register such tensors with self.register_buffer(name, tensor)",
        )
    if (name := _first_difference(first, _trace(module, images[:1]))) is not None:
        raise BadInput(
            "what the network says of an image depends on the other images of the batch",
            got=f"another output for an image alone, first seen after layer {name!r}",
            wanted="statistics that training keeps, in evaluation",
            where=where,
            todo="Leave out track_running_stats=False, and mix no images in forward",
        )


def _trace(module: nn.Module, images: torch.Tensor) -> Trace:
    """What every module gives for the images."""
    seen: Trace = {}
    counts: dict[str, int] = {}

    def note(name: str, given: Any) -> None:
        """Keep the tensors of numbers."""
        for leaf in pytree.tree_leaves(given):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dim():
                counts[name] = counts.get(name, 0) + 1
                seen[name, counts[name]] = leaf.detach().float()

    hooks = [
        m.register_forward_hook(lambda _m, _in, out, name=name: note(name, out))
        for name, m in module.named_modules()
        if not isinstance(m, torch.jit.ScriptModule)
    ]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _first_difference(one: Trace, other: Trace) -> str | None:
    """The first module after which the outputs of the same images differ, if the network's own do.

    Where its own hold one value throughout (a last layer that starts at zero) any module's count.
    """
    pairs = [(key[0], one[key], other[key]) for key in one if key in other]
    own = [(a, b) for name, a, b in pairs if name == ""]
    says_something = any(a.numel() > 1 and bool(a.std() > 0) for a, _ in own)
    if says_something and not any(_differ(a, b) for a, b in own):
        return None
    return next((name for name, a, b in pairs if _differ(a, b)), None)


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs differ in the images that both have; what has no place for each is not compared."""
    if one.shape[1:] != other.shape[1:]:
        return False
    count = min(len(one), len(other))
    size = float(one.abs().max()) if one.numel() else 0.0
    return bool(((one[:count] - other[:count]).abs() > BOUND * size).any())


def _hidden_differences(one: nn.Module, other: nn.Module) -> Iterator[str]:
    """Tensors of two builds that differ, though their state dicts are equal."""
    for (name, a), (_, b) in zip(one.named_modules(), other.named_modules(), strict=False):
        for key, value in (*vars(a).items(), *a._buffers.items()):
            held = b._buffers.get(key, vars(b).get(key))
            if isinstance(value, torch.Tensor) and isinstance(held, torch.Tensor):
                same = value.shape == held.shape and torch.equal(value, held)
                if not same:
                    yield repr(f"{name}.{key}" if name else key)
