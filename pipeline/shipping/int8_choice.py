"""How a network becomes int8: which operators, with which calibration, which layers have to stay in float.

Chosen on validation images, by the accuracy of the very files, and by their time: the layout of the first
layer by the time of that layer alone; of the sets of operators, the plainest with every calibration and the
others with the one that fitted best, the fastest that is accurate enough; then, while the drop is larger than
allowed, one more layer is left in float, the ones that help most alone first. Times decide only where they
are far apart, so that the same machine chooses the same again; what was chosen stands in the manifest's
recipe, which needs no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from tersor.errors import BadInput
from tersor.export.bundle.manifest import Int8
from tersor.export.forms import graph as graphs
from tersor.export.forms.int8 import calibrated, to_int8
from tersor.export.forms.int8_grids import LayerGrid
from tersor.export.forms.int8_input import LAYOUTS, InputLayout, first_layer_alone, with_layout
from tersor.export.forms.int8_operators import SETS, OperatorSet
from tersor.export.timing.parity import outputs
from tersor.export.timing.processor_time import processor_ms
from tersor.export.timing.providers import open_session
from tersor.models.layers import weight_layers
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Activations, Recipe
from tersor.pipeline.training.learned_steps import scales_of
from tersor.pipeline.weights.activations import calibrate, observe
from tersor.progress import Tell

T = TypeVar("T", bound=str)
Method = Literal["minmax", "percentile", "entropy"]
"""How calibration images give a range: see the stage `activations`."""
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
BATCH = 256
SAME_SPEED = 0.03
"""Files this close in time are called equally fast: two sessions of one file differ by as much."""
CLEARLY_FASTER = 0.1
"""Of its own time, before a first layer is laid out anew."""
CLOCKED_SECONDS = 0.3
"""Of processor time, at most, for each file that is compared."""
NEARLY = 1e-12
"""A drop of exactly what is allowed must not fail on the last bit of a subtraction."""


@dataclass(frozen=True)
class Judge:
    """Measures files on validation images, on so many threads."""

    images: Images
    threads: int = 1

    def __call__(self, path: Path) -> tuple[float, float]:
        """Accuracy (a fraction) and mean cross-entropy (nats) of an ONNX file."""
        session = open_session(path, "cpu", threads=self.threads)
        parts = [outputs(session, inputs.numpy()) for inputs, _ in self.images.batches(BATCH)]
        logits, labels = np.concatenate(parts).astype(np.float64), self.images.labels.numpy()
        right = float((logits.argmax(1) == labels).mean())
        shifted = logits - logits.max(1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(logits)), labels]
        return right, float(loss.mean())


@dataclass(frozen=True)
class Tried:
    """One way to int8 and what its file showed.

    accuracy: on validation images, a fraction; loss: mean cross-entropy, nats; within: the parity bound.
    integers: nodes that compute in integers.
    """

    operators: OperatorSet
    method: str
    accuracy: float
    loss: float
    within: bool
    integers: int


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
    operators: Sequence[OperatorSet] = ("weighted",),
    layouts: Sequence[InputLayout] = ("plain",),
    within: Callable[[Path], bool] = lambda _: True,
    batch: int = 1,
    seconds: float = CLOCKED_SECONDS,
    progress: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Write the int8 file of the fastest set of operators whose accuracy is at least `floor`.

    Args:
        folded, path, calibration, reduce_range: as for `to_int8`.
        judge: validation images.
        candidates: calibration method -> the grids it gives; the most accurate is taken, of several the one
            of least loss.
        keep_float: layers that are in float whatever comes out.
        floor: least validation accuracy, a fraction; None: whatever comes out.
        operators: sets of operators to choose from, see `choose`.
        layouts: of the first layer, to choose from, see `choose_layout`.
        within: whether a file is within the parity bound.
        batch: images in a run that is timed.
        seconds: of processor time, for each file that is compared.
        progress: told the fraction done.

    Returns:
        What `to_int8` returns, `method`, `validation_accuracy_fraction`, `tried` (method -> accuracy, with
        the set that was chosen), `sets` (set -> `validation_accuracy_fraction`, `ms` where it was timed),
        `layouts` (layout -> ms of the first layer alone), `helps` (layer -> accuracy with that one in float;
        empty where none had to be), `holds`.

    `holds` is False when not even all layers but one in float reach the floor.
    """
    measured = calibrated(folded, calibration)
    layout: InputLayout = layouts[0]

    def write(operators: OperatorSet, name: str, kept: Sequence[str] = ()) -> dict[str, Any]:
        """The file with this calibration, and with these layers in float too."""
        return to_int8(
            measured,
            path,
            grids=candidates[name],
            reduce_range=reduce_range,
            keep_float=[*keep_float, *kept],
            operators=operators,
            layout=layout,
        )

    clock = _Clock(calibration[np.arange(batch) % len(calibration)], seconds)
    layout_ms = dict[InputLayout, float]()
    if len(layouts) > 1:  # the plain one first
        write(operators[0], next(iter(candidates)))
        layout_ms = _first_layers(path, layouts, clock)
        layout = choose_layout(layout_ms) if layout_ms else "plain"
    tried, files = _try_sets(
        operators, list(candidates), write, path, lambda: (*judge(path), within(path)), floor, progress
    )
    found = [best_method([t for t in tried if t.operators == o], floor) for o in _sets_of(tried)]
    fit = [t.operators for t in found if _fits(t, floor)]
    ms = clock({name: files[name] for name in fit}) if len(fit) > 1 else {}
    best = choose(found, ms, floor)

    info, accuracy, helps = write(best.operators, best.method), best.accuracy, dict[str, float]()
    if floor is not None and accuracy < floor - NEARLY:
        again = partial(write, best.operators, best.method)
        layers = info["quantized"]
        info, accuracy, helps = _with_floats(again, lambda: judge(path), layers, floor, progress)
    holds = floor is None or accuracy >= floor - NEARLY
    told = {"validation_accuracy_fraction": accuracy, "holds": holds, "helps": helps, "layouts": layout_ms}
    return info | _compared(best, tried, found, ms) | told


def _compared(
    best: Tried, tried: Sequence[Tried], found: Sequence[Tried], ms: Mapping[OperatorSet, float]
) -> dict[str, Any]:
    """What was tried, for the manifest: see `make_int8`."""
    sets = {t.operators: {"validation_accuracy_fraction": t.accuracy} for t in found}
    for name, taken in ms.items():
        sets[name]["ms"] = taken
    methods = {t.method: t.accuracy for t in tried if t.operators == best.operators}
    return {"method": best.method, "tried": methods, "sets": sets}


def _try_sets(
    operators: Sequence[OperatorSet],
    methods: list[str],
    write: Callable[[OperatorSet, str], dict[str, Any]],
    path: Path,
    judge: Callable[[], tuple[float, float, bool]],
    floor: float | None,
    progress: Tell,
) -> tuple[list[Tried], dict[OperatorSet, bytes]]:
    """Write and judge each set of operators with the calibrations that may do.

    Args:
        write: the file of a set and a calibration, to `path`.
        judge: accuracy, loss, and whether within the parity bound, of what was written last.

    Returns:
        What was tried, and a file of each set to be timed.
    """
    tried, files, learned = list[Tried](), dict[OperatorSet, bytes](), 0
    for number, chosen in enumerate(operators):
        names = methods_for(tried, methods, floor)
        for at, name in enumerate(names):
            progress(0.3 * (number + at / len(names)) / len(operators), f"int8, {chosen}, {name}")
            info = write(chosen, name)
            if len(operators) > 1:
                learned = max(learned, len(info["kept_integers"]))
                same = chosen not in files and path.read_bytes() in files.values()
                if not info["quantized"] or same or len(info["kept_integers"]) < learned:
                    break  # nothing, nothing else than a plainer set, or learned integers given up
                files.setdefault(chosen, path.read_bytes())
            count = sum(info.get("integer_operators", {}).values())
            tried.append(Tried(chosen, name, *judge(), count))
    return tried, files


def methods_for(tried: Sequence[Tried], methods: list[str], floor: float | None) -> list[str]:
    """For the next set of operators: the calibration that fits best so far, or all where none fits."""
    fit = [t for t in tried if _fits(t, floor)]
    return [best_method(fit, floor).method] if fit else methods


def _sets_of(tried: Sequence[Tried]) -> list[OperatorSet]:
    return list(dict.fromkeys(t.operators for t in tried))


def _fits(tried: Tried, floor: float | None) -> bool:
    return tried.within and (floor is None or tried.accuracy >= floor - NEARLY)


def best_method(tried: Sequence[Tried], floor: float | None) -> Tried:
    """Of one set of operators the most accurate calibration that fits, of several the one of least loss."""
    return max(tried, key=lambda t: (_fits(t, floor), t.within, t.accuracy, -t.loss))


def choose(found: Sequence[Tried], ms: Mapping[OperatorSet, float], floor: float | None) -> Tried:
    """The fastest of those within floor and parity; of those equally fast the most accurate, the plainest.

    Args:
        found: one for each set of operators.
        ms: time of a run, of those that fit; may be empty where one fits or none.
        floor: least accuracy.

    Returns:
        Where none fits the most accurate, those within the parity bound first.
    """
    fit = [t for t in found if _fits(t, floor)]
    fastest = min((ms[t.operators] for t in fit if t.operators in ms), default=0.0)
    near = [t for t in fit if ms.get(t.operators, 0.0) <= fastest * (1 + SAME_SPEED)]
    return max(near or found, key=lambda t: (t.within, t.accuracy, -t.integers, -t.loss))


def choose_layout(ms: Mapping[InputLayout, float]) -> InputLayout:
    """The plainest of those about as fast as the fastest; `ms` is of the first layer alone."""
    fastest = min(ms.values())
    return next(name for name in LAYOUTS if name in ms and fastest >= ms[name] * (1 - CLEARLY_FASTER))


@dataclass(frozen=True)
class _Clock:
    """Processor time of files on one thread: what others do on the machine hardly moves it."""

    images: np.ndarray
    seconds: float

    def __call__(self, files: Mapping[T, bytes]) -> dict[T, float]:
        """Milliseconds of a run, all files in turn."""
        calls = {}
        for name, data in files.items():
            session = open_session(data, "cpu")
            feed = {session.get_inputs()[0].name: np.ascontiguousarray(self.images, np.float32)}
            calls[str(name)] = partial(session.run, None, feed)
        taken = processor_ms(calls, self.seconds)
        return {name: taken[str(name)] for name in files}


def _first_layers(path: Path, layouts: Sequence[InputLayout], clock: _Clock) -> dict[InputLayout, float]:
    """Layout -> milliseconds of the first layer alone, of those that fit it; empty where only one does."""
    plain = graphs.read_model(path)
    files = dict[InputLayout, bytes]()
    for layout in layouts:
        laid_out = with_layout(plain, layout)
        cut = first_layer_alone(laid_out) if laid_out is not None else None
        if cut is not None:
            files[layout] = cut.SerializeToString(deterministic=True)
    return clock(files) if len(files) > 1 else {}


def settled(recipe: Recipe, info: Int8 | None) -> Recipe:
    """The recipe with what was chosen in place of `auto`: it makes the same int8 file without a clock."""
    if info is None or not info.holds:
        return recipe
    hurt = [layer for layer in info.kept_float if layer in info.helps]
    chosen = {
        "int8_operators": info.operators,
        "int8_layout": info.layout,
        "int8_calibration": info.method,
        "int8_reduce_range": info.reduce_range,
        "int8_keep_float": [*recipe.deploy.int8_keep_float, *hurt],
    }
    return recipe.model_copy(update={"deploy": recipe.deploy.model_copy(update=chosen)})


def sets_to_try(told: str) -> tuple[OperatorSet, ...]:
    """Of the recipe's `int8_operators`."""
    return tuple(name for name in SETS if told in ("auto", name))


def layouts_to_try(told: str) -> tuple[InputLayout, ...]:
    """Of the recipe's `int8_layout`."""
    return tuple(name for name in LAYOUTS if told in ("auto", name))


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
    found, seen = {}, None
    for method in methods:
        calibrated = network
        if method != "minmax":
            settings = Activations(stage="activations", bits=8, method=method)
            seen = seen or observe(network, weight_layers(network), images, "calibration of int8")
            calibrated = calibrate(network, settings, images, seen=seen)[0]
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
