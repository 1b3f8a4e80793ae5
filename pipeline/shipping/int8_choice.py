"""How a network becomes int8: with which calibration, and which layers have to stay in float.

Chosen on validation images, by the accuracy of the very files: first the calibration method, then, while the
drop is larger than allowed, one more layer is left in float, the ones that help most alone first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tersor.errors import BadInput
from tersor.export.forms.int8 import LayerGrid, to_int8
from tersor.export.timing.parity import outputs
from tersor.export.timing.providers import open_session
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Activations
from tersor.pipeline.training.learned_steps import scales_of
from tersor.pipeline.weights.activations import calibrate
from tersor.progress import Tell

Method = Literal["minmax", "percentile", "entropy"]
"""How calibration images give a range: see the stage `activations`."""
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
BATCH = 256
NEARLY = 1e-12
"""A drop of exactly what is allowed must not fail on the last bit of a subtraction."""


@dataclass(frozen=True)
class Judge:
    """Measures files on validation images."""

    images: Images

    def __call__(self, path: Path) -> tuple[float, float]:
        """Accuracy (a fraction) and mean cross-entropy (nats) of an ONNX file."""
        session = open_session(path, "cpu")
        parts = [outputs(session, inputs.numpy()) for inputs, _ in self.images.batches(BATCH)]
        logits, labels = np.concatenate(parts).astype(np.float64), self.images.labels.numpy()
        right = float((logits.argmax(1) == labels).mean())
        shifted = logits - logits.max(1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(logits)), labels]
        return right, float(loss.mean())


def make_int8(
    folded: Path,
    path: Path,
    calibration: np.ndarray,
    judge: Judge,
    *,
    candidates: Mapping[str, Mapping[str, LayerGrid]],
    floor: float | None,
    reduce_range: bool | None = None,
    keep_float: Sequence[str] = (),
    progress: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Write the int8 file with the best calibration whose accuracy is at least `floor`.

    Args:
        folded, path, calibration, reduce_range: as for `to_int8`.
        judge: validation images.
        candidates: calibration method -> the grids it gives; the most accurate is taken, of several the one
            of least loss.
        keep_float: layers that are in float whatever comes out.
        floor: least validation accuracy, a fraction; None: whatever comes out.
        progress: told the fraction done.

    Returns:
        What `to_int8` returns, `method`, `validation_accuracy_fraction`, `tried` (method -> accuracy),
        `helps` (layer -> accuracy with that one in float; empty where none had to be), `holds`.

    `holds` is False when not even all layers but one in float reach the floor.
    """

    def write(name: str, kept: Sequence[str] = ()) -> dict[str, Any]:
        """The file with this calibration, and with these layers in float too."""
        return to_int8(
            folded,
            path,
            calibration,
            grids=candidates[name],
            reduce_range=reduce_range,
            keep_float=[*keep_float, *kept],
        )

    tried = {}
    for done, name in enumerate(candidates):
        progress(0.1 * done, f"int8, {name}")
        write(name)
        tried[name] = judge(path)
    best = max(tried, key=lambda name: (tried[name][0], -tried[name][1]))

    info, accuracy, helps = write(best), tried[best][0], dict[str, float]()
    if floor is not None and accuracy < floor - NEARLY:
        info, accuracy, helps = _with_floats(
            lambda kept: write(best, kept), lambda: judge(path), info["quantized"], floor, progress
        )
    holds = floor is None or accuracy >= floor - NEARLY
    measured = {"method": best, "validation_accuracy_fraction": accuracy, "holds": holds, "helps": helps}
    return info | measured | {"tried": {name: row[0] for name, row in tried.items()}}


def _with_floats(
    write: Callable[[Sequence[str]], dict[str, Any]],
    judge: Callable[[], tuple[float, float]],
    layers: Sequence[str],
    floor: float,
    progress: Tell,
) -> tuple[dict[str, Any], float, dict[str, float]]:
    """Leave one more layer in float until the floor is reached, the most helpful first.

    Returns:
        What was written last, its accuracy, and the accuracy with each layer alone in float.
    """
    found = {}
    for done, layer in enumerate(layers):
        progress(0.3 + 0.5 * done / len(layers), f"int8, {layer} in float")
        write([layer])
        found[layer] = judge()
    order = sorted(layers, key=lambda layer: (-found[layer][0], found[layer][1]))
    info = write([])
    accuracy = judge()[0]
    for count in range(1, len(layers)):
        progress(0.8 + 0.2 * count / len(layers), f"int8, {count} layers in float")
        info = write(order[:count])
        accuracy = judge()[0]
        if accuracy >= floor - NEARLY:
            break
    return info, accuracy, {layer: found[layer][0] for layer in layers}


def candidates_of(
    network: Network, images: np.ndarray, methods: Sequence[Method] = METHODS
) -> dict[str, dict[str, LayerGrid]]:
    """For each calibration method the grids of all layers; those that the network has learned stay.

    Ranges of `minmax` are left to `to_int8`, which takes them of every tensor, not of layers' inputs alone.

    Args:
        network: whose forms and input grids are kept.
        images: preprocessed training images, float32 (N, C, H, W).
        methods: which ones.
    """
    found = {}
    for method in methods:
        calibrated = network
        if method != "minmax":
            settings = Activations(stage="activations", bits=8, method=method)
            calibrated = calibrate(network, settings, images)[0]
            kept = {**calibrated.activations, **network.activations}
            calibrated = replace(calibrated, activations=kept)
        found[str(method)] = grids_of(calibrated)
    return found


def grids_of(network: Network) -> dict[str, LayerGrid]:
    """What the int8 file takes over from a network's `linear` weights of 8 bits or less and its input grids.

    An input grid of fewer bits becomes one of 8 bits over the same range.
    """
    found = {}
    named = {name.removesuffix(".weight") for name in network.forms} | set(network.activations)
    for layer in sorted(named):  # in one order everywhere: it decides the order of tensors in the file
        form, weight = network.form(f"{layer}.weight"), network.tensors[f"{layer}.weight"]
        integers = None
        if form.kind == "linear" and (form.bits or 16) <= 8:
            integers = (weight / scales_of(weight, form)).round().numpy().astype(np.int64)
        scale, zero_point = None, 0
        if (grid := network.activations.get(layer)) is not None:
            steps = 2**grid.bits - 1
            scale, zero_point = grid.scale * steps / 255, round(grid.zero_point * 255 / steps)
        if integers is not None or scale is not None:
            found[layer] = LayerGrid(integers, scale, zero_point)
    return found


def floor_of(baseline: float, own: float, max_drop: float | None) -> float | None:
    """Least validation accuracy of int8: `max_drop` below the baseline's, never above the fp32 file's own.

    Raises:
        BadInput: `max_drop` is not a fraction.
    """
    if max_drop is None:
        return None
    if not 0 <= max_drop <= 1:
        raise BadInput("max_drop is out of range", got=max_drop, wanted="a fraction, 0 to 1")
    return min(baseline - max_drop, own)
