"""Evaluate a network many times, each time with another weight in one of its layers.

Two ways behind one function: from scratch, and with what comes before the layer computed once
(forward_prefix.py). Both give the same numbers; the second takes about half the time.
"""

from collections.abc import Mapping

from torch import Tensor

from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Evaluation, Images, Tally, evaluate
from tersor.pipeline.accuracy.forward_prefix import CannotSplit, Prefix
from tersor.progress import Tell

Weights = Mapping[str, Mapping[float, Tensor]]
"""Layer -> level -> the weight to put there."""

Evaluations = dict[tuple[str, float], Evaluation]
"""(layer, level) -> what was measured."""


def evaluate_each(
    network: Network,
    weights: Weights,
    images: Images,
    *,
    reuse: bool = True,
    batch_size: int = 512,
    progress: Tell = lambda *_: None,
) -> Evaluations:
    """Evaluate `network` once for each weight, that weight alone exchanged.

    Args:
        network: not changed; it runs on the device of the images.
        weights: by layer and level; shapes as in the network.
        images: at least one.
        reuse: compute what comes before a layer once for all its levels. Where the forward pass cannot be
            split, everything is computed from scratch, and `progress` says why.
        batch_size: images at once.
        progress: told the fraction done and a few words.
    """
    why = ""
    if reuse:
        try:
            return _with_reuse(network, weights, images, batch_size, progress)
        except CannotSplit as error:
            why = f", every point from scratch: {error}"
            progress(0.0, why.removeprefix(", "))
    return _from_scratch(network, weights, images, batch_size, progress, why)


def _from_scratch(
    network: Network, weights: Weights, images: Images, batch_size: int, progress: Tell, why: str
) -> Evaluations:
    evaluations: Evaluations = {}
    count = sum(len(levels) for levels in weights.values())
    for layer, levels in weights.items():
        for level, weight in levels.items():
            progress(len(evaluations) / count, f"{layer}{why}")
            touched = network.with_tensors({**network.tensors, f"{layer}.weight": weight})
            module = touched.module().to(images.inputs.device)
            evaluations[layer, level] = evaluate(module, images, batch_size=batch_size)
    progress(1.0, f"{count} points{why}")
    return evaluations


def _with_reuse(
    network: Network, weights: Weights, images: Images, batch_size: int, progress: Tell
) -> Evaluations:
    """Batch by batch; within a batch the prefix walks forward once, and each level runs the rest.

    So the values kept are those of one batch at one place, however many images there are.

    Raises:
        CannotSplit: the forward pass cannot be run in two parts.
    """
    device = images.inputs.device
    prefix = Prefix(network.module().to(device), images.inputs[:batch_size])
    walk = sorted(weights, key=prefix.place_of)
    tallies = {(layer, level): Tally() for layer, levels in weights.items() for level in levels}
    for done, (inputs, labels) in enumerate(images.batches(batch_size)):
        prefix.start(inputs)
        for step, layer in enumerate(walk):
            progress((done * batch_size + len(inputs) * step / len(walk)) / len(images), layer)
            prefix.advance(prefix.place_of(layer))
            for level, weight in weights[layer].items():
                with prefix.weight(layer, weight.to(device)):
                    tallies[layer, level].add(prefix.finish(), labels)
    progress(1.0, f"{len(tallies)} points")
    return {key: tally.result() for key, tally in tallies.items()}
