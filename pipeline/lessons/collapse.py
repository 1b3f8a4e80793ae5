"""R3's collapse, taken apart: one neuron removed from a dense layer, rebuilt rightly and in six wrong ways.

R3 lost nearly everything (10.06, 8.79, 12.89 % left) when a single one of 100 neurons went. A right rebuild
loses next to nothing whichever neuron it is; what R3 saw is what a rebuild does that gives the next layer's
inputs to the wrong neurons. The proof of equality (`proof.prove`) tells the two apart without any label.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import BadInput, TersorError
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.accuracy.forward_prefix import Prefix
from tersor.pipeline.lessons.influence import predicted
from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.structure.one_layer import Wiring, proof, wirings
from tersor.pipeline.structure.proof import prove
from tersor.progress import Tell

R3_PERCENT = (10.06, 8.79, 12.89)
"""R3's test accuracy right after removing one neuron of fc1: at 99, 98 and 97 neurons."""

BATCH = 1000

Parts = tuple[Tensor, Tensor, Tensor]
"""The dense layer's weight (n, inputs) and bias (n,), and the next layer's weight (outputs, n)."""


def right(parts: Parts, gone: int, _: Tensor) -> Parts:
    """Right: the neuron's row of weight and bias and its column of the next layer's weight are left out."""
    weight, bias, after = parts
    keep = [i for i in range(len(weight)) if i != gone]
    return weight[keep], bias[keep], after[:, keep]


def last_column(parts: Parts, gone: int, order: Tensor) -> Parts:
    """The next layer loses its last column instead: every neuron behind the gone one speaks for another."""
    weight, bias, _ = right(parts, gone, order)
    return weight, bias, parts[2][:, :-1]


def last_bias(parts: Parts, gone: int, order: Tensor) -> Parts:
    """The bias loses its last element instead: neurons behind the gone one get a neighbour's bias."""
    weight, _, after = right(parts, gone, order)
    return weight, parts[1][:-1], after


def by_influence(parts: Parts, gone: int, order: Tensor) -> Parts:
    """The layer's neurons are copied in the order of their influence, the next layer's columns in theirs."""
    _, _, after = right(parts, gone, order)
    keep = [int(i) for i in order if int(i) != gone]
    return parts[0][keep], parts[1][keep], after


def cut_flat(parts: Parts, gone: int, order: Tensor) -> Parts:
    """The next layer's weight is cut as a flat list of numbers: every row begins a step too early."""
    weight, bias, after = right(parts, gone, order)
    return weight, bias, parts[2].flatten()[: after.numel()].reshape(after.shape)


def transposed(parts: Parts, gone: int, order: Tensor) -> Parts:
    """The next layer's weight is read as (inputs, outputs) although it is stored the other way round."""
    weight, bias, after = right(parts, gone, order)
    return weight, bias, after.t().flatten().reshape(after.shape)


def fresh(parts: Parts, gone: int, order: Tensor) -> Parts:
    """The next layer is built anew for n - 1 inputs, and nobody copies its weights."""
    weight, bias, after = right(parts, gone, order)
    generator = torch.Generator().manual_seed(0)
    return weight, bias, nn.init.xavier_uniform_(torch.empty_like(after), generator=generator)


REBUILDS: Mapping[str, Callable[[Parts, int, Tensor], Parts]] = {
    "right": right,
    "last_column": last_column,
    "last_bias": last_bias,
    "by_influence": by_influence,
    "cut_flat": cut_flat,
    "transposed": transposed,
    "fresh": fresh,
}


@dataclass(frozen=True)
class Rebuild:
    """One way of rebuilding, tried with every neuron of the layer in turn.

    accuracies: validation accuracy without neuron 0, 1, ...; fractions.
    proof: what `proof.prove` says of it for the neuron that R3's heuristic removes first.
    """

    name: str
    what: str
    accuracies: tuple[float, ...]
    proof: str
    proven: bool


@dataclass(frozen=True)
class Collapse:
    """All ways; `first`: the neuron R3's heuristic removes first; baseline: accuracy before, a fraction."""

    layer: str
    first: int
    baseline: float
    images: int
    rebuilds: tuple[Rebuild, ...]


def collapse(network: Network, wired: Wiring, images: Images, tell: Tell = lambda *_: None) -> Collapse:
    """Remove each neuron alone by each of REBUILDS, and measure.

    Args:
        network: dense weights.
        wired: of a linear layer that one linear layer reads.
        images: what accuracy is taken on.
        tell: told the fraction done.
    """
    scores = predicted(network, [wired.layer], images.first(256))
    order = scores[wired.layer]["squares"].argsort(stable=True)
    first, rebuilds = int(order[0]), list[Rebuild]()
    accuracies = _accuracies(network, wired, order, images, tell)
    for name, way in REBUILDS.items():
        proven, said = _proof(network, wired, way, first, order, images.inputs[:64])
        what = (way.__doc__ or "").strip().removesuffix(".")
        rebuilds.append(Rebuild(name, what, accuracies[name], said, proven))
    tell(1.0, f"{len(REBUILDS)} ways, {wired.width} neurons")
    baseline = evaluate(network.module(), images).accuracy_fraction
    return Collapse(wired.layer, first, baseline, len(images), tuple(rebuilds))


def _accuracies(
    network: Network, wired: Wiring, order: Tensor, images: Images, tell: Tell
) -> dict[str, tuple[float, ...]]:
    """Accuracy of `rebuild`'s networks, every way and neuron; what comes before the layer is run once."""
    prefix = Prefix(network.module(), images.inputs[:BATCH])
    layer, after = (prefix.traced.get_submodule(n) for n in (wired.layer, wired.readers[0]))
    right_ones = {name: [0] * wired.width for name in REBUILDS}
    for done, (inputs, labels) in enumerate(zip(images.inputs.split(BATCH), images.labels.split(BATCH))):
        prefix.start(inputs)
        prefix.advance(prefix.place_of(wired.layer))
        for number, (name, way) in enumerate(REBUILDS.items()):
            tell((done + number / len(REBUILDS)) * BATCH / (len(images) + BATCH), name.replace("_", " "))
            for neuron in range(wired.width):
                parts = _parts(network, wired, way, neuron, order).values()
                layer.weight, layer.bias, after.weight = (nn.Parameter(p, requires_grad=False) for p in parts)
                right_ones[name][neuron] += int((prefix.finish().argmax(1) == labels).sum())
    return {name: tuple(n / len(images) for n in hits) for name, hits in right_ones.items()}


def rebuild(
    network: Network, wired: Wiring, way: Callable[[Parts, int, Tensor], Parts], gone: int, order: Tensor
) -> Network:
    """The network without neuron `gone`, rebuilt by one of REBUILDS; `order`: least influence first."""
    changed = _parts(network, wired, way, gone, order)
    return network.with_tensors({**network.tensors, **changed}, forms={})


def _parts(
    network: Network, wired: Wiring, way: Callable[[Parts, int, Tensor], Parts], neuron: int, order: Tensor
) -> dict[str, Tensor]:
    """The three tensors that a rebuild changes, by name, in the order of Parts."""
    layer, after = wired.layer, wired.readers[0]
    keys = (f"{layer}.weight", f"{layer}.bias", f"{after}.weight")
    weight, bias, column = (network.tensors[k] for k in keys)
    parts = way((weight, bias, column), neuron, order)
    return dict(zip(keys, parts))


def _proof(
    network: Network,
    wired: Wiring,
    way: Callable[[Parts, int, Tensor], Parts],
    neuron: int,
    order: Tensor,
    inputs: Tensor,
) -> tuple[bool, str]:
    rebuilt = rebuild(network, wired, way, neuron, order)
    try:
        removed = wired.sets([neuron])
        difference = prove(network.module(), rebuilt.module(), wired.coupling, removed, inputs).difference
    except TersorError as error:
        return False, str(error.got)
    return True, f"a logit that differs by {difference:.3g}"


def _dense(network: Network, layer: str | None) -> Wiring:
    """The wiring of a linear layer with a bias that one linear layer reads.

    Raises:
        BadInput: there is none, or `layer` is none.
    """
    wired, tied = wirings(network)
    module = network.module()
    alone = [w for w in wired.values() if len(w.readers) == 1 and w.rows == (w.layer,) and w.width > 1]
    fitting = [
        w
        for w in alone
        if f"{w.layer}.bias" in network.tensors
        and all(isinstance(module.get_submodule(n), nn.Linear) for n in (w.layer, w.readers[0]))
    ]
    chosen = [w for w in fitting if layer is None or w.layer == layer]
    if not chosen:
        raise BadInput(
            "there is no such linear layer",
            got=layer if layer is not None else f"{len(wired) + len(tied)} layers",
            wanted=", ".join(w.layer for w in fitting) or "a linear layer with a bias that one other reads",
            where="collapse, --layer",
        )
    # The proof first: a right removal of this very layer must hold, or nothing here means anything.
    proof(network, chosen[-1], (0,), torch.zeros(2, *network.input_shape))
    return chosen[-1]


def collapse_markdown(result: Collapse) -> str:
    """A line a rebuild: accuracy over all neurons, and what the proof says."""
    rows = []
    for r in result.rebuilds:
        values = [100 * v for v in r.accuracies]
        cells = [f"{v:.2f}" for v in (median(values), min(values), max(values))]
        rows.append([r.what, *cells, r.proof, "yes" if r.proven else "NO"])
    header = ("rebuild", "median %", "lowest", "highest", "masked against rebuilt", "proven")
    percents = ", ".join(f"{v:.2f}" for v in R3_PERCENT)
    before = f"Before: {100 * result.baseline:.2f} % of {result.images:,} validation images."
    return f"{markdown_table(header, rows, 'lrrrl')}\n\n{before} R3 saw {percents} %.\n"


def as_json(result: Collapse) -> dict[str, Any]:
    """Everything found, as plain data."""
    return {**asdict(result), "r3_percent": list(R3_PERCENT)}
