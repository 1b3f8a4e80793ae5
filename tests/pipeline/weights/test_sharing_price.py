"""Bits are paid where errors cost: Fisher information, prices, and the rate that an allowed drop buys."""

import numpy as np
import pytest
import torch
from nets import blobs, make
from torch.nn import functional

from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.recipe.recipe import Sharing, Sparsity, Train
from tersor.pipeline.training.fit import fit
from tersor.pipeline.weights.fisher import fisher
from tersor.pipeline.weights.sharing import share_weights
from tersor.pipeline.weights.sharing_price import ideal_bytes, share_at_a_price
from tersor.pipeline.weights.sparsity import prune_weights


@pytest.fixture(scope="module")
def trained() -> Network:
    chosen = Train(stage="train", epochs=4, batch_size=20, learning_rate=0.05)
    net, _ = fit(make(classes=3, batch_norm=True), chosen, blobs(), seed=0)
    return prune_weights(net, Sparsity(stage="sparsity", method="level", amount=0.3))[0]


def chosen(**changes: object) -> Sharing:
    return Sharing(stage="sharing", **{"bits": 4, "values": 15, **changes})  # type: ignore[arg-type]


def test_fisher_predicts_what_small_errors_cost() -> None:
    # Outputs that are unsure: a network that is always right loses nothing by small errors.
    data, trained = blobs(), make(classes=3, batch_norm=True)
    unsure = {**trained.tensors, "fc2.weight": trained.tensors["fc2.weight"] * 0.1}
    trained = trained.with_tensors(unsure, trained.forms)
    images = Images.of(data.train, data.preprocessing)
    # Few images and drawn labels: one estimate is rough, its mean over draws is not.
    draws = [fisher(trained, images, seed=seed) for seed in range(12)]
    found = {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}
    with torch.no_grad():
        before = trained.module().double().eval()(images.inputs.double()).log_softmax(1)

    def divergence(name: str, size: float) -> float:
        """Mean KL divergence of the outputs after noise of this size on the weights"""
        total, generator = 0.0, torch.Generator().manual_seed(0)
        for _ in range(200):
            weight = trained.tensors[name]
            noise = torch.randn(weight.shape, generator=generator) * size * (weight != 0)
            other = (
                trained.with_tensors({**trained.tensors, name: weight + noise}, trained.forms).module().eval()
            )
            with torch.no_grad():
                after = other(images.inputs).log_softmax(1)
            total += float(functional.kl_div(after, before, reduction="batchmean", log_target=True)) / 200
        return total

    for name in ("conv2.0.weight", "fc2.weight"):
        weight = trained.tensors[name]
        size = float(weight.std()) * 0.03
        predicted = 0.5 * found[name] * weight.numel() * size**2
        assert divergence(name, size) == pytest.approx(predicted, rel=0.25), name


def test_the_network_pays_less_for_the_same_bytes(trained: Network) -> None:
    data = blobs()
    images = Images.of(data.train, data.preprocessing)

    def cost(pays: str, rate: float) -> tuple[float, float]:
        shared, _ = share_at_a_price(trained, chosen(rate=rate, pays=pays), data, seed=0)
        return ideal_bytes(shared), evaluate(shared.module(), images).loss

    rates = np.geomspace(0.02, 3, 12)
    layer, whole = ([cost(pays, float(r)) for r in rates] for pays in ("layer", "network"))
    size = 0.5 * (layer[4][0] + layer[8][0])
    losses = [np.interp(size, [p[0] for p in ps[::-1]], [p[1] for p in ps[::-1]]) for ps in (layer, whole)]
    assert losses[1] < losses[0]


def test_auto_finds_the_highest_rate_within_the_drop(trained: Network) -> None:
    data = blobs()
    images = Images.of(data.validation, data.preprocessing)
    before = evaluate(trained.module(), images).accuracy_fraction
    shared, details = share_at_a_price(trained, chosen(rate="auto", max_drop=0.05), data, seed=0)
    assert evaluate(shared.module(), images).accuracy_fraction >= before - 0.05
    points = sorted(details["rates"], key=lambda p: p["rate"])
    above = [p for p in points if p["rate"] > details["rate"]]
    assert details["held"]
    assert above
    assert above[0]["validation_accuracy_fraction"] < before - 0.05
    assert above[0]["rate"] / details["rate"] < 1.1
    assert points[0]["ideal_bytes"] > points[-1]["ideal_bytes"]


def test_a_drop_that_no_rate_keeps_is_said(trained: Network) -> None:
    settings = chosen(rate="auto", max_drop=0.0, bits=1, values=1)
    _, details = share_at_a_price(trained, settings, blobs(), seed=0)
    assert details["rate"] == 2.0**-9
    assert len(details["rates"]) == 1 or details["held"]


def test_paying_by_layer_at_a_number_is_the_plain_stage(trained: Network) -> None:
    plain, _ = share_weights(trained, chosen(rate=0.05))
    priced, _ = share_at_a_price(trained, chosen(rate=0.05), blobs(), seed=0)
    assert priced.digest() == plain.digest()


def test_pays_network_wants_a_rate() -> None:
    with pytest.raises(ValueError, match="pays: network needs a rate"):
        chosen(pays="network")
