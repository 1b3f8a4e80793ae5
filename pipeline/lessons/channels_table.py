"""`tersor look channels`: which layers' channels go together, and which must stay, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tersor.models.network import Network
from tersor.pipeline.structure.coupling import Coupling, couple


@dataclass(frozen=True)
class Channels:
    """Layers whose output channels hang together.

    layers: names, in the order they are called.
    width: output channels of the first of them.
    free: channel sets that may be removed.
    fixed: why the others must stay; empty where all are free.
    readers: layers that lose input channels with them; depthwise ones go along as a whole.
    """

    layers: tuple[str, ...]
    width: int
    free: int
    fixed: tuple[str, ...]
    readers: tuple[str, ...]


def spaces_of(network: Network) -> list[Channels]:
    """Every Conv and Linear layer of a network, with those that its channels hang together with.

    Raises:
        BadInput: the network cannot be traced.
    """
    coupling = couple(network.module(), torch.zeros(2, *network.input_shape))
    together = coupling.spaces(coupling.layers())
    spaces = [_channels(coupling, names) for names in together]
    known = {name for space in spaces for name in space.layers}
    spaces += [_channels(coupling, [name]) for name in coupling.layers() if name not in known]
    order = {name: at for at, name in enumerate(coupling.layers())}
    return sorted(spaces, key=lambda space: order[space.layers[0]])


def sentences(spaces: Sequence[Channels]) -> str:
    """A sentence a space."""
    return "\n".join(_sentence(space) for space in spaces)


def _channels(coupling: Coupling, names: Sequence[str]) -> Channels:
    sets = {s for name in names for s in coupling.outputs[name].tolist()}
    fixed = sorted({coupling.fixed[s] for s in sets if s in coupling.fixed})
    free = sets - set(coupling.fixed)
    readers = [
        name
        for name, read in coupling.inputs.items()
        if free & set(read.tolist()) and not (name in names and coupling.kinds[name].depthwise)
    ]
    return Channels(tuple(names), len(coupling.outputs[names[0]]), len(free), tuple(fixed), tuple(readers))


def _sentence(space: Channels) -> str:
    layers = ", ".join(space.layers)
    if not space.free:
        return f"{layers} ({space.width} channels) must stay as wide: {'; '.join(space.fixed)}."
    narrowed = f" and narrow the inputs of {', '.join(space.readers)}" if space.readers else ""
    together = " lose channels together" if len(space.layers) > 1 else " can lose channels"
    fixed = f" Some must stay: {'; '.join(space.fixed)}." if space.fixed else ""
    return f"{layers} ({space.width} channels, {space.free} sets){together}{narrowed}.{fixed}"
