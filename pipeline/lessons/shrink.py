"""R3's structural pruning: take a channel out, fine-tune, go on while that costs little; layer after layer.

Which channel goes is chosen by its importance (influence.py). Every removal is proven: masked and rebuilt
network give the same logits. Validation accuracy decides; test accuracy is written down beside it. Each
step is a folder of the stage cache under a digest of everything that decides it, so a stopped run goes on.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tersor.errors import BadInput
from tersor.files import digest_of
from tersor.models.cost import cost
from tersor.models.layers import matching
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate, reestimate_batch_norm
from tersor.pipeline.data.load import Data
from tersor.pipeline.lessons.influence import Method, predicted
from tersor.pipeline.recipe.recipe import Recipe, Tune
from tersor.pipeline.stages.identity import stage_seed, versions
from tersor.pipeline.stages.measure import measure, size_ledger
from tersor.pipeline.stages.metrics import StageMetrics
from tersor.pipeline.stages.store import CHECKPOINT, METRICS, NETWORK, ONNX, StageResult, Store
from tersor.pipeline.structure.one_layer import Wiring, proof, remove_channels, wirings
from tersor.pipeline.training.fit import fit
from tersor.pipeline.weights.sensitivity import limited
from tersor.progress import Tell

VERSION = 1
"""Part of every step's digest; raise it when a step's result changes for equal settings."""
TAYLOR_IMAGES, NORM_IMAGES = 2000, 10_000


@dataclass(frozen=True)
class Shrinking:
    """How to shrink.

    widths: layer -> the widths to visit, falling; the layers in the order they are shrunk.
    tune: the fine-tuning after every removal.
    max_drop: a step that costs more of validation accuracy, a fraction, is not kept and ends its layer.
    against: what a drop is counted from: `step`, the network before the step (R3's rule), or `start`.
    by: the prediction whose smallest channels go.
    """

    widths: Mapping[str, tuple[int, ...]]
    tune: Tune
    max_drop: float = 0.01
    against: Literal["step", "start"] = "step"
    by: Method = "squares"


@dataclass(frozen=True)
class Step:
    """One removal; accuracies are fractions, (validation, test).

    width: output channels left in `layer`; removed: numbers of those that went, in the layer before.
    before, after_removal, after_tuning: accuracy of the network at these three times.
    macs, flops, parameters: of the narrower network, for one image.
    proof_max_abs_diff: largest |masked - rebuilt| of a logit, float64.
    kept: whether the drop was within `max_drop`; the shrinking goes on from the last step that was kept.
    """

    layer: str
    width: int
    removed: tuple[int, ...]
    before: tuple[float, float]
    after_removal: tuple[float, float]
    after_tuning: tuple[float, float]
    macs: int
    flops: int
    parameters: int
    packed_bytes: int
    proof_max_abs_diff: float
    kept: bool


@dataclass(frozen=True)
class Shrunk:
    """All steps in order, the network of the last one kept, accuracy (validation, test) at the start."""

    steps: tuple[Step, ...]
    network: Network
    start: tuple[float, float]


class Bench:
    """The recipe, data and cache that every step shares; the images are preprocessed once."""

    def __init__(self, recipe: Recipe, data: Data, store: Store) -> None:
        self.recipe, self.data, self.store = recipe, data, store
        self.data_digest = data.digest()
        self.validation = Images.of(data.validation, data.preprocessing)
        self.test = Images.of(data.test, data.preprocessing)
        self.guessing = Images.of(limited(data.train, TAYLOR_IMAGES), data.preprocessing)

    def accuracy(self, network: Network) -> tuple[float, float]:
        """Of the validation and of the test split, fractions."""
        module = network.module()
        first, second = (evaluate(module, i).accuracy_fraction for i in (self.validation, self.test))
        return first, second


def check_widths(
    network: Network, layers: list[str], widths: Mapping[str, tuple[int, ...]]
) -> Mapping[str, tuple[int, ...]]:
    """The widths to visit: those given, else every one from one below the layer's down to 1.

    Args:
        network: where the shrinking starts.
        layers: names or patterns, in the order they are to be shrunk; empty: all that can be.
        widths: layer -> widths; a layer named here must be among the layers.

    Raises:
        BadInput: no such layer, a layer whose channels cannot be removed alone, or widths that do not fall.
    """
    where = "shrink, --layers and --widths"
    wired, tied = wirings(network)
    chosen = [n for pattern in layers for n in wired if n in _matched(pattern, wired, tied, where)]
    chosen = list(dict.fromkeys(chosen)) or list(wired)
    matching(chosen, widths, where)
    plan = {name: widths.get(name) or tuple(range(wired[name].width - 1, 0, -1)) for name in chosen}
    for name, layer_widths in plan.items():
        falling = all(a > b for a, b in zip((wired[name].width, *layer_widths), layer_widths))
        if not layer_widths or not falling or layer_widths[-1] < 1:
            raise BadInput(
                f"these widths of layer {name!r} cannot be visited",
                got=", ".join(map(str, layer_widths)) or "a layer of one channel",
                wanted=f"falling whole numbers from {wired[name].width - 1} to 1",
                where=where,
            )
    return plan


def _matched(pattern: str, wired: Mapping[str, Wiring], tied: Mapping[str, str], where: str) -> set[str]:
    if pattern in tied:
        raise BadInput(
            f"channels of layer {pattern!r} cannot be removed alone",
            got=tied[pattern],
            where=where,
            todo="Leave it out; channels of several layers go together in a `structure` stage",
        )
    return matching(wired, [pattern], where)


def shrink(
    network: Network, how: Shrinking, bench: Bench, tell: Tell, said: Callable[[Step], None]
) -> Shrunk:
    """Remove channels and fine-tune, until each layer's next step would cost too much.

    Args:
        network: trained, dense.
        how: see Shrinking; `widths` as `check_widths` returned them.
        bench: recipe, data, cache.
        tell: told the fraction done and what is being done.
        said: told every step when it is finished.

    Raises:
        TersorError: a rebuilt network is wrong, or a training diverged.
    """
    start = before = bench.accuracy(network)
    steps, number, total = list[Step](), 0, sum(map(len, how.widths.values()))
    for place, (layer, widths) in enumerate(how.widths.items()):
        number = sum(len(w) for w in list(how.widths.values())[:place])
        for width in widths:
            result = _step(network, layer, width, how, bench, _part(tell, number, total), len(steps))
            reference = before if how.against == "step" else start
            step = _read(result, before, reference, how)
            steps.append(step)
            said(step)
            number += 1
            if not step.kept:
                break
            network, before = result.network(), step.after_tuning
    tell(1.0, f"{len(steps)} steps")
    return Shrunk(tuple(steps), network, start)


def _part(tell: Tell, number: int, total: int) -> Tell:
    return lambda fraction, words: tell((number + fraction) / total, words)


def _read(
    result: StageResult, before: tuple[float, float], reference: tuple[float, float], how: Shrinking
) -> Step:
    """A step as its folder tells it, judged."""
    details = result.metrics.details
    removed, tuned = tuple(details["after_removal"]), tuple(details["after_tuning"])
    return Step(
        details["layer"],
        details["width"],
        tuple(details["removed"]),
        before,
        removed,
        tuned,
        macs=result.metrics.macs,
        flops=details["flops"],
        parameters=result.metrics.parameters,
        packed_bytes=result.metrics.packed_bytes,
        proof_max_abs_diff=details["proof_max_abs_diff"],
        kept=reference[0] - tuned[0] <= how.max_drop + 1e-9,
    )


def _step(
    network: Network, layer: str, width: int, how: Shrinking, bench: Bench, tell: Tell, number: int
) -> StageResult:
    """One step's result, from the cache or computed now."""
    wired = wirings(network)[0][layer]
    guesses = predicted(network, [layer], bench.guessing)[layer][how.by]
    channels = sorted(guesses.argsort(stable=True)[: wired.width - width].tolist())
    seed = stage_seed(bench.recipe, 1000 + number)
    identity = {
        "shrink": VERSION,
        "before": network.digest(),
        "layer": layer,
        "removed": channels,
        "seed": seed,
        "tune": how.tune.model_dump(mode="json"),
        "data": bench.data_digest,
        "device": bench.recipe.device,
        "threads": bench.recipe.threads,
        "versions": versions(),
        "licence": bench.recipe.licence,
    }
    return bench.store.cached(
        digest_of(identity),
        lambda folder: _compute(network, wired, channels, how.tune, bench, folder, tell, seed),
        lambda: tell(0.0, "waiting for another run's step"),
    )


def _compute(
    network: Network,
    wired: Wiring,
    channels: list[int],
    tune: Tune,
    bench: Bench,
    folder: Path,
    tell: Tell,
    seed: int,
) -> None:
    """Remove, prove, fine-tune and measure, into the step's working folder."""
    began, where = time.monotonic(), f"{wired.layer} at {wired.width - len(channels)}"
    tell(0.0, where)
    difference = proof(network, wired, channels, bench.validation.inputs[:64])
    narrow = remove_channels(network, wired, channels)
    images = Images.of(bench.data.train.first(NORM_IMAGES), bench.data.preprocessing)
    narrow = narrow.with_module(reestimate_batch_norm(narrow.module(), images.inputs))
    removed = bench.accuracy(narrow)
    tuned, trained = fit(
        narrow,
        tune,
        bench.data,
        seed=seed,
        device=bench.recipe.device,
        checkpoint=folder / CHECKPOINT,
        progress=lambda fraction, words: tell(0.95 * fraction, f"{where}, {words}"),
    )
    seconds = round(time.monotonic() - began, 3)
    details = {
        "layer": wired.layer,
        "width": wired.width - len(channels),
        "removed": channels,
        "after_removal": removed,
        "after_tuning": bench.accuracy(tuned),
        "flops": cost(tuned).flops,
        "proof_max_abs_diff": difference,
        **trained,
    }
    measured = measure(tuned, bench.validation, folder / ONNX, None, bench.recipe.licence)
    ledger = size_ledger((folder / ONNX).read_bytes())
    tuned.save(folder / NETWORK)
    StageMetrics(name=where, stage="shrink", seconds=seconds, details=details, **measured).with_ledger(
        ledger
    ).write(folder / METRICS)


def rows(shrunk: Shrunk) -> Iterator[dict[str, Any]]:
    """The steps as plain data."""
    return (asdict(step) for step in shrunk.steps)
