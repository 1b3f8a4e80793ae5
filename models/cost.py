"""What a network costs: parameters, multiply-adds, FLOPs and memory, layer by layer.

Counted on one forward pass of one image, so every size is the true one. Definitions:
- MACs: multiply-adds of convolutions and linear layers; everything else is left out, as in the
  literature. `torch.utils.flop_counter` counts 2 FLOPs a MAC and agrees.
- FLOPs: report R3's count, which drops one addition per output and adds one for an activation:
  convolution (2 n k^2 - 1 + a) f h w, dense m (2 n - 1 + a), a = 1 where an activation follows.
- Training memory: report R1's formula, 3 x parameters (value, gradient, momentum) + 2 x batch x
  activations (value and gradient); activations are the outputs of convolutions and linear layers.
- Inference memory: the parameters + the largest pair of one such layer's input and output, which
  have to be there at once. What a skip connection keeps alive beside them is not in it.
- A layer's memory: the same formulas with its own parameters, activations and pair. Training memory of
  the layers adds up to the network's; inference memory does not, for one pair is alive at a time.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tersor.models.network import Network

FLOAT_BYTES = 4
COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.ELU)

TOTALS = (
    "parameters",
    "weights",
    "biases",
    "nonzero_weights",
    "sparsity_fraction",
    "macs",
    "effective_macs",
    "flops",
    "activations",
    "weight_bytes",
    "inference_memory_bytes",
    "training_memory_elements",
    "training_memory_bytes",
    "batch",
    "bits",
)
"""What `Cost.to_dict` tells of the whole network."""


@dataclass(frozen=True)
class LayerCost:
    """One layer that has parameters, per image.

    name: as in `named_modules()`.
    type: the class of the layer.
    output_shape: of one image, without the batch.
    weights, nonzero_weights: elements of the weight of a convolution or linear layer, else 0.
    biases: elements of its bias.
    other_parameters: those of layers of other types (BatchNorm's scale and shift).
    macs: multiply-adds, over all calls of the layer.
    flops: by R3's formulas.
    weight_bytes: the weights at the asked number of bits, without tables.
    activations: elements of the outputs of a convolution or linear layer, over all calls, else 0.
    pair: elements of the input and output of one such layer's largest call, else 0.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    weights: int
    biases: int
    nonzero_weights: int
    other_parameters: int
    macs: int
    flops: int
    weight_bytes: int
    activations: int
    pair: int

    @property
    def parameters(self) -> int:
        """All of its parameters."""
        return self.weights + self.biases + self.other_parameters

    def inference_memory_bytes(self, batch: int) -> int:
        """Its parameters (weights as `weight_bytes` has them) + input and output of `batch` images."""
        return self.weight_bytes + FLOAT_BYTES * (self.parameters - self.weights + batch * self.pair)

    def training_memory_bytes(self, batch: int) -> int:
        """R1's formula for this layer alone, 4 bytes an element."""
        return FLOAT_BYTES * (3 * self.parameters + 2 * batch * self.activations)

    @property
    def sparsity_fraction(self) -> float:
        """Share of the weights that are exactly zero, 0 to 1."""
        return 1 - self.nonzero_weights / self.weights if self.weights else 0.0

    @property
    def effective_macs(self) -> int:
        """MACs with a non-zero weight: what is left if every zero could be skipped."""
        return round(self.macs * (1 - self.sparsity_fraction))


@dataclass(frozen=True)
class Cost:
    """The layers in the order they are called, and the totals.

    batch: images at once, for the memory figures.
    bits: bits per weight of convolutions and linear layers; all else counts 32.
    peak_pair: elements of the largest input and output of one layer, per image.
    uncounted: parameters that no called layer of a known type holds; their MACs are missing here.
    """

    layers: tuple[LayerCost, ...]
    batch: int
    bits: int
    peak_pair: int
    parameters: int
    uncounted: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Weights of convolutions and linear layers, without biases and BatchNorm."""
        return sum(layer.weights for layer in self.layers)

    @property
    def biases(self) -> int:
        """Biases of convolutions and linear layers."""
        return sum(layer.biases for layer in self.layers)

    @property
    def nonzero_weights(self) -> int:
        """Weights that are not exactly zero."""
        return sum(layer.nonzero_weights for layer in self.layers)

    @property
    def sparsity_fraction(self) -> float:
        """Share of the weights that are exactly zero, 0 to 1."""
        return 1 - self.nonzero_weights / self.weights if self.weights else 0.0

    @property
    def macs(self) -> int:
        """Multiply-adds of one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def effective_macs(self) -> int:
        """Multiply-adds of one image whose weight is not zero."""
        return sum(layer.effective_macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """R3's floating-point operations of one image."""
        return sum(layer.flops for layer in self.layers)

    @property
    def activations(self) -> int:
        """Outputs of convolutions and linear layers of one image, in elements."""
        return sum(layer.activations for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """All weights at `bits` bits, without tables."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def inference_memory_bytes(self) -> int:
        """Parameters (weights at `bits` bits) + the largest live pair of activations of a batch."""
        rest = self.parameters - self.weights
        return self.weight_bytes + FLOAT_BYTES * (rest + self.batch * self.peak_pair)

    @property
    def training_memory_elements(self) -> int:
        """R1's formula: 3 x parameters + 2 x batch x activations."""
        return 3 * self.parameters + 2 * self.batch * self.activations

    @property
    def training_memory_bytes(self) -> int:
        """R1's formula in bytes, 4 an element."""
        return FLOAT_BYTES * self.training_memory_elements

    def to_dict(self) -> dict[str, Any]:
        """Totals and layers for a JSON file."""
        layers = [
            {
                **asdict(r),
                "parameters": r.parameters,
                "sparsity_fraction": r.sparsity_fraction,
                "effective_macs": r.effective_macs,
                "inference_memory_bytes": r.inference_memory_bytes(self.batch),
                "training_memory_bytes": r.training_memory_bytes(self.batch),
            }
            for r in self.layers
        ]
        return {**{n: getattr(self, n) for n in TOTALS}, "uncounted": list(self.uncounted), "layers": layers}


@dataclass
class _Seen:
    """What the hooks note about one layer."""

    module: nn.Module
    output_shape: tuple[int, ...] = ()
    activations: int = 0
    pair: int = 0
    followed: bool = False


def cost(network: Network, *, batch: int = 1, bits: int = 32) -> Cost:
    """Count what `network` costs.

    Args:
        batch: images at once, at least 1, for the memory figures.
        bits: bits per weight, 1 to 32, for the byte figures.

    An activation is seen where it is a module (`nn.ReLU`), not where it is a function; it changes
    `flops` only.
    """
    if batch < 1 or not 1 <= bits <= 32:
        raise ValueError(f"batch {batch} has to be at least 1, bits {bits} 1 to 32")
    module = network.module()
    seen = _walk(module, network.input_shape)
    peak_pair = max((entry.pair for entry in seen.values()), default=0)
    layers = tuple(_layer(name, entry, bits) for name, entry in seen.items())
    counted = {
        f"{name}.{key}"
        for name, entry in seen.items()
        for key, _ in entry.module.named_parameters(recurse=False)
    }
    uncounted = tuple(name for name, _ in module.named_parameters() if name not in counted)
    parameters = sum(p.numel() for p in module.parameters())
    return Cost(layers, batch, bits, peak_pair, parameters, uncounted)


def _walk(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, _Seen]:
    """Layers by name in the order of their first call."""
    seen: dict[str, _Seen] = {}
    last: list[_Seen] = []

    def note(name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Record a layer's output shape and cost as it runs."""
        if isinstance(layer, ACTIVATIONS):
            for entry in last:
                entry.followed = True
            return
        entry = seen.setdefault(name, _Seen(layer))
        entry.output_shape = tuple(output.shape[1:])
        if isinstance(layer, COUNTED):
            entry.activations += output.numel()
            entry.pair = max(entry.pair, inputs[0].numel() + output.numel())
            last[:] = [entry]

    def hook(name: str) -> Any:
        """A forward hook that notes the layer called `name`."""
        return lambda layer, inputs, output: note(name, layer, inputs, output)

    handles: list[RemovableHandle] = [
        layer.register_forward_hook(hook(name))
        for name, layer in module.named_modules()
        if isinstance(layer, COUNTED + NORMS + ACTIVATIONS)
    ]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _layer(name: str, entry: _Seen, bits: int) -> LayerCost:
    layer, outputs = entry.module, entry.activations
    parameters = sum(p.numel() for p in layer.parameters(recurse=False))
    if not isinstance(layer, COUNTED):
        return LayerCost(name, type(layer).__name__, entry.output_shape, 0, 0, 0, parameters, 0, 0, 0, 0, 0)
    weight = layer.weight
    # One output element of a convolution or linear layer takes one pass over one filter.
    per_output = weight[0].numel()
    return LayerCost(
        name=name,
        type=type(layer).__name__,
        output_shape=entry.output_shape,
        weights=weight.numel(),
        biases=parameters - weight.numel(),
        nonzero_weights=int(torch.count_nonzero(weight)),
        other_parameters=0,
        macs=outputs * per_output,
        flops=outputs * (2 * per_output - 1 + entry.followed),
        weight_bytes=-(-weight.numel() * bits // 8),
        activations=outputs,
        pair=entry.pair,
    )
