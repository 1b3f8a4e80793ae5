"""What an error in a layer's weights costs the network: the diagonal of its Fisher information.

Near a minimum the loss grows by about 1/2 sum h (w' - w)^2 with h = E[(d log p(y|x) / dw)^2] and y drawn from
the network's own outputs (LeCun, Denker and Solla 1989; Martens, arXiv:1412.1193).
"""

import torch
from torch.nn import functional

from tersor.models.layers import is_weight
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.progress import Tell

BATCH = 32
"""Gradients of a batch are squared together: with labels drawn from the outputs cross terms vanish."""


def fisher(
    network: Network, images: Images, *, seed: int, limit: int = 2048, progress: Tell = lambda *_: None
) -> dict[str, float]:
    """Mean Fisher information of each Conv and Linear weight tensor, in loss per squared weight.

    Zeros of pruned tensors do not count: they are not going to move.

    Args:
        network: evaluated with its running statistics.
        images: the first `limit` of them are used.
        seed: of the labels that are drawn.
        limit: more images make it steadier.
        progress: told the fraction done.
    """
    module = network.module().eval()
    named = {f"{name}.weight": layer.weight for name, layer in module.named_modules() if is_weight(layer)}
    sums = {name: torch.zeros_like(weight) for name, weight in named.items()}
    generator = torch.Generator().manual_seed(seed)
    inputs = images.inputs[:limit]
    for start in range(0, len(inputs), BATCH):
        logits = module(inputs[start : start + BATCH])
        drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
        loss = functional.cross_entropy(logits, drawn, reduction="sum")
        grads = torch.autograd.grad(loss, list(named.values()))
        for name, grad in zip(named, grads):
            sums[name] += grad.square()
        progress(min(1.0, (start + BATCH) / len(inputs)), "what an error costs in each layer")
    information = {}
    for name, total in sums.items():
        alive = named[name] != 0 if network.form(name).pruned else torch.ones_like(total, dtype=torch.bool)
        information[name] = float(total[alive].double().mean()) / len(inputs) if bool(alive.any()) else 0.0
    return information
