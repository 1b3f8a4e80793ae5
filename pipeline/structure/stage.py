"""Structural pruning: remove channels that an NNI pruner finds unimportant, rebuild, and prove it right."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tersor.errors import BadInput, ClaimBroken, TersorError
from tersor.models.computed_weights import plain
from tersor.models.network import Network
from tersor.models.program import build
from tersor.pipeline.accuracy.evaluate import Images, reestimate_batch_norm
from tersor.pipeline.recipe.structure import Structure
from tersor.pipeline.structure import nni_room
from tersor.pipeline.structure.budget import WAYS, Counted, Measuring, way_of
from tersor.pipeline.structure.coupling import Coupling, couple
from tersor.pipeline.structure.graph import trace
from tersor.pipeline.structure.narrowing import cost_of, narrowed, narrowed_program
from tersor.pipeline.structure.proof import (
    check_captured,
    check_runs,
    check_widths,
    prove,
    randomised,
    tensors_of,
)
from tersor.pipeline.structure.widths import (
    Pruning,
    Scores,
    Space,
    candidates_of,
    chosen_of,
    per_layer_sparsities,
    spaces_to_prune,
)
from tersor.progress import Tell

PROOF_IMAGES = 64
TAYLOR_BATCH = 64
Counts = Callable[[Pruning], Counted]
"""How many sets of each space go, and what is to be reported of the choice."""


def prune_channels(
    network: Network,
    settings: Structure,
    images: Images,
    tell: Tell,
    *,
    seed: int = 0,
    counts: Counts | None = None,
) -> tuple[Network, dict[str, Any]]:
    """Remove output channels of convolutions (and neurons), smaller but equal to the masked network.

    Args:
        network: dense weights; sharing and weight pruning come later.
        settings: pruner, amounts, layers.
        images: of the training split; the first 64 serve the proof, all of them the new BatchNorm statistics.
        tell: told the fraction done and what is being done.
        seed: of the batches that `taylor` and `schedule` draw.
        counts: how many channels go, where `settings.sparsity` does not say it.

    Returns:
        The narrower network, and what was asked and achieved: widths before and after, ratio, by whom it
        was rebuilt, `masked_max_abs_diff` (the proof), `conv_mask_max_abs_diff` (the gap to a mask on the
        convolutions alone, which is what the pruner's own masked model computes).

    Raises:
        BadInput: no layer matches, or the network cannot be traced or rebuilt (before any training).
        TersorError: the rebuilt network differs from the masked one.
    """
    module, example = network.module(), images.inputs[:2]
    tell(0.0, "tracing")
    coupling = couple(module, example)
    check_captured(module, coupling, images.inputs[:PROOF_IMAGES])
    spaces = spaces_to_prune(module, coupling, settings)
    tell(0.1, f"{settings.pruner} looks for channels")
    scores = channel_scores(module, coupling, spaces, settings, images, seed)
    pruning = Pruning(network, module, settings, coupling, spaces, scores)
    removal_counts, chosen_how = counts(pruning) if counts else (pruning.removals(), {})
    if settings.schedule:
        tell(0.2, "training with growing masks")
        module, removed = mask_while_training(
            module, coupling, spaces, removal_counts, settings, images, seed
        )
        network = network.with_module(module)
    else:
        removed = pruning.choose(removal_counts)
    tell(0.6, "rebuilding")
    rebuilt, proof = rebuilt_network(
        network, module, coupling, removed, settings, images.inputs[:PROOF_IMAGES]
    )
    tell(0.8, "new BatchNorm statistics")
    if settings.reestimate_batch_norm:
        rebuilt = rebuilt.with_module(reestimate_batch_norm(rebuilt.module(), images.inputs))
    told = report(settings, coupling, spaces, removed)
    if not chosen_how:  # else a budget or the clock decided
        check_enough(settings, told)
    return rebuilt, told | proof | chosen_how


def counts_for(settings: Structure, baseline: Network, profiles: Path, tell: Tell) -> Counts:
    """How many channels go: by the sparsity, to the end of the staircase's step, or within a budget.

    Args:
        settings: say which.
        baseline: what speed-ups and fractions refer to.
        profiles: folder of measured layer latencies.
        tell: told the fraction done and a few words.
    """
    way, measuring = WAYS[way_of(settings)], Measuring(baseline, profiles, tell)
    return lambda pruning: way(pruning, measuring)


def try_structure(
    network: Network, settings: Structure, profiles: Path, tell: Tell = lambda *_: None
) -> None:
    """Plan, mask, rebuild and prove on fresh weights: what cannot be pruned fails before training.

    A budget that no widths can meet is told here too; the layer latencies it needs are then there already.

    Raises:
        BadInput, TersorError: as `prune_channels`.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, *network.input_shape, generator=generator)
    images = Images(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    search = settings.search and settings.search.model_copy(update={"rounds": 1})
    quick = settings.model_copy(update={"pruner": "l1norm", "schedule": None, "search": search})
    counts = counts_for(quick, network, profiles, tell)
    prune_channels(randomised(network), quick, images, lambda *_: None, counts=counts)


def channel_scores(
    module: nn.Module,
    coupling: Coupling,
    spaces: Sequence[Space],
    settings: Structure,
    images: Images,
    seed: int,
) -> Scores:
    """The importance of every channel that may go, by the pruner's own measure.

    NNI knows torch's own layers. Where the network has others (subclasses, functions), it scores those of the
    captured program, which computes the same.
    """
    layers = [name for space in spaces for name in space.layers if coupling.kinds[name].groups == 1]
    drawn = batches(images, TAYLOR_BATCH, seed) if settings.pruner == "taylor" else iter(())
    taylor_batches = (
        [next(drawn) for _ in range(settings.taylor_batches)] if settings.pruner == "taylor" else []
    )
    example = images.inputs[:2]

    def scores_of(scored: nn.Module) -> Scores:
        """By NNI, of the layers that it knows there."""
        known = _plain_layers(scored, example)
        return nni_room.scores(scored, settings.pruner, [n for n in layers if n in known], taylor_batches)

    if not coupling.captured.any_batch:
        return scores_of(module)
    try:
        if set(layers) <= _plain_layers(module, example):
            return scores_of(module)
    except RuntimeError:  # Python that keeps values from call to call (LeViT's biases) has no second gradient
        if settings.pruner != "taylor":
            raise
    return scores_of(build(coupling.captured.program, tensors_of(module, coupling)))


def _plain_layers(module: nn.Module, example: torch.Tensor) -> set[str]:
    """Layers of torch's own classes that are called: what NNI knows by that, and sees at work."""
    called = set[str]()
    hooks = [
        layer.register_forward_pre_hook(lambda _m, _in, name=name: called.add(name))
        for name, layer in module.named_modules()
        if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    ]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return called


def batches(images: Images, size: int, seed: int) -> Iterator[nni_room.Batch]:
    """An endless stream of shuffled training batches; no image twice before all were drawn."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = images.inputs, images.labels
    while True:
        for chosen in torch.randperm(len(inputs), generator=generator).split(size):
            if len(chosen) > 1 or len(inputs) == 1:  # BatchNorm has no variance over a single image
                yield inputs[chosen], labels[chosen]


def mask_while_training(
    module: nn.Module,
    coupling: Coupling,
    spaces: Sequence[Space],
    wanted: Sequence[int],
    settings: Structure,
    images: Images,
    seed: int,
) -> tuple[nn.Module, np.ndarray]:
    """Train with NNI's growing masks; returns the trained network and the sets that were masked at the end.

    Raises:
        BadInput: layers that go together are not equally wide, or groups go whole, which NNI's masks
            cannot express.
    """
    plan = settings.schedule
    assert plan is not None
    remove: dict[str, tuple[int, str]] = {}
    for at, (space, count) in enumerate(zip(spaces, wanted, strict=True)):
        if space.per_set > 1:
            raise BadInput(
                "channels cannot be masked while training where a convolution's groups go whole",
                got=f"{space.per_set} channels a group",
                where=f"stage `{settings.name}`, setting `schedule`, layer {space.layers[0]!r}",
                todo="Exclude the layers of its block, or leave out `schedule`",
            )
        for name in space.layers:
            if not np.array_equal(coupling.outputs[name], coupling.outputs[space.layers[0]]):
                raise BadInput(
                    "channels cannot be masked while training: layers that go together differ in width",
                    got=f"{name!r} and {space.layers[0]!r}",
                    where=f"stage `{settings.name}`, setting `schedule`",
                    todo="Exclude one of them, or leave out `schedule`",
                )
            remove[name] = (count, f"space{at}")
    steps = max(plan.rounds, round(plan.epochs * len(images) / plan.batch_size))
    trained, keep_masks = nni_room.trained_masks(
        module,
        settings.pruner,
        remove,
        lambda: batches(images, plan.batch_size, seed),
        plan.kind,
        plan.rounds,
        steps,
        plan.learning_rate,
    )
    removed = [coupling.outputs[name][~keep.numpy()] for name, keep in keep_masks.items()]
    return trained, np.unique(np.concatenate(removed)) if removed else np.array([], np.int64)


def rebuilt_network(
    network: Network,
    module: nn.Module,
    coupling: Coupling,
    removed: np.ndarray,
    settings: Structure,
    inputs: torch.Tensor,
) -> tuple[Network, dict[str, Any]]:
    """The network without the removed sets, by ModelSpeedup where it is right, else by `narrowed`.

    Returns:
        The network, and how it was rebuilt and proven.

    Raises:
        BadInput, TersorError: no way gives a network that computes what the masked one does.
    """
    computed = not plain(module)
    why = "a parametrization computes weights" if computed else None
    if not computed and settings.rebuild != "own":
        try:
            why = nni_room.distrusted(module, trace(module)) if settings.rebuild == "auto" else None
            if why is None:
                return _by_nni(network, module, coupling, removed, inputs)
        except (BadInput, TersorError) as error:
            if settings.rebuild == "nni":
                raise
            why = f"{error.what}: {error.got}" if error.got else str(error)
    not_by_nni = {"not_by_nni": why} if why else {}
    why_not = "weights that a parametrization computes are folded"
    if not computed:
        try:
            rebuilt = network.with_tensors(narrowed(module, coupling, removed), forms={})
            check_runs(rebuilt.module(), inputs[:2])
            proof = prove(module, rebuilt.module(), coupling, removed, inputs)
            return rebuilt, {"rebuilt_by": "tersor", **proof.told(), **not_by_nni}
        except TersorError as error:  # sizes are written into its Python: the graph takes its place
            if not coupling.captured.any_batch or coupling.captured.unknown:
                raise
            why_not = f"{error.what}: {error.got}"
    rebuilt = network.with_program(*narrowed_program(coupling, tensors_of(module, coupling), removed))
    proof = prove(module, rebuilt.module(), coupling, removed, inputs)
    told = {"rebuilt_by": "tersor, as a graph", **proof.told(), **not_by_nni, "not_as_module": why_not}
    return rebuilt, told


def _by_nni(
    network: Network, module: nn.Module, coupling: Coupling, removed: np.ndarray, images: torch.Tensor
) -> tuple[Network, dict[str, Any]]:
    keep_masks = {name: torch.from_numpy(coupling.keep(name, removed)) for name in coupling.layers()}
    keep_masks = {name: keep for name, keep in keep_masks.items() if not bool(keep.all())}
    rebuilt = network.with_tensors(nni_room.speed_up(module, images[:2], keep_masks), forms={})
    check_widths(rebuilt, keep_masks)
    check_runs(rebuilt.module(), images[:2])
    proof = prove(module, rebuilt.module(), coupling, removed, images)
    return rebuilt, {"rebuilt_by": "nni", **proof.told()}


def report(
    settings: Structure, coupling: Coupling, spaces: Sequence[Space], removed: np.ndarray
) -> dict[str, Any]:
    """What was asked and achieved, over all layers that were asked, and why some kept their channels.

    Parameters and multiply-adds of convolutions and linear layers are [before, after], of one image.
    """
    widths = {}
    for name in (name for space in spaces for name in space.layers):
        keep = coupling.keep(name, removed)
        widths[name] = [len(keep), int(keep.sum())]
    asked = {n for n in candidates_of(coupling, settings) if not _gives_the_outputs(coupling, n)}
    asked = {n for n in asked if len(coupling.outputs[n]) > 1}  # of one channel none can go
    asked = asked & chosen_of(coupling, settings) | set(widths)
    sizes = {name: len(coupling.outputs[name]) for name in asked}
    gone = sum(before - after for before, after in widths.values())
    kept_whole = {n: _why_kept(coupling, n) for n in coupling.layers() if n in asked - set(widths)}
    before, after = cost_of(coupling, np.array([], np.int64)), cost_of(coupling, removed)
    return {
        "asked_sparsity_fraction": _asked_fraction(settings, spaces, sizes),
        "achieved_sparsity_fraction": gone / sum(sizes.values()),
        "parameters": [before.parameters, after.parameters],
        "macs": [before.macs, after.macs],
        "widths": widths,
        "not_pruned": kept_whole | _kept_in_part(settings, coupling, spaces, widths),
    }


def _asked_fraction(settings: Structure, spaces: Sequence[Space], sizes: dict[str, int]) -> float | None:
    """The fraction of all channels that the settings ask for; None where a budget decides."""
    if settings.search is not None or not settings.per_layer:
        return None if settings.search is not None else settings.sparsity
    asked = dict.fromkeys(sizes, settings.sparsity)
    for space, sparsity in zip(spaces, per_layer_sparsities(spaces, settings), strict=True):
        asked |= dict.fromkeys(space.layers, sparsity)
    return sum(asked[name] * size for name, size in sizes.items()) / sum(sizes.values())


def _kept_in_part(
    settings: Structure, coupling: Coupling, spaces: Sequence[Space], widths: dict[str, list[int]]
) -> dict[str, str]:
    """Layers that lost fewer channels than were asked of them by more than one set, with the reason."""
    if settings.search is not None or settings.scope == "global" or settings.align is not None:
        return {}
    short = {}
    for space, sparsity in zip(spaces, per_layer_sparsities(spaces, settings), strict=True):
        for name in space.layers:
            before, after = widths[name]
            in_a_set = int(np.unique(coupling.outputs[name], return_counts=True)[1].max())
            if before - after + in_a_set < int(sparsity * before + 1e-9):
                short[name] = f"lost {before - after} of {before}: {_why_kept(coupling, name)}"
    return short


def check_enough(settings: Structure, told: dict[str, Any]) -> None:
    """Less than half of what was asked is not what was asked.

    Raises:
        ClaimBroken: so few channels could go, and `allow_less` is not set.
    """
    asked, achieved = told["asked_sparsity_fraction"], told["achieved_sparsity_fraction"]
    if settings.allow_less or achieved >= asked / 2:
        return
    kept = told["not_pruned"]
    some = "; ".join(f"{layer}: {why}" for layer, why in list(kept.items())[:3])
    raise ClaimBroken(
        "fewer channels could be removed than were asked",
        got=f"{100 * achieved:.1f} % of the channels; "
        + (f"{len(kept)} layers keep theirs ({some})" if kept else "the widths are rounded to that"),
        wanted=f"{100 * asked:g} %, at least half of it",
        where=f"stage `{settings.name}`",
        todo="Write the operations named in other words, exclude the layers, or set `allow_less: true`",
    )


def _gives_the_outputs(coupling: Coupling, layer: str) -> bool:
    reasons = [coupling.fixed.get(s) for s in coupling.outputs[layer].tolist()]
    return all(why == "the network's outputs" for why in reasons)


def _why_kept(coupling: Coupling, layer: str) -> str:
    reasons = [coupling.fixed[s] for s in coupling.outputs[layer].tolist() if s in coupling.fixed]
    return reasons[0] if reasons else "its channels go with those of layers that keep theirs"
