"""Removal: which channel sets go, how many of each space of layers and which ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from tersor.errors import BadInput
from tersor.models.layers import matching
from tersor.models.network import Network
from tersor.pipeline.recipe.structure import Structure
from tersor.pipeline.structure.coupling import Coupling

Scores = Mapping[str, np.ndarray]
"""layer -> the importance of each of its output channels, float64 (out_channels,)."""


@dataclass(frozen=True)
class Space:
    """Layers whose channels hang together.

    layers: names, in order.
    sets: the channel sets that may go, int64.
    width: output channels of the narrowest layer that has all free sets, or as many as can.
    per_set: channels of that layer in one set (more than one where groups go whole).
    """

    layers: tuple[str, ...]
    sets: np.ndarray
    width: int
    per_set: int


@dataclass(frozen=True)
class Pruning:
    """A network that is being pruned, and what decides which of its channels go.

    module: of the network, in eval mode.
    spaces: whose channels may go.
    scores: of every channel in them.
    """

    network: Network
    module: nn.Module
    settings: Structure
    coupling: Coupling
    spaces: list[Space]
    scores: Scores

    def removals(self) -> list[int]:
        """How many sets of each space go by the settings' sparsity; see `removals`."""
        return removals(self.spaces, self.scores, self.coupling, self.settings)

    def choose(self, counts: Iterable[int]) -> np.ndarray:
        """The least important sets, so many of each space; see `choose`."""
        return choose(self.spaces, counts, self.scores, self.coupling)


def spaces_to_prune(module: nn.Module, coupling: Coupling, settings: Structure) -> list[Space]:
    """The spaces whose channels the settings let go.

    Candidates are convolutions (grouped ones go along with those they read from) and, with `linear`,
    linear layers. A space is pruned only when all its candidates are chosen.

    Raises:
        BadInput: a pattern matches no layer, or nothing is left to prune.
    """
    where = f"stage `{settings.name}`"
    candidates, chosen = candidates_of(coupling, settings), chosen_of(coupling, settings)
    spaces = []
    for names in coupling.spaces(coupling.layers()):
        prunable = [name for name in names if name in candidates]
        if prunable and set(prunable) <= chosen:
            spaces.append(_space(coupling, names))
    if not spaces:
        why = sorted(set(coupling.fixed.values()))
        raise BadInput(
            "there is no layer whose channels could be pruned",
            got=f"{len(candidates)} candidates; widths are fixed by {', '.join(why[:4])}",
            where=f"{where}, settings `layers` and `exclude`",
            todo="An operation that is not known here can be written with known ones (docs/structure.md)",
        )
    return spaces


def chosen_of(coupling: Coupling, settings: Structure) -> set[str]:
    """The candidates that `layers` and `exclude` leave.

    Raises:
        BadInput: a pattern matches no layer.
    """
    where, candidates = f"stage `{settings.name}`", candidates_of(coupling, settings)
    chosen = matching(candidates, settings.layers, where) if settings.layers else set(candidates)
    return chosen - matching(candidates, settings.exclude, where)


def removals(spaces: list[Space], scores: Scores, coupling: Coupling, settings: Structure) -> list[int]:
    """How many sets of each space go.

    scope `layer`: floor(sparsity x width) channels, rounded so that the kept width is a multiple of
    `align` (at least one block). scope `global`: that fraction of all sets, those with the smallest
    importance over the mean of the sets of their space that touch the same layers.

    Raises:
        BadInput: a pattern of `per_layer` matches nothing, or gives one space two values.
    """
    if settings.scope == "global":
        sparsities = _global_sparsities(spaces, scores, coupling, settings)
    else:
        sparsities = per_layer_sparsities(spaces, settings)
    align = settings.align if isinstance(settings.align, int) else None
    return [count(space, sparsity, align) for space, sparsity in zip(spaces, sparsities, strict=True)]


def count(space: Space, sparsity: float, align: int | None) -> int:
    """Sets to remove of a space; at least one stays."""
    remaining = kept_width(space.width, sparsity, align)
    movable = len(space.sets) * space.per_set == space.width  # else fixed ones stay beside them
    return min((space.width - remaining) // space.per_set, len(space.sets) - movable)


def kept_width(width: int, sparsity: float, align: int | None) -> int:
    """Channels kept of `width` when the fraction `sparsity` is to go; see `removals`."""
    if align is None or width <= align:
        return max(1, width - int(sparsity * width + 1e-9))
    return min(width, max(align, round((1 - sparsity) * width / align) * align))


def choose(spaces: list[Space], counts: Iterable[int], scores: Scores, coupling: Coupling) -> np.ndarray:
    """The `counts` least important sets of each space, int64, sorted; no layer loses all its channels.

    Every layer of a space loses the same fraction of its sets: of a concatenation each part, of an attention
    queries and values. What is compared is a set's importance over the mean of those that touch the same
    layers, so that one of many channels does not outweigh one of few.
    """
    removed: list[int] = []
    left = _Left(coupling)
    for space, quota in zip(spaces, counts, strict=True):
        importance = _relative(importances(space, scores, coupling), _classes(space, coupling))
        removed += [int(space.sets[at]) for at in _chosen(space, quota, importance, coupling, left)]
    return np.array(sorted(removed), np.int64)


def _chosen(space: Space, quota: int, importance: np.ndarray, coupling: Coupling, left: "_Left") -> set[int]:
    """Positions in `space.sets`, `quota` if so many can go."""
    taken: set[int] = set()
    fraction = quota / len(space.sets)
    units = sorted(_units(space, coupling), key=len)  # what few sets make up is served first

    most = [(set(members.tolist()), int(np.ceil(fraction * len(members)))) for members in units]

    def take(at: int) -> bool:
        """Let a set go, if something is left of all that it is part of, and no layer loses too much."""
        full = any(at in unit and len(taken & unit) >= limit for unit, limit in most)
        if at in taken or full or not left.take(int(space.sets[at])):
            return False
        taken.add(at)
        return True

    for members in units:
        need = int(fraction * len(members) + 1e-9) - len(taken & set(members.tolist()))
        for at in members[np.argsort(importance[members], kind="stable")].tolist():
            need -= need > 0 and take(at)
    for at in np.argsort(importance, kind="stable").tolist():  # what rounding left over
        if len(taken) < quota:
            take(at)
    return taken


def _units(space: Space, coupling: Coupling) -> list[np.ndarray]:
    """Positions in `space.sets` of the sets of each layer, those of as many channels together."""
    units = []
    for name in space.layers:
        found, sizes = np.unique(coupling.outputs[name], return_counts=True)
        places = np.searchsorted(space.sets, found)
        inside = (places < len(space.sets)) & (space.sets[np.minimum(places, len(space.sets) - 1)] == found)
        units += [places[inside & (sizes == size)] for size in np.unique(sizes[inside])]
    return units


def _relative(importance: np.ndarray, classes: list[np.ndarray]) -> np.ndarray:
    """Importance over the mean of its class."""
    relative = importance.copy()
    for members in classes:
        relative[members] /= importance[members].mean() or 1.0
    return relative


class _Left:
    """What is left of every part of the network that must not become empty."""

    def __init__(self, coupling: Coupling) -> None:
        parts = {tuple(np.unique(part).tolist()) for part in (*coupling.parts, *coupling.outputs.values())}
        self.left = [len(part) for part in sorted(parts)]
        self.touched: dict[int, list[int]] = {}
        for at, part in enumerate(sorted(parts)):
            for member in part:
                self.touched.setdefault(member, []).append(at)

    def take(self, chosen: int) -> bool:
        """Remove a set, if something is left of all that it is part of; whether it was."""
        touched = self.touched.get(chosen, [])
        if any(self.left[at] == 1 for at in touched):
            return False
        for at in touched:
            self.left[at] -= 1
        return True


def _classes(space: Space, coupling: Coupling) -> list[np.ndarray]:
    """Positions in `space.sets` of the sets that touch the same layers with as many channels."""
    touches: dict[int, list[tuple[str, int]]] = {int(s): [] for s in space.sets}
    for name in space.layers:
        for member, size in zip(*np.unique(coupling.outputs[name], return_counts=True), strict=True):
            if int(member) in touches:
                touches[int(member)].append((name, int(size)))
    classes: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for at, member in enumerate(space.sets.tolist()):
        classes.setdefault(tuple(touches[member]), []).append(at)
    return [np.array(members, np.int64) for members in classes.values()]


def importances(space: Space, scores: Scores, coupling: Coupling) -> np.ndarray:
    """The importance of each free set: the sum over its channels of all layers that have a score."""
    total = np.zeros(len(space.sets))
    at = {int(label): i for i, label in enumerate(space.sets)}
    for name in space.layers:
        if name in scores:
            for label, score in zip(coupling.outputs[name].tolist(), scores[name].tolist(), strict=True):
                if label in at:
                    total[at[label]] += score
    return total


def candidates_of(coupling: Coupling, settings: Structure) -> list[str]:
    """Layers whose channels may be asked to go: convolutions (grouped ones go along), linear layers if
    set."""
    kinds = coupling.kinds
    return [n for n in coupling.layers() if (settings.linear if kinds[n].linear else kinds[n].groups == 1)]


def _space(coupling: Coupling, names: list[str]) -> Space:
    free = np.unique(np.concatenate([coupling.free(name) for name in names]))
    # Of the layers with the most free sets (a concatenation has those of all it joins) the narrowest.
    narrowest = min(names, key=lambda name: (-len(coupling.free(name)), len(coupling.outputs[name])))
    sets = coupling.outputs[narrowest]
    sizes = np.unique(sets[np.isin(sets, free)], return_counts=True)[1]
    if len(np.unique(sizes)) > 1:  # queries and keys beside values: counted in sets
        return Space(tuple(names), free, len(free), 1)
    per_set = max(1, len(sets) // len(np.unique(sets)))
    return Space(tuple(names), free, max(len(sets), len(free) * per_set), per_set)


def per_layer_sparsities(spaces: Sequence[Space], settings: Structure) -> list[float]:
    """The sparsity of each space: its own by `per_layer`, else that of all.

    Raises:
        BadInput: a pattern matches nothing, or layers of a space are given two values.
    """
    where = f"stage `{settings.name}`, setting `per_layer`"
    layers = [name for space in spaces for name in space.layers]
    layer_sparsities: dict[str, float] = {}
    for pattern, sparsity in settings.per_layer.items():
        layer_sparsities.update(dict.fromkeys(matching(layers, [pattern], where), sparsity))
    sparsities = []
    for space in spaces:
        in_space = {name: layer_sparsities[name] for name in space.layers if name in layer_sparsities}
        if len(set(in_space.values())) > 1:
            raise BadInput(
                "layers whose channels go together were given different sparsities",
                got=", ".join(f"{name}: {value:g}" for name, value in in_space.items()),
                where=where,
                todo="Give all of them one value, or only one of them",
            )
        sparsities.append(next(iter(in_space.values()), settings.sparsity))
    return sparsities


def _global_sparsities(
    spaces: list[Space], scores: Scores, coupling: Coupling, settings: Structure
) -> list[float]:
    relative = []
    for at, space in enumerate(spaces):
        importance = _relative(importances(space, scores, coupling), _classes(space, coupling))
        first = int(np.ceil(settings.max_cut * len(importance)))  # the rest of a space always stays
        relative += [(value, at) for value in np.sort(importance)[:first]]
    relative.sort()
    total = int(settings.sparsity * sum(len(space.sets) for space in spaces))
    counts = np.bincount([at for _, at in relative[:total]], minlength=len(spaces))
    return [n * s.per_set / s.width for n, s in zip(counts, spaces, strict=True)]
