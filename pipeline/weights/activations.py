"""Activation quantization: grids for the inputs of layers, from the values of calibration images.

Two passes: the extremes of each layer's input, then a histogram between them. Zero is always a value of the
grid, exactly: padding and ReLU are full of it. Entropy: the range with the least Kullback-Leibler divergence
between the values and the rounded ones (S. Migacz, 8-bit inference with TensorRT, GTC 2017); exact zeros are
left out of it, since rounding does not change them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor.errors import BadInput
from tersor.models.layers import by_layer, chosen_layers
from tersor.models.network import Activation, Network
from tersor.pipeline.recipe.recipe import Activations
from tersor.progress import Tell

BATCH = 128
BINS = 2048
RATIOS = np.linspace(1.0, 1 / 32, 94)
"""Parts of the whole range that `entropy` tries."""


@dataclass(frozen=True)
class Seen:
    """What calibration images showed of layers' inputs.

    extremes: layer -> the smallest and the largest value, of the layers that the forward pass uses.
    histograms: layer -> counts between them of values that are not zero, float64 (BINS,); how many are zero.
    """

    extremes: Mapping[str, tuple[float, float]]
    histograms: Mapping[str, tuple[np.ndarray, int]]


def observe(
    network: Network,
    layers: Sequence[str],
    images: np.ndarray,
    where: str,
    progress: Tell = lambda *_: None,
) -> Seen:
    """Run images through a network and look at the inputs of layers.

    Args:
        network: computes in float here, whatever grids it had.
        layers: names of modules.
        images: preprocessed, float32 (N, C, H, W), of the training split.
        where: for the message.
        progress: told the fraction done.

    Raises:
        BadInput: no images, or an input that is NaN or infinite.
    """
    if not len(images):
        raise BadInput("there are no calibration images", wanted="at least one", where=where)
    module, inputs = network.module(), torch.from_numpy(np.ascontiguousarray(images, np.float32))
    extremes = _extremes(module, list(layers), inputs, where)
    progress(0.45, "ranges")
    return Seen(extremes, _histograms(module, extremes, inputs))


def calibrate(
    network: Network,
    settings: Activations,
    images: np.ndarray,
    *,
    seen: Seen | None = None,
    progress: Tell = lambda *_: None,
) -> tuple[Network, dict[str, Any]]:
    """Give the input of each chosen layer a grid.

    Args:
        network: computes in float here, whatever grids it had.
        settings: bits, method, layers.
        images: preprocessed, float32 (N, C, H, W), of the training split.
        seen: what `observe` made of these images, where several methods share it.
        progress: told the fraction done.

    Returns:
        The network with `activations`, and per layer: bits, range, share of values clipped. An input that is
        all zeros gets scale 1; layers that the forward pass does not use get none.

    Raises:
        BadInput: no images, or an input that is NaN or infinite; a pattern that matches no layer.
    """
    where = f"stage `{settings.name}`"
    layers = chosen_layers(network, settings.layers, settings.exclude, where)
    layer_bits = by_layer(layers, settings.per_layer, where)
    seen = seen if seen is not None else observe(network, layers, images, where, progress)
    progress(0.9, "histograms")
    grids, rows = dict(network.activations), []
    for layer, (low, high) in seen.extremes.items():
        bits = layer_bits.get(layer, settings.bits)
        counts, zeros = seen.histograms[layer]
        first, last = RANGES[settings.method](counts, zeros, low, high, bits, settings.percentile)
        grids[layer] = grid_between(first, last, bits)
        rows.append({"layer": layer, **_row(grids[layer], low, high, counts, zeros)})
    return replace(network, activations=grids), {"method": settings.method, "layers": rows}


def grid_between(low: float, high: float, bits: int) -> Activation:
    """The grid of 2^bits values from `low` to `high`, moved by less than a step so that it has zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps = 2**bits - 1
    scale = float(np.float32((high - low) / steps))
    if not scale > float(np.finfo(np.float32).tiny):
        return Activation(bits, 1.0, 0)
    return Activation(bits, scale, min(steps, max(0, round(-low / scale))))


def _watch(
    module: nn.Module,
    layers: Mapping[str, Any] | list[str],
    inputs: Tensor,
    see: Callable[[str, Tensor], None],
) -> None:
    """Run all images and show each layer's input to `see(layer, tensor)`."""
    handles = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: see(name, arguments[0].detach())
        )
        for name in layers
    ]
    try:
        with torch.no_grad():
            for batch in inputs.split(BATCH):
                module(batch)
    finally:
        for handle in handles:
            handle.remove()


def _extremes(
    module: nn.Module, layers: list[str], inputs: Tensor, where: str
) -> dict[str, tuple[float, float]]:
    extremes: dict[str, tuple[float, float]] = {}

    def see(layer: str, values: Tensor) -> None:
        """Widen the layer's range."""
        low, high = (float(v) for v in values.aminmax())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadInput(
                "a layer's input is NaN or infinite, which no grid holds",
                got=f"values from {low} to {high}",
                where=f"{where}, input of layer {layer!r}",
                todo="Check the calibration images and the weights before this layer",
            )
        before = extremes.get(layer, (low, high))
        extremes[layer] = min(low, before[0]), max(high, before[1])

    _watch(module, layers, inputs, see)
    return {layer: extremes[layer] for layer in layers if layer in extremes}


def _histograms(
    module: nn.Module, extremes: Mapping[str, tuple[float, float]], inputs: Tensor
) -> dict[str, tuple[np.ndarray, int]]:
    """For each layer the counts of values that are not zero, float64 (BINS,), and how many are zero."""
    counts = {layer: np.zeros(BINS) for layer in extremes}
    zeros = dict.fromkeys(extremes, 0)

    def see(layer: str, values: Tensor) -> None:
        """Count this batch's values."""
        low, high = extremes[layer]
        alive = int(torch.count_nonzero(values))
        none = values.numel() - alive
        zeros[layer] += none
        if alive and high > low:
            # zeros are counted and taken off their bin: to gather what is not zero costs as much again
            counts[layer] += np.histogram(values.numpy(), BINS, (low, high))[0]
            counts[layer] -= none * np.histogram(np.zeros(1, np.float32), BINS, (low, high))[0]
        elif alive:
            counts[layer][0] += alive

    _watch(module, extremes, inputs, see)
    return {layer: (counts[layer], zeros[layer]) for layer in extremes}


def _minmax(
    counts: np.ndarray, zeros: int, low: float, high: float, bits: int, percentile: float
) -> tuple[float, float]:
    return low, high


def _percentile(
    counts: np.ndarray, zeros: int, low: float, high: float, bits: int, percentile: float
) -> tuple[float, float]:
    """The least range around zero with at most 100 - percentile % of all values beyond either end."""
    centres, allowed = _centres(low, high), (1 - percentile / 100) * (counts.sum() + zeros)
    above, below = np.cumsum(counts[::-1])[::-1], np.cumsum(counts)
    width = (high - low) / BINS
    highs, lows = centres[above > allowed], centres[below > allowed]
    return (
        max(low, float(lows[0]) - width / 2) if len(lows) else low,
        min(high, float(highs[-1]) + width / 2) if len(highs) else high,
    )


def _entropy(
    counts: np.ndarray, zeros: int, low: float, high: float, bits: int, percentile: float
) -> tuple[float, float]:
    """The part of the range, shrunk towards zero, whose rounded values tell least from the true ones."""
    total = counts.sum()
    if not total or not high > low:
        return low, high
    centres, seen = _centres(low, high), counts > 0
    best, least = 1.0, np.inf
    for ratio in RATIOS:
        grid = grid_between(low * ratio, high * ratio, bits)
        steps = np.clip(np.rint(centres / grid.scale), -grid.zero_point, 2**bits - 1 - grid.zero_point)
        level = (steps + grid.zero_point).astype(np.int64)
        # what is clipped counts at the ends, where the rounded values put it; inside, each level's values
        # spread evenly over the bins that it stands for
        within = seen & (centres >= low * ratio) & (centres <= high * ratio)
        spread = np.bincount(level, within, 2**bits)[level]
        level_counts = np.bincount(level, counts * within, 2**bits)[level]
        clipped = total - (counts * within).sum()
        model = np.where(within & (spread > 0), level_counts / np.maximum(spread, 1), 0)
        truth = counts * within
        ends = np.flatnonzero(within)
        if not len(ends):
            continue
        outside = counts * ~within
        truth[ends[0]] += outside[: ends[0]].sum()
        truth[ends[-1]] += outside[ends[-1] :].sum()
        use = truth > 0
        divergence = float((truth[use] * np.log(truth[use] / np.maximum(model[use], 1e-12))).sum() / total)
        # the model holds less than everything where values are clipped: bring both to the same sum
        divergence += float(np.log(max(total - clipped, 1e-12) / total))
        if divergence < least - 1e-12:
            best, least = float(ratio), divergence
    return low * best, high * best


RANGES = {"minmax": _minmax, "percentile": _percentile, "entropy": _entropy}


def _centres(low: float, high: float) -> np.ndarray:
    edges = np.linspace(low, high, BINS + 1)
    return (edges[1:] + edges[:-1]) / 2


def _row(grid: Activation, low: float, high: float, counts: np.ndarray, zeros: int) -> dict[str, Any]:
    first = -grid.zero_point * grid.scale
    last = first + (2**grid.bits - 1) * grid.scale
    centres = _centres(low, high)
    outside = counts[(centres < first - grid.scale / 2) | (centres > last + grid.scale / 2)].sum()
    return {
        "bits": grid.bits,
        "scale": grid.scale,
        "zero_point": grid.zero_point,
        "smallest": low,
        "largest": high,
        "clipped_fraction": float(outside / max(1.0, counts.sum() + zeros)),
    }
