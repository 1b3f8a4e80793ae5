"""Importance against influence: scores of a channel, and what its removal alone costs, measured.

Four scores of one output channel's importance, each a prediction of its influence:
- squares: sum of the squares of its weights and its bias (report R3);
- l1, l2: norm of its weights, without the bias (Li et al., arXiv:1608.08710);
- taylor: mean over images of (d loss / d gate)^2, the gate a factor of 1 on the layer's output
  (Molchanov et al., arXiv:1906.10771, equation 8).

Influence, measured: accuracy on the validation split without the channel. Its values are zeroed where the
next layer reads them, after BatchNorm and activation, which is what the rebuilt network computes; for one
channel of each layer that is proven.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.errors import BadInput
from tersor.models.layers import matching
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Evaluation, Images, evaluate
from tersor.pipeline.accuracy.one_layer_at_a_time import evaluate_each
from tersor.pipeline.lessons.rank_correlation import chance, spearman
from tersor.pipeline.structure.one_layer import Wiring, proof, wirings
from tersor.progress import Tell

Method = Literal["squares", "l1", "l2", "taylor"]
METHODS: tuple[Method, ...] = ("squares", "l1", "l2", "taylor")
AT_ONCE = 32
"""Channels whose readers' weights are held at once."""


@dataclass(frozen=True)
class Channel:
    """One output channel.

    predicted: by each of METHODS; larger means more influence; only the order means something.
    accuracy_drop_fraction: accuracy of the whole network less accuracy without the channel; below 0
        where the network is better without it.
    loss_increase: likewise of the mean cross-entropy, nats.
    """

    layer: str
    channel: int
    predicted: Mapping[str, float]
    accuracy_drop_fraction: float
    loss_increase: float


@dataclass(frozen=True)
class Agreement:
    """How well one prediction orders the channels of one layer.

    spearman: rank correlation with the measured drop of accuracy, -1 to 1; spearman_loss: with the
        increase of the loss, which has hardly any ties.
    chance: share of random orders that agree (or disagree) as well; small means it is no accident.
    first_choice_drop_fraction: what removing the channel with the smallest prediction costs.
    """

    layer: str
    method: str
    channels: int
    spearman: float
    chance: float
    spearman_loss: float
    first_choice_drop_fraction: float


@dataclass(frozen=True)
class Influence:
    """Every channel of the chosen layers, in order.

    baseline: the whole network on the same images.
    left_out: layer -> why its channels cannot be removed alone.
    proof_max_abs_diff: layer -> largest |masked - rebuilt| of a logit without its first channel, float64.
    """

    channels: tuple[Channel, ...]
    baseline: Evaluation
    images: int
    left_out: Mapping[str, str]
    proof_max_abs_diff: Mapping[str, float]

    def layers(self) -> dict[str, list[Channel]]:
        """The channels by layer."""
        by_layer: dict[str, list[Channel]] = {}
        for channel in self.channels:
            by_layer.setdefault(channel.layer, []).append(channel)
        return by_layer

    def agreements(self) -> list[Agreement]:
        """Every prediction against the measurement, layer by layer."""
        return [_agreement(layer, m, channels) for layer, channels in self.layers().items() for m in METHODS]


def influence(
    network: Network,
    train: Images,
    validation: Images,
    *,
    layers: Sequence[str] = (),
    progress: Tell = lambda *_: None,
) -> Influence:
    """Predict and measure the influence of every output channel.

    Args:
        network: not changed.
        train: what `taylor` takes its gradients on; the measurement must not be seen by a prediction.
        validation: what accuracy is measured on.
        layers: patterns; empty: all layers whose channels can be removed alone.
        progress: told the fraction done and the layer.

    Raises:
        BadInput: a pattern matches no such layer, or there is none, or the network cannot be traced.
        TersorError: a rebuilt network differs from the masked one.
    """
    wired, left_out = wirings(network)
    chosen = matching(wired, layers, "influence, --layers") if layers else set(wired)
    if not chosen:
        raise BadInput(
            "there is no layer whose channels could be removed alone",
            got="; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3]) or "no layers",
            where=f"network `{network.definition}`",
        )
    picked = [wired[name] for name in wired if name in chosen]
    progress(0.0, "predicting")
    guesses = predicted(network, [w.layer for w in picked], train)
    baseline = evaluate(network.module(), validation)
    channels, proofs, total = list[Channel](), dict[str, float](), sum(w.width for w in picked)
    for w in picked:
        report = partial(_report, progress, len(channels), w, total)
        proofs[w.layer] = proof(network, w, (0,), validation.inputs[:64]) if w.width > 1 else 0.0
        for channel, after in enumerate(measured(network, w, validation, report)):
            channels.append(
                Channel(
                    w.layer,
                    channel,
                    {m: float(guesses[w.layer][m][channel]) for m in METHODS},
                    baseline.accuracy_fraction - after.accuracy_fraction,
                    after.loss - baseline.loss,
                )
            )
    progress(1.0, f"{total} channels")
    return Influence(tuple(channels), baseline, len(validation), left_out, proofs)


def _report(progress: Tell, before: int, w: Wiring, total: int, fraction: float, _: str) -> None:
    progress((before + fraction * w.width) / total, w.layer)


def predicted(network: Network, layers: Sequence[str], train: Images) -> dict[str, dict[Method, Tensor]]:
    """Each layer's predictions, float32 (width,) for every one of METHODS."""
    module = network.module()
    sensitivities = gate_gradients(module, layers, train)
    predictions: dict[str, dict[Method, Tensor]] = {}
    for name in layers:
        weight = network.tensors[f"{name}.weight"].flatten(1)
        bias = network.tensors.get(f"{name}.bias", torch.zeros(len(weight)))
        predictions[name] = {
            "squares": weight.square().sum(1) + bias.square(),
            "l1": weight.abs().sum(1),
            "l2": weight.square().sum(1).sqrt(),
            "taylor": sensitivities[name],
        }
    return predictions


def gate_gradients(
    module: nn.Module, layers: Sequence[str], images: Images, *, batch_size: int = 256
) -> dict[str, Tensor]:
    """Mean over images of (d loss / d gate)^2, float32 (width,), for the output channels of each layer.

    An image's gate is a factor of 1 on all values of a channel, so its gradient is the sum of value x
    gradient over the channel: what the loss would change by, to first order, were the channel not there.
    """
    module.eval()
    gates: dict[str, Tensor] = {}

    def gated(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """The output times its gates, one an image and channel."""
        shape = (*output.shape[:2], *[1] * (output.dim() - 2))
        gates[name] = torch.ones(shape, dtype=output.dtype, requires_grad=True)
        return output * gates[name]

    handles = [module.get_submodule(n).register_forward_hook(partial(gated, n)) for n in layers]
    sums = {name: torch.zeros(0) for name in layers}
    try:
        for inputs, labels in zip(images.inputs.split(batch_size), images.labels.split(batch_size)):
            loss = functional.cross_entropy(module(inputs), labels, reduction="sum")
            grads = torch.autograd.grad(loss, [gates[name] for name in layers])
            for name, grad in zip(layers, grads):
                squares = grad.flatten(1).square().sum(0)
                sums[name] = sums[name] + squares if sums[name].numel() else squares
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / len(images) for name, total in sums.items()}


def measured(network: Network, wired: Wiring, images: Images, progress: Tell) -> list[Evaluation]:
    """The network without each channel of one layer in turn."""
    if len(wired.readers) > 1 or wired.width == 1:
        return _zeroed_everywhere(network, wired, images, progress)
    (reader,) = wired.readers
    weight = network.tensors[f"{reader}.weight"]
    evaluations = list[Evaluation]()
    for start in range(0, wired.width, AT_ONCE):
        chunk = range(start, min(start + AT_ONCE, wired.width))
        without = {float(c): zeroed(weight, wired.inputs(reader, c)) for c in chunk}
        results = evaluate_each(network, {reader: without}, images)
        evaluations += [results[reader, float(c)] for c in chunk]
        progress(len(evaluations) / wired.width, wired.layer)
    return evaluations


def _zeroed_everywhere(network: Network, wired: Wiring, images: Images, progress: Tell) -> list[Evaluation]:
    """The same from scratch, for several readers, and for an only channel, which cannot be taken out."""
    evaluations = list[Evaluation]()
    for channel in range(wired.width):
        tensors = dict(network.tensors)
        for reader in wired.readers:
            key = f"{reader}.weight"
            tensors[key] = zeroed(tensors[key], wired.inputs(reader, channel))
        evaluations.append(evaluate(network.with_tensors(tensors).module(), images))
        progress((channel + 1) / wired.width, wired.layer)
    return evaluations


def zeroed(weight: Tensor, columns: Tensor) -> Tensor:
    """A copy of a weight (outputs, inputs, ...), 0 at the inputs where `columns`, bool (inputs,), is true."""
    copied = weight.clone()
    copied[:, columns] = 0.0
    return copied


def _agreement(layer: str, method: Method, channels: Sequence[Channel]) -> Agreement:
    guesses = [c.predicted[method] for c in channels]
    drops = [c.accuracy_drop_fraction for c in channels]
    losses = [c.loss_increase for c in channels]
    return Agreement(
        layer,
        method,
        len(channels),
        spearman(guesses, drops),
        chance(guesses, drops),
        spearman(guesses, losses),
        drops[guesses.index(min(guesses))],
    )
