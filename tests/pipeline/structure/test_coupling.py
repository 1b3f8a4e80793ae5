"""Hard structures: which channels go together, and that the narrower network is proven and runs."""

import copy

import numpy as np
import pytest
import torch
from nets import make
from torch import Tensor, nn
from torch.nn import functional

from tersor.errors import BadInput
from tersor.models.program import build
from tersor.models.rebuild import rebuild
from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.structure.coupling import couple
from tersor.pipeline.structure.narrowing import narrowed, narrowed_program
from tersor.pipeline.structure.proof import check_runs, prove, tensors_of
from tersor.pipeline.structure.widths import choose, removals, spaces_to_prune

EXAMPLE = torch.zeros(2, 3, 8, 8)


class Base(nn.Module):
    """A stem of 8 channels; subclasses add the structure; a head of pooling and a linear layer."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(features, 5)

    def middle(self, x: Tensor) -> Tensor:
        """(N, 8, H, W) -> (N, features, H, W)."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Concat(Base):
    """Two branches side by side, as in GoogLeNet, after their own input, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__(8 + 4 + 6)
        self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(18)

    def middle(self, x: Tensor) -> Tensor:
        """Features of all three, normalised together."""
        x = torch.cat([x, self.a(x)], 1)
        return self.norm(torch.cat((x, functional.relu(self.b(x))), dim=1))


class Depthwise(Base):
    """A depthwise convolution with two outputs a channel, then a pointwise one with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        """An inverted residual."""
        return x + self.point(functional.hardswish(self.norm(self.deep(x))))


class Grouped(Base):
    """A convolution in four groups, between two pointwise ones (ResNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.grouped = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 3, padding=1, groups=4)
        self.back = nn.Conv2d(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        """A residual block with groups."""
        return functional.relu(x + self.back(self.grouped(self.wide(x))))


class SqueezeExcite(Base):
    """Channels weighted by a small network of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.down, self.up, self.out = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Conv2d(12, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        """Convolution, gate, projection."""
        x = functional.silu(self.conv(x))
        gate = functional.adaptive_avg_pool2d(x, 1)
        return self.out(x * torch.sigmoid(self.up(functional.relu(self.down(gate)))))


class Twice(Base):
    """One convolution called twice: its outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        """Two calls."""
        return self.again(functional.relu(self.again(x)))


class View(Base):
    """`view(n, -1)` before the linear layer."""

    def __init__(self) -> None:
        super().__init__(8 * 64)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.stem(x)
        return self.head(x.view(x.size(0), -1))


class Shuffled(Base):
    """Channels reordered by a view: pairs of them go together."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.after = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        """ShuffleNet's trick, then an ordinary pair."""
        n, _, h, w = x.shape
        x = x.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)
        return self.after(functional.relu(self.inner(x)))


def shaken(module: nn.Module) -> nn.Module:
    """Random BatchNorm statistics: fresh ones hide a dropped constant."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


def halved(kind: type[nn.Module]) -> tuple[dict[str, list[int]], float]:
    """Prune half of everything; returns widths by layer and the proof's difference.

    Every layer has scores of its own: equal ones would remove the same channels of layers that go together
    but were not coupled.
    """
    torch.manual_seed(0)
    module = shaken(kind())
    coupling = couple(module, EXAMPLE)
    settings = Structure(stage="structure", sparsity=0.5)
    spaces = spaces_to_prune(module, coupling, settings)
    rng = np.random.default_rng(0)
    scores = {name: rng.random(len(coupling.outputs[name])) for name in coupling.layers()}
    removed = choose(spaces, removals(spaces, scores, coupling, settings), scores, coupling)
    tensors = narrowed(module, coupling, removed)
    small = rebuild(kind(), tensors)
    check_runs(small, EXAMPLE)
    difference = prove(module, small, coupling, removed, torch.randn(4, 3, 8, 8)).difference
    layers = coupling.layers()
    return {n: [len(coupling.outputs[n]), int(coupling.keep(n, removed).sum())] for n in layers}, difference


@pytest.mark.parametrize(
    ("kind", "widths"),
    [
        (Concat, {"stem.0": [8, 4], "a": [4, 2], "b": [6, 3], "head": [5, 5]}),
        (Depthwise, {"stem.0": [8, 4], "deep": [16, 8], "point": [8, 4], "head": [5, 5]}),
        (Grouped, {"stem.0": [8, 4], "wide": [16, 8], "grouped": [8, 4], "back": [8, 4], "head": [5, 5]}),
        (
            SqueezeExcite,
            {"stem.0": [8, 4], "conv": [12, 6], "down": [4, 2], "up": [12, 6], "out": [8, 4], "head": [5, 5]},
        ),
        (Twice, {"stem.0": [8, 4], "again": [8, 4], "head": [5, 5]}),
        (View, {"stem.0": [8, 4], "head": [5, 5]}),
    ],
)
def test_hard_structures_are_halved_and_proven(kind: type[nn.Module], widths: dict) -> None:
    found, difference = halved(kind)
    assert found == widths
    assert difference <= 1e-12


def test_two_calls_of_one_layer_couple_its_outputs_with_all_that_it_reads() -> None:
    """The second call reads what the first one gave; what the first one reads must go with it."""
    coupling = couple(shaken(Twice()), EXAMPLE)
    assert coupling.inputs["again"].tolist() == coupling.outputs["again"].tolist()
    assert coupling.outputs["stem.0"].tolist() == coupling.outputs["again"].tolist()
    assert coupling.spaces(coupling.layers()) == [["stem.0", "again"]]


class NormTwice(Base):
    """One BatchNorm called on the results of two convolutions."""

    def __init__(self) -> None:
        super().__init__(4)
        self.a, self.b = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        """Two branches that meet only in what normalises them."""
        one, other = self.norm(self.a(x)), self.norm(self.b(x))
        return self.c(functional.relu(one)) + self.d(functional.relu(other))


def test_two_calls_of_one_norm_couple_what_it_normalises() -> None:
    widths, difference = halved(NormTwice)
    assert widths == {"stem.0": [8, 4], "a": [6, 3], "b": [6, 3], "c": [4, 2], "d": [4, 2], "head": [5, 5]}
    assert difference <= 1e-12
    coupling = couple(shaken(NormTwice()), EXAMPLE)
    assert coupling.outputs["a"].tolist() == coupling.outputs["b"].tolist()


class Joined(Base):
    """Two convolutions side by side along a dimension that is given, of images as high as they are wide."""

    def __init__(self, dim: int) -> None:
        super().__init__(4)
        self.dim = dim
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.out = nn.Conv2d(16 if dim in (1, -3) else 8, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        """Both, then one convolution."""
        return self.out(torch.cat([self.a(x), self.b(x)], dim=self.dim))


def test_channels_are_joined_along_dimension_1_also_where_it_is_counted_from_the_end() -> None:
    for dim in (1, -3):
        coupling = couple(shaken(Joined(dim)), EXAMPLE)
        both = [*coupling.outputs["a"].tolist(), *coupling.outputs["b"].tolist()]
        assert coupling.inputs["out"].tolist() == both
        assert len(coupling.free("a")) == len(coupling.free("b")) == 8


@pytest.mark.parametrize("dim", [2, -2, 3, -1])
def test_pixels_that_are_joined_do_not_pass_for_channels(dim: int) -> None:
    """Above one another or side by side, channel 0 of one is channel 0 of the other: neither goes alone."""
    coupling = couple(shaken(Joined(dim)), EXAMPLE)
    for one, other in zip(coupling.outputs["a"].tolist(), coupling.outputs["b"].tolist(), strict=True):
        assert one == other or {one, other} <= coupling.fixed.keys()


def test_a_shuffle_with_its_sizes_written_in_lives_on_as_a_program() -> None:
    """Its Python cannot follow: `view(n, 2, 4, h, w)`."""
    module = shaken(Shuffled())
    coupling = couple(module, EXAMPLE)
    assert len(coupling.free("stem.0")) == 4  # pairs go together
    removed = coupling.free("stem.0")[:2]
    program, tensors = narrowed_program(coupling, tensors_of(module, coupling), removed)
    small = build(program, tensors)
    assert small.get_parameter("stem.0.weight").shape[0] == 4
    assert prove(module, small, coupling, removed, torch.randn(4, 3, 8, 8)).difference <= 1e-12


class Sorted(Base):
    """Channels brought into another order by their values: nothing that it touches can go."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.after = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        """Sort, then an ordinary pair."""
        return self.after(functional.relu(self.inner(x.sort(1)[0])))


def test_an_operator_that_cannot_lose_channels_is_named_as_the_reason() -> None:
    coupling = couple(shaken(Sorted()), EXAMPLE)
    assert {coupling.fixed[s] for s in coupling.outputs["stem.0"].tolist()} == {"operator 'sort'"}
    assert len(coupling.free("inner")) == 6


def test_outputs_are_fixed_whatever_comes_after_the_last_convolution() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    coupling = couple(net, torch.zeros(2, 1, 8, 8))
    assert len(coupling.free("2")) == 0
    assert len(coupling.free("0")) == 8
    assert set(coupling.fixed.values()) == {"the network's inputs", "the network's outputs"}


def test_zero_padding_shortcut_fixes_only_the_zeros() -> None:
    net = make("resnet20", (3, 16, 16), shortcut="A").module()
    coupling = couple(net, torch.zeros(2, 3, 16, 16))
    assert len(coupling.free("conv1")) == 16
    assert len(coupling.free("layer2.0.conv2")) == 16
    assert len(coupling.free("layer3.2.conv2")) == 16
    assert len(coupling.free("layer3.2.conv1")) == 64


def test_channels_of_a_flattened_map_come_in_order() -> None:
    coupling = couple(shaken(View()), EXAMPLE)
    assert coupling.inputs["head"].tolist() == np.repeat(coupling.outputs["stem.0"], 64).tolist()


def test_nothing_but_unknown_operations_says_which() -> None:
    class Only(Sorted):
        """The order alone."""

        def middle(self, x: Tensor) -> Tensor:
            """Sorted channels."""
            return x.sort(1)[0]

    module = shaken(Only())
    settings = Structure(stage="structure")
    with pytest.raises(BadInput, match=r"no layer whose channels.*operator 'sort'"):
        spaces_to_prune(module, couple(module, EXAMPLE), settings)


class Normalised(Base):
    """An affine InstanceNorm between two convolutions."""

    def __init__(self) -> None:
        super().__init__(4)
        self.norm, self.out = nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        """Normalise, then convolve."""
        return self.out(functional.relu(self.norm(x)))


class JoinedDeep(Base):
    """A depthwise convolution over two convolutions side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.deep, self.out = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        """Both, then each channel by itself."""
        return self.out(functional.relu(self.deep(torch.cat([self.a(x), self.b(x)], 1))))


def test_an_affine_instance_norm_is_narrowed() -> None:
    widths, difference = halved(Normalised)
    assert widths["stem.0"] == [8, 4]
    assert difference <= 1e-12


def test_half_of_a_concatenation_is_half_of_all_it_joins() -> None:
    widths, difference = halved(JoinedDeep)
    assert widths["deep"] == [16, 8]
    assert widths["a"][1] + widths["b"][1] == 8
    assert difference <= 1e-12


@pytest.mark.parametrize("function", [torch.sigmoid, nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid()])
def test_what_gives_more_than_zero_for_zero_loses_channels_too(function) -> None:  # type: ignore[no-untyped-def]
    """Masked means that nobody reads a channel, not that it is zero everywhere."""

    class Squashed(Base):
        """The function between two convolutions."""

        def __init__(self) -> None:
            super().__init__(4)
            self.function, self.out = function, nn.Conv2d(8, 4, 1)

        def middle(self, x: Tensor) -> Tensor:
            """Squash, then convolve."""
            return self.out(self.function(x))

    module = shaken(Squashed())
    coupling = couple(module, EXAMPLE)
    removed = coupling.free("stem.0")[:4]
    small = rebuild(copy.deepcopy(module), narrowed(module, coupling, removed))
    assert small.out.weight.shape == (4, 4, 1, 1)
    assert prove(module, small, coupling, removed, torch.randn(4, 3, 8, 8)).difference <= 1e-12


class Attention(Base):
    """Queries and keys of two channels a head, values of eight, in one layer (LeViT)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.qkv = nn.Linear(8, 2 * (2 + 2 + 8))
        self.proj = nn.Linear(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        """Two heads over the pixels."""
        n, _, h, w = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(n, h * w, 2, 12)
        q, k, v = (part.transpose(1, 2) for part in qkv.split([2, 2, 8], 3))
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        mixed = self.proj(mixed.transpose(1, 2).reshape(n, h * w, 16))
        return mixed.transpose(1, 2).reshape(n, 16, h, w)


def test_queries_and_values_of_one_layer_each_lose_half() -> None:
    module = Attention().eval()
    coupling = couple(module, EXAMPLE)
    settings = Structure(stage="structure", sparsity=0.5, linear=True)
    spaces = spaces_to_prune(module, coupling, settings)
    rng = np.random.default_rng(0)
    scores = {name: rng.random(len(coupling.outputs[name])) for space in spaces for name in space.layers}
    scores["qkv"] = np.tile([1, 1.2, 1, 1.2, *[1] * 7, 9], 2)  # by importance alone only values went
    removed = choose(spaces, removals(spaces, scores, coupling, settings), scores, coupling)
    kept = coupling.keep("qkv", removed).reshape(2, 12)
    assert kept[:, :2].sum() == kept[:, 2:4].sum() == 2
    assert kept[:, 4:].sum() == 8


def test_layers_that_share_some_sets_each_lose_half() -> None:
    """As ShuffleNet's: a later shuffle ties channels that an earlier layer has apart."""

    class Shuffled(Base):
        """Two layers; the second's channels are tied in pairs."""

        def __init__(self) -> None:
            super().__init__(16)
            self.a, self.b = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1)

        def middle(self, x: Tensor) -> Tensor:
            """A sum with a shuffled copy."""
            y = self.a(x)
            return self.b(y) + torch.cat([y[:, :8], y[:, :8]], 1)

    module = Shuffled().eval()
    coupling = couple(module, EXAMPLE)
    settings = Structure(stage="structure", sparsity=0.5)
    spaces = spaces_to_prune(module, coupling, settings)
    scores = {name: np.ones(len(coupling.outputs[name])) for space in spaces for name in space.layers}
    scores["a"] = np.array([1.0] * 7 + [50.0] + [10.0] * 8)  # by importance alone nearly all of b went
    removed = choose(spaces, removals(spaces, scores, coupling, settings), scores, coupling)
    assert [int(coupling.keep(name, removed).sum()) for name in ("a", "b")] == [8, 8]


def test_what_the_user_froze_stays_frozen_also_as_a_graph() -> None:
    module = Base()
    module.stem[0].weight.requires_grad_(False)
    coupling = couple(module.eval(), EXAMPLE)
    removed = coupling.free("stem.0")[:4]
    program, tensors = narrowed_program(coupling, tensors_of(module, coupling), removed)
    small = build(type(program).from_json(program.to_json()), tensors)
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["stem.0.weight"]


def test_a_scripted_part_is_told() -> None:
    module = Base()
    module.stem = torch.jit.script(module.stem)
    with pytest.raises(BadInput, match="part of the network is TorchScript.*'stem'"):
        couple(module.eval(), EXAMPLE)
