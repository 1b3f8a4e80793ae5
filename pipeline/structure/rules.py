"""One rule for each operator: which positions of what it reads and gives are the same channels.

`RULES` is closed: an operator that is not in it is not known, and all it touches stays. Beside its labels
a rule says which arguments change with the channels (sizes, groups, bounds), and whether the operator
mixes channels, so that a channel that is zero is not the same as one that is gone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tersor.models.program import ELEMENTWISE, Tensor, Value
from tersor.pipeline.structure.flow import PLAIN, Dims, Flow, groups_of
from tersor.pipeline.structure.labels import Entry

Given = Mapping[str, Any]


class Cut(Protocol):
    """What a narrowing knows: which positions stay."""

    def kept(self, ref: Any, dim: int) -> np.ndarray | None:
        """bool, one for each position of a dimension; None where it has no channels."""

    def kept_out(self, dim: int) -> np.ndarray | None:
        """The same of the present step's result."""

    def shape(self, ref: Any) -> tuple[int, ...]:
        """The shape before anything went."""

    def shape_out(self) -> tuple[int, ...]:
        """The shape of the present step's result before anything went."""


@dataclass(frozen=True)
class Rule:
    """What is known of one operator.

    flow: labels of its result from those of its arguments.
    narrow: arguments that change when channels go; None where none do.
    mixes: whether a result depends on several channels other than through a weight.
    """

    flow: Callable[[Flow, Given], Any]
    narrow: Callable[[Cut, Given], dict[str, Any]] | None = None
    mixes: bool = False


def _axis(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _axes(dims: Any, rank: int) -> list[int]:
    if dims is None or (isinstance(dims, list) and not dims):
        return list(range(rank))
    return [_axis(d, rank) for d in (dims if isinstance(dims, list | tuple) else [dims])]


# channel by channel


def _elementwise(flow: Flow, given: Given) -> Dims:
    """Position by position: tensors that meet, broadcast or not, lose the same channels."""
    refs = [v for v in given.values() if isinstance(v, Value | Tensor) and flow.shape(v) != ()]
    refs.sort(key=lambda ref: isinstance(ref, Tensor))  # parameters take the labels of what they meet
    shape = flow.out_shape()
    dims: Dims = []
    for at in range(len(shape)):
        back = len(shape) - at
        meeting = [(r, len(flow.shape(r)) - back) for r in refs if len(flow.shape(r)) >= back]
        meeting = [(r, d) for r, d in meeting if flow.shape(r)[d] == shape[at] and shape[at] != 1]
        entry: Entry | None = None
        for ref, dim in meeting:
            entry = flow.dims(ref)[dim] if entry is None else flow.meet(ref, dim, entry)
        dims.append(PLAIN if entry is None else entry)
    return dims


def _same(flow: Flow, given: Given) -> Dims:
    """The channels of the first tensor."""
    return flow.dims(next(iter(given.values())))


def _pooled(count: int, several: bool = False) -> Callable[[Flow, Given], Any]:
    """The last `count` dimensions are mixed, all others pass."""

    def rule(flow: Flow, given: Given) -> Any:
        """Channel by channel; pixels stay."""
        dims = flow.dims(next(iter(given.values())))
        dims = [*dims[:-count], *(flow.plain(e) for e in dims[-count:])]
        return [dims, list(dims)] if several else dims

    return rule


def _first_axis_meets(flow: Flow, given: Given) -> Dims:
    """One value a channel, which goes with it, or one for all."""
    dims, weight = flow.dims(given["self"]), given["weight"]
    if len(dims) > 1 and flow.shape(weight)[-1] > 1:
        dims[1] = flow.meet(weight, len(flow.shape(weight)) - 1, dims[1])
    return dims


def _glu(flow: Flow, given: Given) -> Dims:
    """One half times a gate of the other: a channel goes with its gate."""
    dims = flow.dims(given["self"])
    axis = _axis(given["dim"], len(dims))
    entry = dims[axis]
    if isinstance(entry, np.ndarray):
        half = len(entry) // 2
        flow.labels.join(entry[:half], entry[half:])
        dims[axis] = entry[:half]
    return dims


# layers with weights


def _convolution(flow: Flow, given: Given) -> Dims:
    """Output channels go with the weight's rows, input channels with its columns; the groups of a grouped
    one go whole, or each narrows alike."""
    weight, groups = given["weight"], given["groups"]
    dims, w_shape = flow.dims(given["input"]), flow.shape(weight)
    batched = len(dims) == len(w_shape)
    channel = 1 if batched else 0
    entry = dims[channel]
    for at in range(2, len(w_shape)):
        flow.meet(weight, at, flow.here("has a kernel"))
    if groups == 1:
        entry, out = flow.meet(weight, 1, entry), flow.dims(weight)[0]
    else:
        entry, out = _grouped(flow, weight, entry, groups, w_shape[0])
    if given["bias"] is not None:
        out = flow.meet(given["bias"], 0, out)
    flow.weighted(weight, entry, out)
    along = [
        e if _slides_over(given, at, w_shape) else flow.plain(e) for at, e in enumerate(dims[channel + 1 :])
    ]
    return [*dims[:channel], out, *along]


def _slides_over(given: Given, at: int, w_shape: Sequence[int]) -> bool:
    """Whether a kernel slides along a dimension and leaves its length: over channels, as in ECA's gate."""

    def of(name: str) -> Any:
        """The argument for this dimension."""
        value = given[name]
        return value[at if len(value) > 1 else 0] if isinstance(value, list | tuple) else value

    reach = of("dilation") * (w_shape[2 + at] - 1)
    padding = of("padding")
    return bool(of("stride") == 1 and (padding == "same" or (padding != "valid" and 2 * padding == reach)))


def _grouped(flow: Flow, weight: Any, entry: Entry, groups: int, width: int) -> tuple[Entry, Entry]:
    """A grouped convolution loses whole groups, or the same channels of each group."""
    inside = flow.shape(weight)[1]
    if not isinstance(entry, np.ndarray):
        flow.meet(weight, 1, entry) if inside > 1 else None
        if inside == 1:
            return entry, flow.meet(weight, 0, entry or flow.here("reads fixed channels"))
        ways = flow.choose(("groups", groups, inside), 2, 0)
        if ways == 0:
            return entry, flow.meet(weight, 0, entry or flow.here("reads fixed channels"))
        rows = flow.dims(weight)[0]
        if isinstance(rows, np.ndarray):
            flow.tie(rows.reshape(groups, -1), 1)
        return entry, rows
    whole = inside == 1 or flow.choose(("groups", groups, inside), 2, 0) == 0
    if whole:
        flow.meet(weight, 1, flow.here("loses whole groups")) if inside > 1 else None
        kept = flow.tie(entry.reshape(groups, -1), 0)
        return entry, flow.meet(weight, 0, np.repeat(kept, width // groups))
    flow.meet(weight, 1, flow.tie(entry.reshape(groups, -1), 1))
    rows = flow.dims(weight)[0]
    if isinstance(rows, np.ndarray):
        flow.tie(rows.reshape(groups, -1), 1)
    return entry, rows


def _fewer_groups(cut: Cut, given: Given) -> dict[str, Any]:
    groups = given["groups"]
    if groups == 1:
        return {}
    inside = cut.kept(given["weight"], 1)
    if inside is not None and not inside.all():
        return {}  # every group lost channels
    kept = cut.kept(given["weight"], 0)
    if kept is None:
        return {}
    return {"groups": int(kept.reshape(groups, -1).any(1).sum())} if inside is None or len(inside) else {}


def _transposed(flow: Flow, given: Given) -> Dims:
    """As a convolution, the weight's first two dimensions changed over."""
    weight, groups = given["weight"], given["groups"]
    dims, w_shape = flow.dims(given["input"]), flow.shape(weight)
    channel = 1 if len(dims) == len(w_shape) else 0
    entry = dims[channel]
    for at in range(2, len(w_shape)):
        flow.meet(weight, at, flow.here("has a kernel"))
    out: Entry
    if groups == 1:
        entry, out = flow.meet(weight, 0, entry), flow.dims(weight)[1]
    else:
        flow.meet(weight, 1, flow.here("loses whole groups"))
        if isinstance(entry, np.ndarray):
            kept = flow.tie(entry.reshape(groups, -1), 0)
            entry, out = flow.meet(weight, 0, entry), np.repeat(kept, w_shape[1])
        else:
            out = entry = flow.meet(weight, 0, entry or flow.here("reads fixed channels"))
    if given["bias"] is not None:
        out = flow.meet(given["bias"], 0, out)
    flow.weighted(weight, entry, out)
    return [*dims[:channel], out, *(flow.plain(e) for e in dims[channel + 1 :])]


def _linear(flow: Flow, given: Given) -> Dims:
    """Output features go with the weight's rows, input features with its columns."""
    weight, dims = given["weight"], flow.dims(given["input"])
    entry, out = flow.meet(weight, 1, dims[-1]), flow.dims(weight)[0]
    if given["bias"] is not None:
        out = flow.meet(given["bias"], 0, out)
    flow.weighted(weight, entry, out)
    return [*dims[:-1], out]


def _matmul(first: str, second: str, added: str | None = None) -> Callable[[Flow, Given], Dims]:
    def rule(flow: Flow, given: Given) -> Dims:
        """Contracted dimensions go together, those of the batch meet."""
        a, b = flow.dims(given[first]), flow.dims(given[second])
        if len(a) < 2 or len(b) < 2:
            for entry in (*a, *b):
                flow.plain(entry)
            return [PLAIN] * len(flow.out_shape())
        if isinstance(given[second], Tensor) and not isinstance(given[first], Tensor):
            flow.meet(given[second], len(b) - 2, a[-1])
        else:
            flow.join(a[-1], b[-2])
        shape = flow.out_shape()
        outs: Dims = [*_batch(flow, [(given[first], a), (given[second], b)], shape[:-2]), a[-2], b[-1]]
        if added is not None:
            extra, sizes = flow.dims(given[added]), flow.shape(given[added])
            for back in range(1, len(sizes) + 1):
                if sizes[-back] == shape[-back] != 1:
                    outs[-back] = flow.join(outs[-back], extra[-back])
        return outs

    return rule


def _batch(flow: Flow, sources: Sequence[tuple[Any, Dims]], sizes: Sequence[int]) -> Dims:
    """The dimensions before the matrices', broadcast."""
    dims: Dims = []
    for at, size in enumerate(sizes):
        back = len(sizes) - at + 2
        entries = [d[-back] for ref, d in sources if len(d) >= back and flow.shape(ref)[-back] == size != 1]
        entry: Entry = entries[0] if entries else PLAIN
        for other in entries[1:]:
            entry = flow.join(entry, other)
        dims.append(entry)
    return dims


def _attention(flow: Flow, given: Given) -> Dims:
    """A dimension of queries goes with that of keys, one of values alone, heads whole; the scale stays
    that of the full width."""
    q, k, v = (flow.dims(given[name]) for name in ("query", "key", "value"))
    flow.join(q[-1], k[-1])
    flow.plain(flow.join(k[-2], v[-2]))
    shape = flow.out_shape()
    sources = [(given[name], d) for name, d in (("query", q), ("key", k), ("value", v))]
    dims = _batch(flow, sources, shape[:-2])
    if given["attn_mask"] is not None:
        mask, sizes = flow.dims(given["attn_mask"]), flow.shape(given["attn_mask"])
        for back in range(1, len(mask) + 1):
            if sizes[-back] == 1:
                continue
            if back <= 2:
                flow.plain(mask[-back])
            else:
                dims[-(back - 2)] = flow.join(dims[-(back - 2)], mask[-back])
    return [*dims, q[-2], v[-1]]


def _same_scale(cut: Cut, given: Given) -> dict[str, Any]:
    """The default scale is of the width of a head: it stays that of before."""
    if given["scale"] is not None or cut.kept(given["query"], len(cut.shape(given["query"])) - 1) is None:
        return {}
    return {"scale": 1 / math.sqrt(cut.shape(given["query"])[-1])}


def _batch_norm(flow: Flow, given: Given) -> Dims:
    """One value a channel, which goes with it."""
    dims = flow.dims(given["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if given.get(name) is not None:
            dims[1] = flow.meet(given[name], 0, dims[1])
    return [dims[0], dims[1], *(flow.plain(e) for e in dims[2:])]


def _batch_norm_core(flow: Flow, given: Given) -> Any:
    """One value a channel, which goes with it."""
    dims = _batch_norm(flow, given)
    return [dims, [PLAIN], [PLAIN]]


def _layer_norm(flow: Flow, given: Given) -> Dims:
    """Over the channels that stay; a value a channel goes with it."""
    dims, normalized = flow.dims(given["input"]), len(given["normalized_shape"])
    for name in ("weight", "bias"):
        if given.get(name) is not None:
            for at in range(normalized):
                back = len(dims) - normalized + at
                dims[back] = flow.meet(given[name], at, dims[back])
    return dims


def _narrower_norm(cut: Cut, given: Given) -> dict[str, Any]:
    shape, rank = list(given["normalized_shape"]), len(cut.shape(given["input"]))
    for at in range(len(shape)):
        kept = cut.kept(given["input"], rank - len(shape) + at)
        shape[at] = shape[at] if kept is None else int(kept.sum())
    return {"normalized_shape": shape}


def _group_norm(flow: Flow, given: Given) -> Dims:
    """Whole groups go, or of each group as many channels."""
    dims, groups = flow.dims(given["input"]), given["num_groups"]
    entry = dims[1]
    if isinstance(entry, np.ndarray) and groups not in (1, len(entry)):
        way = flow.choose(("group_norm", groups, len(entry)), 2, 0)
        flow.tie(entry.reshape(groups, -1), 0 if way == 0 else 1)
    for name in ("weight", "bias"):
        if given.get(name) is not None:
            dims[1] = flow.meet(given[name], 0, dims[1])
    return [dims[0], dims[1], *(flow.plain(e) for e in dims[2:])]


def _fewer_norm_groups(cut: Cut, given: Given) -> dict[str, Any]:
    kept, groups = cut.kept(given["input"], 1), given["num_groups"]
    if kept is None:
        return {}
    return {"num_groups": int(kept.reshape(groups, -1).any(1).sum())}


# shapes


def _reshaped(flow: Flow, given: Given) -> Dims:
    """Positions keep their order; a dimension that is split keeps the channels of one of its factors."""
    source = given.get("self", given.get("input"))
    before, after, dims = flow.shape(source), flow.out_shape(), flow.dims(source)
    outs: Dims = [PLAIN] * len(after)
    for left, right in groups_of(before, after):
        flat = _merged(flow, [dims[i] for i in left], [before[i] for i in left])
        if isinstance(flat, str):
            for at in right:
                outs[at] = flat
            continue
        axis, labels = _split(flow, flat, [after[i] for i in right])
        if axis is not None:
            outs[right[axis]] = labels
    return outs


def _merged(flow: Flow, entries: Dims, sizes: Sequence[int]) -> Entry:
    """The labels of several dimensions made one."""
    labelled = [at for at, entry in enumerate(entries) if isinstance(entry, np.ndarray)]
    if not labelled:
        return next((e for e in entries if e), PLAIN)
    if len(labelled) > 1:
        best = max(labelled, key=lambda at: sizes[at])
        for at in labelled:
            if at != best:
                flow.fixed(entries[at], flow.here("merges two dimensions of channels"))
        labelled = [best]
    (at,) = labelled
    shape = [1] * len(sizes)
    shape[at] = sizes[at]
    return np.broadcast_to(np.asarray(entries[at]).reshape(shape), sizes).ravel()


def _split(flow: Flow, flat: np.ndarray, sizes: Sequence[int]) -> tuple[int | None, Entry]:
    """Labels of one dimension that becomes several: along which of them they vary, and how."""
    if len(sizes) == 1:
        return 0, flat
    table = flow.labels.roots(flat).reshape(sizes)
    varying = [a for a in range(len(sizes)) if not (table == table.take([0], a)).all()]
    if not varying:
        flow.labels.fix(flat, flow.here("splits channels that go together"))
        return None, PLAIN
    if len(varying) == 1:
        (axis,) = varying
    else:
        assert flow.step is not None
        kind = ("split", len(sizes), tuple(varying), flow.next_operators(flow.step.name))
        axis = varying[flow.choose(kind, len(varying), len(varying) - 1)]
    return axis, flow.tie(table, axis)


def _new_sizes(cut: Cut, given: Given) -> dict[str, Any]:
    """Sizes that are written in, of dimensions that lose positions."""
    name = "size" if "size" in given else "shape" if "shape" in given else "sizes"
    sizes, shape = list(given[name]), cut.shape_out()
    if name == "sizes":  # unflatten: the last of them
        first = _axis(given["dim"], len(cut.shape(given["self"])))
        shape = shape[first : first + len(sizes)]
    else:
        first = 0
    free = any(s == -1 for s in sizes)
    for at in range(len(sizes)):
        kept = cut.kept_out(first + at)
        if kept is None or kept.all() or sizes[at] == -1:
            continue  # -1 follows by itself, whatever the batch
        if isinstance(sizes[at], Value):
            if free:  # the other is known
                other = sizes.index(-1)
                known = cut.kept_out(first + other)
                sizes[other] = shape[other] if known is None else int(known.sum())
            sizes[at], free = -1, True
        else:
            sizes[at] = int(kept.sum())
    return {name: sizes}


def _expanded(flow: Flow, given: Given) -> Dims:
    """Dimensions that grow have no channels; the others keep theirs."""
    source = given["self"]
    dims, before, after = flow.dims(source), flow.shape(source), flow.out_shape()
    front = len(after) - len(before)
    return [
        dims[at - front] if at >= front and before[at - front] == after[at] else PLAIN
        for at in range(len(after))
    ]


def _expanded_as(flow: Flow, given: Given) -> Dims:
    """Dimensions that grow go along with those of the other tensor."""
    other, shape = flow.dims(given["other"]), flow.out_shape()
    dims = _expanded(flow, given)
    for at, entry in enumerate(dims):  # where it grew it grows with the other
        if entry == PLAIN if isinstance(entry, str) else False:
            dims[at] = other[at]
    return dims if len(dims) == len(shape) else other


def _permuted(order: Callable[[Given, int], Sequence[int]]) -> Callable[[Flow, Given], Dims]:
    def rule(flow: Flow, given: Given) -> Dims:
        """Dimensions change places with their channels."""
        dims = flow.dims(given["self"])
        return [dims[at] for at in order(given, len(dims))]

    return rule


def _swapped(given: Given, rank: int) -> list[int]:
    order = list(range(rank))
    a, b = (_axis(given[k], rank) for k in (("dim0", "dim1") if "dim0" in given else ("axis0", "axis1")))
    order[a], order[b] = order[b], order[a]
    return order


def _moved(given: Given, rank: int) -> list[int]:
    source, target = (_axes(given[name], rank) for name in ("source", "destination"))
    order = [at for at in range(rank) if at not in source]
    for to, at in sorted(zip(target, source, strict=True)):
        order.insert(to, at)
    return order


def _unsqueezed(flow: Flow, given: Given) -> Dims:
    """A dimension of one is put in; the others keep their channels."""
    dims = flow.dims(given["self"])
    dims.insert(_axis(given["dim"], len(dims) + 1), PLAIN)
    return dims


def _squeezed(flow: Flow, given: Given) -> Dims:
    """Dimensions of one are left out; the others keep their channels."""
    dims, shape = flow.dims(given["self"]), flow.shape(given["self"])
    axes = _axes(given.get("dim"), len(shape))
    return [e for at, e in enumerate(dims) if not (shape[at] == 1 and at in axes)]


def _repeated(flow: Flow, given: Given) -> Dims:
    """The copies of a channel go with it."""
    dims, repeats = flow.dims(given["self"]), given["repeats"]
    dims = [*([PLAIN] * (len(repeats) - len(dims))), *dims]
    shape = (1,) * (len(repeats) - len(flow.shape(given["self"]))) + flow.shape(given["self"])
    return [
        np.tile(e, r)
        if isinstance(e, np.ndarray) and isinstance(r, int)
        else flow.plain(e)
        if s != 1
        else PLAIN
        for e, r, s in zip(dims, repeats, shape, strict=True)
    ]


def _repeat_interleaved(flow: Flow, given: Given) -> Dims:
    """The copies of a channel go with it."""
    dims = flow.dims(given["self"])
    if given["dim"] is None:
        return [flow.plain(e) for e in dims[:1]]
    at = _axis(given["dim"], len(dims))
    entry = dims[at]
    dims[at] = np.repeat(entry, given["repeats"]) if isinstance(entry, np.ndarray) else entry
    return dims


# cutting and joining


def _concatenated(flow: Flow, given: Given) -> Dims:
    """The parts' channels stand behind each other; in all other dimensions they meet."""
    refs = [r for r in given["tensors"] if flow.shape(r) != (0,)]
    all_dims = [flow.dims(r) for r in refs]
    axis = _axis(given["dim"], len(flow.out_shape()))
    outs: Dims = list(all_dims[0])
    for dims in all_dims[1:]:
        for at in range(len(outs)):
            if at != axis and flow.out_shape()[at] != 1:
                outs[at] = flow.join(outs[at], dims[at])
    parts = [dims[axis] for dims in all_dims]
    if all(isinstance(p, str) for p in parts):
        outs[axis] = next((p for p in parts if p), PLAIN)
    else:
        vectors = [flow.vector(p, flow.shape(r)[axis]) for p, r in zip(parts, refs, strict=True)]
        outs[axis] = np.concatenate(vectors)
    return outs


def _stacked(flow: Flow, given: Given) -> Dims:
    """The parts meet position by position; the new dimension stays."""
    all_dims = [flow.dims(r) for r in given["tensors"]]
    outs = list(all_dims[0])
    for dims in all_dims[1:]:
        outs = [flow.join(a, b) if a is not b else a for a, b in zip(outs, dims, strict=True)]
    outs.insert(_axis(given["dim"], len(outs) + 1), PLAIN)
    return outs


def _split_sizes(flow: Flow, given: Given) -> list[Dims]:
    """Each part has its own channels, and keeps at least one."""
    dims = flow.dims(given["self"])
    axis = _axis(given["dim"], len(dims))
    entry, at, parts = dims[axis], 0, []
    for size in given["split_sizes"]:
        part = list(dims)
        if isinstance(entry, np.ndarray):
            part[axis] = entry[at : at + size]
            flow.parts.append(entry[at : at + size])
        parts.append(part)
        at += size
    return parts


def _narrower_split(cut: Cut, given: Given) -> dict[str, Any]:
    kept = cut.kept(given["self"], _axis(given["dim"], len(cut.shape(given["self"]))))
    if kept is None:
        return {}
    bounds = np.cumsum([0, *given["split_sizes"]])
    return {"split_sizes": [int(kept[a:b].sum()) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]}


def _unbound(flow: Flow, given: Given) -> list[Dims]:
    """The dimension that is taken apart stays; the others keep their channels."""
    dims = flow.dims(given["self"])
    axis = _axis(given["dim"], len(dims))
    flow.plain(dims[axis])
    count = flow.shape(given["self"])[axis]
    return [[e for at, e in enumerate(dims) if at != axis] for _ in range(count)]


def _bounds(given: Given, size: int) -> tuple[int, int]:
    start, end = given["start"] or 0, given["end"] if given["end"] is not None else size
    start, end = (max(0, s + size if s < 0 else s) for s in (start, end))
    return min(start, size), min(end, size)


def _sliced(flow: Flow, given: Given) -> Dims:
    """A part of the channels; it keeps at least one. With steps all of them stay."""
    dims, shape = flow.dims(given["self"]), flow.shape(given["self"])
    axis = _axis(given["dim"], len(dims))
    entry = dims[axis]
    numbers = all(isinstance(given[k], int | None) for k in ("start", "end"))
    if not isinstance(entry, np.ndarray):
        return dims
    if not numbers:
        dims[axis] = flow.plain(entry)
        return dims
    start, end = _bounds(given, shape[axis])
    if given["step"] != 1:
        flow.labels.fix(entry, flow.here("takes every second channel"))
        dims[axis] = flow.here("takes every second channel")
    elif (start, end) != (0, shape[axis]):
        dims[axis] = entry[start:end]
        flow.parts.append(entry[start:end])
    return dims


def _narrower_slice(cut: Cut, given: Given) -> dict[str, Any]:
    rank = len(cut.shape(given["self"]))
    axis = _axis(given["dim"], rank)
    kept = cut.kept(given["self"], axis)
    if kept is None:
        return {}
    start, end = _bounds(given, len(kept))
    return {"start": int(kept[:start].sum()), "end": int(kept[:end].sum())}


def _selected(flow: Flow, given: Given) -> Dims:
    """The dimension that is picked from stays; the others keep their channels."""
    dims = flow.dims(given["self"])
    axis = _axis(given["dim"], len(dims))
    flow.plain(dims[axis])
    return [e for at, e in enumerate(dims) if at != axis]


def _indexed(flow: Flow, given: Given) -> Dims:
    """Dimensions that are indexed stay; the others keep their channels."""
    dims, indices = flow.dims(given["self"]), given["indices"]
    used = [at for at, index in enumerate(indices) if index is not None]
    for at in used:
        flow.plain(dims[at])
    for index in indices:
        if index is not None:
            for entry in flow.dims(index):
                flow.plain(entry)
    rest = [e for at, e in enumerate(dims) if at not in used]
    new = len(flow.out_shape()) - len(rest)
    front = used[0] if used == list(range(used[0], used[0] + len(used))) else 0
    return [*rest[:front], *[PLAIN] * new, *rest[front:]]


def _index_selected(flow: Flow, given: Given) -> Dims:
    """The dimension that is indexed stays; the others keep their channels."""
    dims = flow.dims(given["self"])
    axis = _axis(given["dim"], len(dims))
    for entry in flow.dims(given["index"]):
        flow.plain(entry)
    dims[axis] = flow.plain(dims[axis])
    return dims


def _moves_positions(name: str) -> Callable[[Flow, Given], Dims]:
    def rule(flow: Flow, given: Given) -> Dims:
        """Positions along some dimensions change places: none of them can go."""
        dims = flow.dims(next(iter(given.values())))
        for axis in _axes(given[name], len(dims)):
            dims[axis] = flow.plain(dims[axis])
        return dims

    return rule


def _padded(flow: Flow, given: Given) -> Dims:
    """Channels that are put in stay; those of the input can go."""
    dims, pads = flow.dims(given["self"]), given["pad"]
    for at in range(len(pads) // 2):
        axis = len(dims) - 1 - at
        before, after = pads[2 * at], pads[2 * at + 1]
        entry = dims[axis]
        if (before, after) == (0, 0) or not isinstance(entry, np.ndarray):
            continue
        constant = given.get("mode", "constant") == "constant"
        if constant and isinstance(before, int) and isinstance(after, int) and before >= 0 <= after:
            sides = [flow.labels.fresh(n) for n in (before, after)]
            for side in sides:
                flow.labels.fix(side, f"the channels that {flow.here()} adds")
            dims[axis] = np.concatenate([sides[0], entry, sides[1]])
        else:
            dims[axis] = flow.plain(entry)
    return dims


# mixing


def _reduced(flow: Flow, given: Given) -> Dims:
    """Over the channels that stay; dimensions that are left keep theirs."""
    dims = flow.dims(given["self"])
    axes = _axes(given.get("dim"), len(dims))
    if given.get("keepdim"):
        return [PLAIN if at in axes else e for at, e in enumerate(dims)]
    return [e for at, e in enumerate(dims) if at not in axes]


def _reduced_pair(flow: Flow, given: Given) -> list[Dims]:
    """Two results, each a reduction over some dimensions."""
    dims = _reduced(flow, given)
    return [dims, list(dims)]


def _softmax(flow: Flow, given: Given) -> Dims:
    """Positions that are weighed against each other all stay."""
    dims = flow.dims(given["self"])
    axis = _axis(given["dim"], len(dims))
    dims[axis] = flow.plain(dims[axis])
    return dims


def _pixel_shuffled(flow: Flow, given: Given) -> Dims:
    """A channel of the result goes with all that make its pixels."""
    dims, factor = flow.dims(given["self"]), given["upscale_factor"]
    entry = dims[-3]
    if isinstance(entry, np.ndarray):
        dims[-3] = flow.tie(entry.reshape(-1, factor * factor), 0)
    return [*dims[:-2], *(flow.plain(e) for e in dims[-2:])]


def _pixel_unshuffled(flow: Flow, given: Given) -> Dims:
    """All channels that a channel's pixels become go with it."""
    dims, factor = flow.dims(given["self"]), given["downscale_factor"]
    entry = dims[-3]
    if isinstance(entry, np.ndarray):
        dims[-3] = np.repeat(entry, factor * factor)
    return [*dims[:-2], *(flow.plain(e) for e in dims[-2:])]


def _channel_shuffled(flow: Flow, given: Given) -> Dims:
    """Channels at the same place of each group go together."""
    dims, groups = flow.dims(given["self"]), given["groups"]
    entry = dims[1]
    if isinstance(entry, np.ndarray):
        dims[1] = np.repeat(flow.tie(entry.reshape(groups, -1), 1), groups)
    return dims


def _patches(flow: Flow, given: Given) -> Dims:
    """A channel goes with all positions of its kernel, which stand for it in order."""
    dims = flow.dims(given["self"])
    entry = dims[1]
    for pixel in dims[2:]:
        flow.plain(pixel)
    inside = int(np.prod(given["kernel_size"]))
    return [dims[0], np.repeat(entry, inside) if isinstance(entry, np.ndarray) else entry, PLAIN]


def _from_patches(flow: Flow, given: Given) -> Dims:
    """A channel goes with all positions of its kernel."""
    dims = flow.dims(given["self"])
    entry, inside = dims[1], int(np.prod(given["kernel_size"]))
    flow.plain(dims[2])
    if isinstance(entry, np.ndarray):
        entry = flow.tie(entry.reshape(-1, inside), 0)
    return [dims[0], entry, PLAIN, PLAIN]


def _windows(flow: Flow, given: Given) -> Dims:
    """The dimension that windows slide over stays; the others keep their channels."""
    dims = flow.dims(given["self"])
    axis = _axis(given["dimension"], len(dims))
    dims[axis] = flow.plain(dims[axis])
    return [*dims, PLAIN]


def _number(flow: Flow, given: Given) -> Dims:
    """A size, or a number computed of sizes."""
    del flow, given
    return []


def _part(flow: Flow, given: Given) -> Any:
    """One of several results."""
    source, at = given["0"], given["1"]
    return flow.of[source.name][at] if isinstance(source, Value) and flow.of[source.name] else []


def _einsum(flow: Flow, given: Given) -> Dims:
    """Dimensions of one letter go together; ellipses and diagonals stay."""
    terms, _, result = given["equation"].replace(" ", "").partition("->")
    operands = terms.split(",")
    letters = "".join(operands)
    if "." in letters or not result or any(len(set(term)) < len(term) for term in operands):
        return _all_fixed(flow, given)
    entries: dict[str, Entry] = {}
    for term, ref in zip(operands, given["tensors"], strict=True):
        for letter, entry in zip(term, flow.dims(ref), strict=True):
            entries[letter] = flow.join(entries[letter], entry) if letter in entries else entry
    return [entries[letter] for letter in result]


def _all_plain(flow: Flow, given: Given) -> Any:
    """What is made of nothing but numbers."""
    del given
    return [PLAIN] * len(flow.out_shape())


def _all_fixed(flow: Flow, given: Given) -> Any:
    """Known, but none of its dimensions can lose a position."""
    for ref in given.values():
        for one in ref if isinstance(ref, list) else [ref]:
            for entry in flow.dims(one):
                flow.plain(entry)
    shapes = flow.captured.shapes[flow.step.name]  # type: ignore[union-attr]
    listed = isinstance(shapes, list)
    dims = [[PLAIN] * len(s) for s in (shapes if listed else [shapes])]
    return dims if listed else dims[0]


POOLS = {
    1: "max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d.vec upsample_linear1d.vec",
    2: "max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d upsample_nearest2d.vec "
    "upsample_bilinear2d.vec upsample_bicubic2d.vec upsample_nearest2d upsample_bilinear2d",
    3: "max_pool3d avg_pool3d adaptive_avg_pool3d",
}
"""Dimensions of pixels -> operators that treat each channel alike."""


def _named(names: str) -> list[str]:
    return [name if "." in name else f"{name}.default" for name in names.split()]


_MOVING = "gather sort topk argmax tril triu grid_sampler slice_scatter select_scatter"
_MAKING = "zeros ones full arange arange.start arange.start_step linspace empty.memory_format"
_CONVOLUTIONS = [f"conv{n}d.{o}" for n in (1, 2, 3) for o in ("default", "padding")]
_TRANSPOSED = ["conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input"]
RULES: Mapping[str, Rule] = {
    **{name: Rule(_elementwise) for name in ELEMENTWISE},
    **{name: Rule(_same) for name in ("type_as.default",)},
    **{name: Rule(_pooled(n)) for n, names in POOLS.items() for name in _named(names)},
    "adaptive_max_pool1d.default": Rule(_pooled(1, several=True)),
    "adaptive_max_pool2d.default": Rule(_pooled(2, several=True)),
    "max_pool2d_with_indices.default": Rule(_pooled(2, several=True)),
    "prelu.default": Rule(_first_axis_meets),
    "glu.default": Rule(_glu),
    **{name: Rule(_convolution, _fewer_groups) for name in _CONVOLUTIONS},
    **{name: Rule(_transposed, _fewer_groups) for name in _TRANSPOSED},
    "linear.default": Rule(_linear),
    "matmul.default": Rule(_matmul("self", "other"), mixes=True),
    "mm.default": Rule(_matmul("self", "mat2"), mixes=True),
    "bmm.default": Rule(_matmul("self", "mat2"), mixes=True),
    "addmm.default": Rule(_matmul("mat1", "mat2", "self"), mixes=True),
    "baddbmm.default": Rule(_matmul("batch1", "batch2", "self"), mixes=True),
    "einsum.default": Rule(_einsum, mixes=True),
    "scaled_dot_product_attention.default": Rule(_attention, _same_scale, mixes=True),
    "batch_norm.default": Rule(_batch_norm),
    "instance_norm.default": Rule(_batch_norm),
    "_native_batch_norm_legit_no_training.default": Rule(_batch_norm_core),
    "layer_norm.default": Rule(_layer_norm, _narrower_norm, mixes=True),
    "rms_norm.default": Rule(_layer_norm, _narrower_norm, mixes=True),
    "group_norm.default": Rule(_group_norm, _fewer_norm_groups, mixes=True),
    **{name: Rule(_softmax) for name in ("softmax.int", "_softmax.default", "log_softmax.int")},
    **{
        name: Rule(_reduced, mixes=True)
        for name in (
            "mean.dim",
            "mean.default",
            "sum.dim_IntList",
            "amax.default",
            "amin.default",
            "var.correction",
            "std.correction",
            "linalg_vector_norm.default",
            "norm.ScalarOpt_dim",
        )
    },
    **{name: Rule(_reduced_pair, mixes=True) for name in ("var_mean.correction", "max.dim", "min.dim")},
    **{
        name: Rule(_reshaped, _new_sizes)
        for name in ("view.default", "reshape.default", "_unsafe_view.default", "unflatten.int")
    },
    **{name: Rule(_reshaped) for name in ("flatten.using_ints", "reshape_as.default", "view_as.default")},
    **{name: Rule(_expanded, _new_sizes) for name in ("expand.default", "broadcast_to.default")},
    "expand_as.default": Rule(_expanded_as),
    "permute.default": Rule(_permuted(lambda given, rank: _axes(given["dims"], rank))),
    **{name: Rule(_permuted(_swapped)) for name in ("transpose.int", "swapaxes.default")},
    **{
        name: Rule(_permuted(lambda _given, rank: list(range(rank - 1, -1, -1))))
        for name in ("t.default", "numpy_T.default")
    },
    "mT.default": Rule(_permuted(lambda _given, rank: [*range(rank - 2), rank - 1, rank - 2])),
    **{name: Rule(_permuted(_moved)) for name in ("movedim.int", "movedim.intlist")},
    "unsqueeze.default": Rule(_unsqueezed),
    **{name: Rule(_squeezed) for name in ("squeeze.default", "squeeze.dim", "squeeze.dims")},
    "repeat.default": Rule(_repeated),
    "repeat_interleave.self_int": Rule(_repeat_interleaved),
    "cat.default": Rule(_concatenated),
    "stack.default": Rule(_stacked),
    "split_with_sizes.default": Rule(_split_sizes, _narrower_split),
    "unbind.int": Rule(_unbound),
    "slice.Tensor": Rule(_sliced, _narrower_slice),
    "select.int": Rule(_selected),
    "index.Tensor": Rule(_indexed),
    "index_select.default": Rule(_index_selected),
    "roll.default": Rule(_moves_positions("dims")),
    "flip.default": Rule(_moves_positions("dims")),
    "cumsum.default": Rule(_moves_positions("dim")),
    "pad.default": Rule(_padded),
    "constant_pad_nd.default": Rule(_padded),
    "pixel_shuffle.default": Rule(_pixel_shuffled),
    "pixel_unshuffle.default": Rule(_pixel_unshuffled),
    "channel_shuffle.default": Rule(_channel_shuffled),
    "im2col.default": Rule(_patches),
    "col2im.default": Rule(_from_patches),
    "unfold.default": Rule(_windows),
    **{name: Rule(_all_fixed) for name in _named(_MOVING)},
    **{name: Rule(_all_plain) for name in _named(_MAKING)},
    "sym_size.int": Rule(_number),
    **{name: Rule(_number) for name in ("mul", "add", "sub", "floordiv", "truediv", "neg", "mod")},
    "getitem": Rule(_part),
}
"""Operator -> what is known of it."""
