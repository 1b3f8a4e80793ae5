"""Remove output channels of one layer alone; which layers allow that, and why the others do not.

What a channel hangs together with is read by coupling.py, taken out by narrowing.py and proven by proof.py,
as in the stage `structure`. Here are the layers whose channels go one by one, with nothing but their own
BatchNorm and depthwise convolutions and the inputs of the layers that read them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tersor.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.structure.coupling import Coupling, couple
from tersor.pipeline.structure.narrowing import narrowed
from tersor.pipeline.structure.proof import prove


@dataclass(frozen=True, eq=False)
class Wiring:
    """What one layer's output channels touch.

    layer: a Conv or Linear layer, each of whose channels is a set of its own in `coupling`.
    rows: the layers with one row a channel: itself, the norms and depthwise convolutions after it.
    readers: the Conv and Linear layers that read the channels, at least one.
    """

    layer: str
    rows: tuple[str, ...]
    readers: tuple[str, ...]
    coupling: Coupling = field(repr=False)

    @property
    def width(self) -> int:
        """Output channels of the layer."""
        return len(self.coupling.outputs[self.layer])

    def sets(self, channels: Collection[int]) -> np.ndarray:
        """The channels' sets, int64, for `narrowed` and `prove`."""
        return self.coupling.outputs[self.layer][sorted(set(channels))]

    def inputs(self, reader: str, channel: int) -> Tensor:
        """bool (in_channels,): what `reader` reads of one channel; many inputs behind a flatten."""
        return torch.from_numpy(~self.coupling.keep_inputs(reader, self.sets([channel])))


def wirings(network: Network) -> tuple[dict[str, Wiring], dict[str, str]]:
    """What each Conv and Linear layer's channels touch, in the order of their calls.

    Returns:
        layer -> wiring, for the layers whose channels can be removed alone; layer -> reason, for the others.

    Raises:
        BadInput: the network cannot be traced.
    """
    module = network.module()
    coupling = couple(module, torch.zeros(2, *network.input_shape))
    wired: dict[str, Wiring] = {}
    tied: dict[str, str] = {}
    for layer in coupling.layers():
        if coupling.kinds[layer].depthwise:
            continue  # has no channels of its own
        why = _tied(coupling, layer)
        if why is None:
            rows = tuple(n for n in coupling.outputs if _meet(coupling.outputs[n], coupling.outputs[layer]))
            read = (n for n in coupling.inputs if _meet(coupling.inputs[n], coupling.outputs[layer]))
            wired[layer] = Wiring(layer, rows, tuple(n for n in read if n not in rows), coupling)
        else:
            tied[layer] = why
    return wired, tied


def _tied(coupling: Coupling, layer: str) -> str | None:
    """Why a layer's channels cannot be removed one by one; None where they can."""
    sets = coupling.outputs[layer]
    fixed = [coupling.fixed[s] for s in sets.tolist() if s in coupling.fixed]
    if fixed:
        return f"its width is fixed by {fixed[0]}"
    if len(np.unique(sets)) < len(sets):
        return "its channels go in groups"
    for other in coupling.layers():
        if other != layer and not coupling.kinds[other].depthwise and _meet(coupling.outputs[other], sets):
            return f"its channels go together with those of {other!r}"
    return None


def _meet(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.isin(one, other).any())


def remove_channels(network: Network, wired: Wiring, channels: Collection[int]) -> Network:
    """The network without some channels of one layer; everything else keeps its values.

    Args:
        network: the one `wired` was read off; its weights are taken as dense.
        channels: numbers of the output channels that go, 0 to width - 1.

    Raises:
        BadInput: a number is out of range, or none would be left.
    """
    wrong = [c for c in channels if not 0 <= c < wired.width]
    if wrong or len(set(channels)) >= wired.width:
        raise BadInput(
            f"these channels cannot be removed from layer {wired.layer!r}",
            got=f"channel {wrong[0]}" if wrong else f"{len(set(channels))} channels, all that there are",
            wanted=f"numbers from 0 to {wired.width - 1}, at most {wired.width - 1} of them",
        )
    removed = wired.sets(channels)
    return network.with_tensors(narrowed(network.module(), wired.coupling, removed), forms={})


def proof(network: Network, wired: Wiring, channels: Sequence[int], inputs: Tensor) -> float:
    """Largest |masked - rebuilt| of a logit on inputs (N, C, H, W), float64, when `channels` are removed.

    Raises:
        TersorError: it exceeds 1e-5: the rebuilt network is wrong.
    """
    rebuilt = remove_channels(network, wired, channels)
    return prove(network.module(), rebuilt.module(), wired.coupling, wired.sets(channels), inputs).difference
