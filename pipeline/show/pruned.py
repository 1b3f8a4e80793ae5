"""What structural pruning did, in sentences: asked against got, and which layers kept their channels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tersor.pipeline.show import units

NAMED = 3
"""Layers that are named with their reason; the rest are counted, metrics.json has them all."""


def pruned_told(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence or two for each stage that removed channels.

    Args:
        stages: the metrics of a run's stages, as plain data.
    """
    return [text for stage in stages if isinstance(stage, Mapping) for text in _told(stage)]


def _told(stage: Mapping[str, Any]) -> Iterator[str]:
    details = stage.get("details")
    details = details if isinstance(details, Mapping) else {}
    got, widths = units.known(details.get("achieved_sparsity_fraction")), details.get("widths")
    if got is None or not isinstance(widths, Mapping):
        return
    asked = units.known(details.get("asked_sparsity_fraction"))
    words = f"{stage.get('name', '?')}: {units.share(got)} of the channels went"
    words += f", {units.share(asked)} were asked" if asked is not None else ""
    for key, name in (("parameters", "parameters"), ("macs", "multiply-adds")):
        pair = details.get(key)
        if isinstance(pair, list) and len(pair) == 2:
            words += f"; {name} {units.count(units.known(pair[0]))} -> {units.count(units.known(pair[1]))}"
    yield words + "."
    kept = details.get("not_pruned")
    if isinstance(kept, Mapping) and kept:
        named = "; ".join(f"{layer} ({why})" for layer, why in list(kept.items())[:NAMED])
        more = f"; and {len(kept) - NAMED} more, in metrics.json" if len(kept) > NAMED else ""
        yield f"{stage.get('name', '?')}: {len(kept)} layers kept channels: {named}{more}."
