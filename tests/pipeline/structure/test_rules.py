"""Every rule on a tiny network: narrowed by it, the network computes what the masked one does, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.models.program import OPERATORS, PYTHON, Program, build
from tersor.pipeline.structure.coupling import couple
from tersor.pipeline.structure.narrowing import narrowed_program
from tersor.pipeline.structure.proof import prove, tensors_of
from tersor.pipeline.structure.rules import RULES

EXAMPLE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Convolution of 8 channels, what is tried, convolution of 4, mean, linear."""

    def __init__(self, middle, reads: int = 8, **layers: nn.Module) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.middle = middle
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(reads, 4, 1)
        self.head = nn.Linear(4, 5)
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.last(self.middle(self.first(x), self.layers)).mean((2, 3)))


def attention(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    """Two heads over the pixels."""
    n, c, h, w = x.shape
    qkv = layers["qkv"](x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
    return layers["proj"](mixed.transpose(1, 2).reshape(n, h * w, c)).transpose(1, 2).reshape(n, c, h, w)


CASES = {
    "view and back": (lambda x, _: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8), 8, {}),
    "pixel shuffle": (lambda x, _: functional.pixel_shuffle(x, 2), 2, {}),
    "pixel shuffle by hand": (
        lambda x, _: x.view(-1, 2, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(-1, 2, 16, 16),
        2,
        {},
    ),
    "pixel unshuffle": (lambda x, _: functional.pixel_unshuffle(x, 2), 32, {}),
    "cat, slices, chunk": (lambda x, _: torch.cat([x[:, 2:], *x.chunk(2, 1), x + 1], 1), 22, {}),
    "stack": (lambda x, _: torch.stack([x, x.relu()], 1).sum(1), 8, {}),
    "groups": (lambda x, m: m["c"](x), 8, {"c": nn.Conv2d(8, 8, 3, padding=1, groups=4)}),
    "depthwise, two each": (lambda x, m: m["c"](x), 16, {"c": nn.Conv2d(8, 16, 3, padding=1, groups=8)}),
    "transposed": (lambda x, m: m["c"](x), 6, {"c": nn.ConvTranspose2d(8, 6, 2, stride=2)}),
    "transposed depthwise": (
        lambda x, m: m["c"](x),
        8,
        {"c": nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)},
    ),
    "group norm": (lambda x, m: m["n"](x), 8, {"n": nn.GroupNorm(4, 8)}),
    "group norm of one group": (lambda x, m: m["n"](x), 8, {"n": nn.GroupNorm(1, 8)}),
    "layer norm": (lambda x, m: m["n"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 8, {"n": nn.LayerNorm(8)}),
    "batch norm": (lambda x, m: m["n"](x), 8, {"n": nn.BatchNorm2d(8)}),
    "prelu": (lambda x, m: m["a"](x), 8, {"a": nn.PReLU(8)}),
    "glu": (lambda x, _: functional.glu(x, 1), 4, {}),
    "padding with a value": (lambda x, _: functional.pad(x, (0, 0, 0, 0, 1, 2), value=0.7), 11, {}),
    "global response norm": (
        lambda x, _: (
            x * x.norm(dim=(2, 3), keepdim=True) / x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True)
        ),
        8,
        {},
    ),
    "spatial gate": (
        lambda x, _: x * torch.sigmoid(x.mean(1, keepdim=True) + x.amax(1, keepdim=True)),
        8,
        {},
    ),
    "slides over channels": (
        lambda x, m: x * m["c"](x.mean((2, 3)).unsqueeze(1)).sigmoid().view(-1, 8, 1, 1),
        8,
        {"c": nn.Conv1d(1, 1, 3, padding=1, bias=False)},
    ),
    "attention": (attention, 8, {"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)}),
    "not zero at zero": (lambda x, _: functional.elu(x) + 1, 8, {}),
    "interpolation": (lambda x, _: functional.interpolate(x, scale_factor=2.0, mode="bilinear"), 8, {}),
    "images and channels as one": (
        lambda x, _: x.reshape(-1, 64).softmax(1).view(x.shape[0], -1, 8, 8),
        8,
        {},
    ),
    "einsum": (
        lambda x, _: torch.einsum(
            "npq,ncq->ncp",
            torch.einsum("ncp,ncq->npq", x.flatten(2), x.flatten(2)).softmax(-1),
            x.flatten(2),
        ).view(x.shape),
        8,
        {},
    ),
    "in place": (lambda x, _: x.relu_().mul_(2).add_(1), 8, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_network_narrowed_by_a_rule_computes_what_the_masked_one_does(case: str) -> None:
    middle, reads, layers = CASES[case]
    torch.manual_seed(0)
    module = Net(middle, reads, **layers).eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + (0.5 if name.endswith("running_var") else -0.3))
    coupling = couple(module, EXAMPLE)
    free = coupling.free("first")
    assert len(free) > 1, coupling.fixed
    removed = free[: len(free) // 2]
    program, tensors = narrowed_program(coupling, tensors_of(module, coupling), removed)
    assert tensors["first.weight"].shape[0] <= 8 - len(removed)
    small = build(Program.from_json(program.to_json()), tensors)
    assert prove(module, small, coupling, removed, torch.randn(3, 3, 8, 8)).difference <= 1e-10


def test_every_rule_is_of_an_operator_that_a_stored_network_may_call() -> None:
    assert set(RULES) <= OPERATORS | set(PYTHON)


def test_a_stored_network_calls_no_other_operator() -> None:
    raw = {
        "inputs": ["x"],
        "steps": [["y", "from_file.default", {"filename": "a"}]],
        "output": {"value": "y"},
    }
    with pytest.raises(ValueError, match="operator 'from_file.default' is not one that a network may call"):
        Program.from_json({**raw, "buffers": []})


def test_pixel_shuffle_takes_channels_in_fours() -> None:
    module = Net(lambda x, _: functional.pixel_shuffle(x, 2), 2).eval()
    coupling = couple(module, EXAMPLE)
    assert coupling.outputs["first"].tolist() == np.repeat(coupling.inputs["last"], 4).tolist()
