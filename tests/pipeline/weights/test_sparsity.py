"""Weight pruning removes what it says, where it says."""

import pytest
import torch
from nets import make

from tersor.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.recipe.recipe import Sparsity
from tersor.pipeline.weights.sparsity import prune_weights


def pruned(net: Network, **settings: object) -> Network:
    return prune_weights(net, Sparsity(stage="sparsity", **settings))[0]  # type: ignore[arg-type]


def test_std_threshold_is_per_layer() -> None:
    net = make()
    after = pruned(net, method="std", amount=0.75)
    for name in ("conv1.0.weight", "fc1.weight"):
        before = net.tensors[name]
        small = before.abs() < 0.75 * before.std()
        assert torch.equal(after.tensors[name], torch.where(small, 0.0, before))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_level_hits_the_fraction_of_each_layer_and_takes_the_smallest(fraction: float) -> None:
    net = make()
    after = pruned(net, method="level", amount=fraction)
    for name in ("conv2.0.weight", "fc2.weight"):
        weight = after.tensors[name]
        assert int((weight == 0).sum()) == round(fraction * weight.numel())
        gone = net.tensors[name][weight == 0].abs()
        assert gone.numel() == 0 or gone.max() <= weight[weight != 0].abs().min()


def test_global_ranks_all_layers_together() -> None:
    net = make()
    after = pruned(net, method="global", amount=0.8)
    weights = {k: v for k, v in after.tensors.items() if v.dim() >= 2}
    total = sum(v.numel() for v in weights.values())
    assert sum(int((v == 0).sum()) for v in weights.values()) == round(0.8 * total)
    left = min(float(v[v != 0].abs().min()) for v in weights.values())
    gone = max(float(net.tensors[k][v == 0].abs().max()) for k, v in weights.items())
    assert gone <= left
    shares = {round(float((v == 0).float().mean()), 2) for v in weights.values()}
    assert len(shares) > 1


def test_excluded_layers_and_biases_are_untouched() -> None:
    net = make()
    after = pruned(net, method="level", amount=0.5, exclude=["conv*"])
    for name in ("conv1.0.weight", "conv2.0.weight", "fc1.bias"):
        assert torch.equal(after.tensors[name], net.tensors[name])
    assert set(after.forms) == {"fc1.weight", "fc2.weight"}
    assert all(form.pruned for form in after.forms.values())


def test_per_layer_amounts_override() -> None:
    after = pruned(make(), method="level", amount=0.5, per_layer={"fc2": 0.9})
    assert int((after.tensors["fc2.weight"] == 0).sum()) == round(0.9 * 1280)


def test_report_counts_what_is_left() -> None:
    _, details = prune_weights(make(), Sparsity(stage="sparsity", method="level", amount=0.25))
    row = next(r for r in details["layers"] if r["tensor"] == "fc2.weight")
    assert row == {"tensor": "fc2.weight", "weights": 1280, "nonzero_weights": 960, "sparsity_fraction": 0.25}


def test_pattern_without_a_layer_is_told_with_a_suggestion() -> None:
    with pytest.raises(BadInput, match="no layer matches 'fc3'.*Did you mean fc"):
        pruned(make(), layers=["fc3"])


def test_nothing_left_is_told() -> None:
    with pytest.raises(BadInput, match="no layer is left"):
        pruned(make(), exclude=["*"])


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 3)])
def test_n_of_m_keeps_the_largest_of_every_group_along_the_inputs(keep: int, of: int) -> None:
    net = make()
    after = pruned(net, method="n_of_m", keep=keep, of=of)
    for name in ("conv2.0.weight", "fc1.weight"):
        before, weight = net.tensors[name], after.tensors[name]
        inputs = before.shape[1]
        assert inputs >= of
        for start in range(0, inputs // of * of, of):
            group, left = before[:, start : start + of].abs(), weight[:, start : start + of]
            assert bool((left.ne(0).sum(1) == keep).all())
            smallest = torch.where(left != 0, group, torch.inf).amin(1)
            assert bool((torch.where(left == 0, group, 0).amax(1) <= smallest).all())
        rest = inputs // of * of
        assert torch.equal(weight[:, rest:], before[:, rest:])
    # one input channel: no group
    assert torch.equal(after.tensors["conv1.0.weight"], net.tensors["conv1.0.weight"])


def test_n_of_m_must_leave_less_than_the_group() -> None:
    with pytest.raises(ValueError, match=r"keep \(4\) must be below of \(4\)"):
        Sparsity(stage="sparsity", method="n_of_m", keep=4)
