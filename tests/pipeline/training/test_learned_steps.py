"""Learned scales: LSQ's gradients, values exactly on the grid as trained, nothing left behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import blobs, make
from torch import nn

from tersor.models.network import Activation, Form, check_form
from tersor.pipeline.recipe.recipe import Activations, Linear, Sparsity, Tune
from tersor.pipeline.training.constraints import constrain
from tersor.pipeline.training.fit import fit
from tersor.pipeline.training.learned_steps import (
    InputGrid,
    LearnGrid,
    attach_grids,
    integer_range,
    simulated,
    take_grids,
)
from tersor.pipeline.weights.activations import calibrate
from tersor.pipeline.weights.linear import quantize_weights, round_to_grid
from tersor.pipeline.weights.sparsity import prune_weights


def form_of(scale: torch.Tensor, bits: int, axis: int | None = 0, *, pruned: bool = False) -> Form:
    return Form("linear", pruned, bits, axis, tuple(scale.flatten().tolist()))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gradients_are_those_of_the_paper(bits: int) -> None:
    torch.manual_seed(0)
    weight, scale = round_to_grid(torch.randn(3, 50), bits, axis=0, rule="mse")
    keeper = LearnGrid(weight, form_of(scale, bits))
    latent = (weight + 0.4 * scale * torch.rand(3, 50) + scale * torch.randn(3, 50)).requires_grad_()
    arriving = torch.randn(3, 50)
    (keeper(latent) * arriving).sum().backward()
    top = 2 ** (bits - 1) - 1
    values = latent.detach() / scale
    inside = values.abs() <= top
    slope = torch.where(inside, values.round() - values, top * values.sign())
    # LSQ, equations 3 and 4; the trained multiplier is in units of the starting scale
    wanted = (arriving * slope).sum(1) / (50 * top) ** 0.5 / scale.flatten()
    assert keeper.multiplier.grad is not None
    assert torch.allclose(keeper.multiplier.grad, wanted, rtol=1e-4, atol=1e-5)
    assert latent.grad is not None
    assert torch.equal(latent.grad, arriving * inside)


def test_a_step_of_sgd_moves_the_scale_as_in_the_paper() -> None:
    weight, scale = torch.tensor([[1.3, -0.2, 0.6]]), torch.tensor([[0.1]])
    keeper = LearnGrid((weight / scale).round() * scale, form_of(scale, 8))
    keeper(weight + 0.03).sum().backward()
    values = (weight + 0.03) / scale
    direct = (values.round() - values).sum() / (3 * 127) ** 0.5
    with torch.no_grad():
        keeper.multiplier -= 0.01 * keeper.multiplier.grad
    assert keeper.scale()[0] == pytest.approx(float(scale - 0.01 * direct), rel=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_trained_weights_lie_exactly_on_the_learned_grid(bits: int, per_channel: bool) -> None:
    linear = Linear(stage="linear", bits=bits, per_channel=per_channel, scale="mse")
    start, _ = quantize_weights(make(classes=3), linear)
    settings = Tune(stage="tune", epochs=1, batch_size=20, learning_rate=0.01, learn_scales=True)
    after, _ = fit(start, settings, blobs(80), seed=0)
    for name, form in after.forms.items():
        check_form(name, after.tensors[name], form)
        assert form.scale != start.form(name).scale
        shape = [-1] + [1] * (after.tensors[name].dim() - 1)
        scale = torch.tensor(form.scale).reshape(shape if per_channel else [1] * len(shape))
        integers = (after.tensors[name] / scale).round()
        assert torch.equal(integers * scale + 0.0, after.tensors[name])  # to the last bit
        rows = integers.flatten(1) if per_channel else integers.reshape(1, -1)
        assert max(row.unique().numel() for row in rows) <= 2**bits


def test_without_learning_scales_stay() -> None:
    start, _ = quantize_weights(make(classes=3), Linear(stage="linear", bits=3))
    settings = Tune(stage="tune", epochs=1, batch_size=20, learning_rate=0.03)
    after, _ = fit(start, settings, blobs(80), seed=0)
    assert after.forms == start.forms
    assert not torch.equal(after.tensors["fc1.weight"], start.tensors["fc1.weight"])


@pytest.mark.parametrize("bits", [1, 3])
def test_pruned_zeros_stay_zeros(bits: int) -> None:
    pruned, _ = prune_weights(make(classes=3), Sparsity(stage="sparsity", method="level", amount=0.7))
    start, _ = quantize_weights(pruned, Linear(stage="linear", bits=bits))
    settings = Tune(stage="tune", epochs=1, batch_size=20, learning_rate=0.05, learn_scales=True)
    after, _ = fit(start, settings, blobs(80), seed=0)
    for name in start.forms:
        zeros = start.tensors[name] == 0
        assert zeros.any()
        assert not after.tensors[name][zeros].any()
        assert not after.tensors[name][zeros].signbit().any()


def test_input_scales_are_learned_and_kept() -> None:
    images = np.random.default_rng(0).standard_normal((20, 1, 8, 8), np.float32)
    start, _ = calibrate(make(classes=3), Activations(stage="activations", bits=3), images)
    tune = {"stage": "tune", "epochs": 1, "batch_size": 20, "learning_rate": 0.01}
    fixed, _ = fit(start, Tune.model_validate(tune), blobs(80), seed=0)
    learned, details = fit(start, Tune.model_validate(tune | {"learn_scales": True}), blobs(80), seed=0)
    assert fixed.activations == start.activations
    assert set(learned.activations) == set(start.activations)
    for layer, grid in learned.activations.items():
        assert grid.scale != start.activations[layer].scale
        assert (grid.bits, grid.zero_point) == (3, start.activations[layer].zero_point)
    assert set(learned.tensors) == set(start.tensors)
    # what the history reports is the simulated network
    data = blobs(80)
    from tersor.pipeline.accuracy.evaluate import Images, evaluate

    found = evaluate(simulated(learned), Images.of(data.validation, data.preprocessing))
    assert details["history"][-1]["validation_loss"] == pytest.approx(found.loss, rel=1e-5)


def test_a_training_with_grids_resumes_to_the_same_bits(tmp_path) -> None:
    images = np.random.default_rng(0).standard_normal((20, 1, 8, 8), np.float32)
    start, _ = quantize_weights(make(classes=3), Linear(stage="linear", bits=3))
    start, _ = calibrate(start, Activations(stage="activations", bits=4), images)
    settings = Tune(stage="tune", epochs=2, batch_size=20, schedule="constant", learn_scales=True)
    whole, _ = fit(start, settings, blobs(80), seed=0)
    first = settings.model_copy(update={"epochs": 1})
    fit(start, first, blobs(80), seed=0, checkpoint=tmp_path / "c.pt")
    resumed, _ = fit(start, settings, blobs(80), seed=0, checkpoint=tmp_path / "c.pt")
    assert resumed.digest() == whole.digest()


def test_taking_grids_leaves_the_module_as_it_was() -> None:
    net = replace(make(), activations={"fc1": Activation(4, 0.25, 3)})
    module = net.module()
    before = set(module.state_dict())
    assert attach_grids(module, net, learn=True) == ["fc1"]
    assert take_grids(module) == {"fc1": Activation(4, 0.25, 3)}
    assert set(module.state_dict()) == before
    batch = torch.randn(4, 1, 8, 8)
    assert torch.equal(module(batch), net.module()(batch))


def test_a_scale_never_crosses_zero() -> None:
    rounding = InputGrid(Activation(4, 0.5), learn=True)
    with torch.no_grad():
        rounding.multiplier.fill_(-3.0)
    assert rounding.now().scale > 0
    assert rounding(torch.rand(5)).isfinite().all()


def test_scales_are_not_decayed() -> None:
    start, _ = quantize_weights(make(), Linear(stage="linear", bits=3))
    module = start.module()
    constrain(module, start, learn_scales=True)
    multipliers = [p for name, p in module.named_parameters() if name.endswith("multiplier")]
    assert len(multipliers) == 4
    assert all(p.dim() < 2 for p in multipliers)  # what make_optimizer decays has two dimensions and more


def test_a_grid_offers_all_its_integers_though_some_are_not_in_use() -> None:
    steps = torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 3.0]])
    first, last = integer_range(steps, form_of(torch.ones(2), 3))
    assert (first.flatten().tolist(), last.flatten().tolist()) == ([-3, -3], [3, 3])
    first, last = integer_range(steps - 2, form_of(torch.ones(2), 3))
    assert (first.flatten().tolist(), last.flatten().tolist()) == ([-4, -4], [3, 3])
    first, last = integer_range(steps + 2, form_of(torch.ones(2), 3))
    assert (first.flatten().tolist(), last.flatten().tolist()) == ([0, 2], [7, 9])


def test_gradient_of_an_input_passes_inside_the_grid_and_stops_outside() -> None:
    rounding = InputGrid(Activation(2, 1.0), learn=False)
    x = torch.tensor([[-1.0, 0.4, 2.6, 7.0]], requires_grad=True)
    rounded = rounding(x)
    rounded.sum().backward()
    assert rounded.tolist() == [[0.0, 0.0, 3.0, 3.0]]
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert not isinstance(rounding.multiplier, nn.Parameter)
