"""The files of a bundle: made from a finished run, then measured as they are."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tersor.errors import BadInput, ClaimBroken
from tersor.export.bundle.manifest import Confusion, Int8
from tersor.export.codec.pack import unpack_bytes
from tersor.export.forms.fp16 import HALF_INPUTS, to_fp16
from tersor.export.forms.lowbit import to_lowbit
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import providers
from tersor.export.timing.benchmark import Timings, benchmark
from tersor.export.timing.parity import bound, max_abs_diff, outputs, predictions, write_parity
from tersor.models.network import Network
from tersor.pipeline.accuracy.confusion import confusion_matrix
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.shipping.int8_choice import (
    CLOCKED_SECONDS,
    METHODS,
    Judge,
    candidates_of,
    floor_of,
    layouts_to_try,
    make_int8,
    sets_to_try,
)
from tersor.pipeline.stages.run_folder import Run
from tersor.pipeline.training.learned_steps import scales_of
from tersor.progress import Tell

PARITY_IMAGES = 32
"""Images whose torch outputs ship in parity.npz: enough for the largest batch that is compared."""

MOST_JUDGED = 5000
"""Validation images on which the ways to int8 are compared."""


@dataclass(frozen=True)
class Shipped:
    """One file of the bundle and what was measured on it."""

    path: Path
    kind: str
    max_abs_diff: float
    most_diff: float
    """The largest difference from torch that a file of its kind may have, in logits."""
    confusion: np.ndarray
    """int64 (classes, classes) on the test split, rows are the true classes."""

    @property
    def accuracy_fraction(self) -> float:
        """Right answers over all answers."""
        return float(np.trace(self.confusion) / self.confusion.sum())


def make_files(
    recipe: Recipe, run: Run, work: Path, data: Data, tell: Tell
) -> tuple[dict[str, str], list[tuple[str, str]], Int8 | None]:
    """Write every file to be shipped into `work`.

    Returns:
        file name -> kind; (file, reason) of what was not made; how int8 came about, where it was asked for.
    """
    shutil.copyfile(run.onnx(0), work / "baseline.onnx")
    shutil.copyfile(run.onnx(), work / "model.onnx")
    shutil.copyfile(run.packed, work / "model.tsr")
    files = {"baseline.onnx": "fp32", "model.onnx": "fp32", "model.tsr": "packed"}
    skipped = []
    final = run.network()
    int8 = _int8(recipe, work, final, data, tell) if recipe.deploy.int8 else None
    if int8 is not None:
        if int8.holds:
            files["model.int8.onnx"] = "int8"
        else:
            (work / "model.int8.onnx").unlink()
            lost = 100 * ((int8.floor or 0.0) - int8.validation_accuracy_fraction)
            count = len(int8.kept_float)
            reason = f"even with {count} layers in float it is {lost:.2f} points of validation accuracy short"
            skipped.append(("model.int8.onnx", reason))
    if recipe.deploy.lowbit:
        tell(0.9, "low-bit")
        if (why_not := _lowbit(recipe, work, final)) is None:
            files["model.lowbit.onnx"] = "lowbit"
        else:
            skipped.append(("model.lowbit.onnx", why_not))
    if set(providers.GPU_TARGETS) & set(recipe.deploy.targets):
        to_fp16(work / "model.onnx", work / "model.fp16.onnx")
        to_fp16(work / "model.onnx", work / HALF_INPUTS, half_inputs=True)
        files |= {"model.fp16.onnx": "fp16", HALF_INPUTS: "fp16"}
    tell(1.0, ", ".join(files))
    return files, skipped, int8


def _lowbit(recipe: Recipe, work: Path, final: Network) -> str | None:
    """Write model.lowbit.onnx; why it was not made, where its standard operators cannot say the network."""
    try:
        made = to_lowbit(
            work / "model.onnx",
            work / "model.lowbit.onnx",
            scales=scales_by_channel(final),
            consumer=recipe.deploy.lowbit_consumer,
        )
    except BadInput as error:  # it costs this form, not the bundle
        return f"{error.what} ({error.got})" if error.got else error.what
    if made.tensors:
        return None
    return "no weight has few enough distinct values: add a sharing or linear stage of 8 bits or less"


def _int8(recipe: Recipe, work: Path, final: Network, data: Data, tell: Tell) -> Int8:
    """Write model.int8.onnx as validation images and the clock ask for: see `make_int8`."""
    settings, folded = recipe.deploy, work / "folded.onnx.tmp"
    export_onnx(final, folded, fold_batch_norm=True, metadata={"licence": recipe.licence})
    judge = Judge(Images.of(data.validation.first(MOST_JUDGED), data.preprocessing), recipe.threads)
    drop = settings.int8_max_drop if settings.int8_max_drop is not None else recipe.gates.max_accuracy_drop
    baseline, own = judge(work / "baseline.onnx")[0], judge(work / "model.onnx")[0]
    floor = floor_of(baseline, own, drop)
    images = data.preprocessing.apply(data.train.images[: settings.calibration_images])
    shown = data.preprocessing.apply(data.validation.images[:PARITY_IMAGES])
    expected = outputs(providers.open_session(work / "model.onnx", "cpu", threads=recipe.threads), shown)

    def within(path: Path) -> bool:
        """Whether the file is within the parity bound of the fp32 one."""
        session = providers.open_session(path, "cpu", threads=recipe.threads)
        return max_abs_diff(session, shown, expected) <= bound("int8", expected)

    tell(0.15, "int8, ranges of activations")
    methods = METHODS if settings.int8_calibration == "auto" else (settings.int8_calibration,)
    info = make_int8(
        folded,
        work / "model.int8.onnx",
        images,
        judge,
        candidates=candidates_of(final, images, methods),
        floor=floor,
        reduce_range=settings.int8_reduce_range,
        keep_float=settings.int8_keep_float,
        operators=sets_to_try(settings.int8_operators),
        layouts=layouts_to_try(settings.int8_layout),
        within=within,
        batch=settings.batches[0],
        seconds=min(CLOCKED_SECONDS, settings.seconds_per_model),
        progress=lambda f, words: tell(0.5 + 0.4 * f, words),
    )
    folded.unlink()
    return Int8.of({"floor": floor, "fp32_validation_accuracy_fraction": own, **info}, "how int8 came about")


def scales_by_channel(network: Network) -> dict[str, np.ndarray]:
    """Weights with a grid for each channel: tensor name -> float32 scales that broadcast against it."""
    found = {}
    for name, form in network.forms.items():
        if form.kind == "linear" and form.axis is not None:
            found[name] = scales_of(network.tensors[name], form).numpy()
    return found


def measure_files(
    recipe: Recipe, files: dict[str, str], run: Run, work: Path, data: Data, tell: Tell
) -> list[Shipped]:
    """Parity with torch on validation images, accuracy on the test split, for each file."""
    images = data.preprocessing.apply(data.validation.images[:PARITY_IMAGES])
    test = data.preprocessing.apply(data.test.images)
    logits = {
        "baseline.onnx": torch_logits(run.baseline(), images),
        "model.onnx": torch_logits(run.network(), images),
    }
    write_parity(work / "parity.npz", images, logits["model.onnx"], logits["baseline.onnx"])
    shipped, measured = [], dict[bytes, Shipped]()
    for done, (name, kind) in enumerate(files.items()):
        tell(done / len(files), name)
        path, expected = work / name, logits.get(name, logits["model.onnx"])
        contents = unpack_bytes(path.read_bytes()) if kind == "packed" else path.read_bytes()
        if (same := measured.get(contents)) is not None:  # what was packed, byte for byte
            shipped.append(replace(same, path=path, kind=kind, most_diff=bound(kind, expected)))
            continue
        session = providers.open_session(contents, "cpu", threads=recipe.threads)
        difference = max_abs_diff(session, images, expected)
        if not np.isfinite(difference):
            raise ClaimBroken(
                "a file gives values that are no numbers, nothing was shipped",
                got=f"NaN or infinite logits for some of {len(images)} validation images",
                where=name,
                todo="Look at the training's losses; an fp16 file overflows where activations exceed 65,504",
            )
        confusion = confusion_matrix(data.test.labels, predictions(session, test), len(data.classes))
        shipped.append(Shipped(path, kind, difference, bound(kind, expected), confusion))
        measured[contents] = shipped[-1]
    tell(1.0, ", ".join(f"{s.path.name} {100 * s.accuracy_fraction:.2f} %" for s in shipped))
    return shipped


def torch_logits(network: Network, images: np.ndarray) -> np.ndarray:
    """What PyTorch computes: float32 (N, classes)."""
    with torch.no_grad():
        return network.module()(torch.from_numpy(images)).numpy()


def confusions(data: Data, shipped: list[Shipped]) -> Confusion:
    """The confusion matrices of the baseline and of the packed model."""
    rows = {s.path.name: tuple(map(tuple, s.confusion.tolist())) for s in shipped}
    return Confusion(data.classes, rows["baseline.onnx"], rows["model.tsr"])


def time_files(
    recipe: Recipe, shipped: list[Shipped], data: Data, missing: list[str], force: bool, tell: Tell
) -> Timings:
    """Time every shipped ONNX file against baseline.onnx on every target that is there.

    Args:
        force: keep what was timed on a busy machine, marked.
    """
    settings, timings = recipe.deploy, Timings()
    images = data.preprocessing.apply(data.validation.images[: max(settings.batches)])
    targets = [t for t in settings.targets if t not in missing]
    for done, target in enumerate(targets):
        models = {s.path.name: s.path for s in shipped if s.kind != "packed" and timed_on(s.kind, target)}
        timings += benchmark(
            models,
            target,
            baseline="baseline.onnx",
            batches=settings.batches,
            threads=settings.threads,
            seconds_per_model=settings.seconds_per_model,
            inputs=images,
            force=force,
            progress=lambda f, d=done, t=target: tell((d + f) / len(targets), t),  # type: ignore[misc]
        )
    best = max(timings.rows, key=lambda row: row.decisive[0], default=None)
    why_none = "not measured: the machine was busy" if timings.refused else "no target here"
    words = f"{best.file}, batch {best.batch}: {best.decisive[1]:.2f}x" if best else why_none
    tell(1.0, words)
    return timings


def timed_on(kind: str, target: str) -> bool:
    """fp16 is for GPUs; int8 QDQ is not: CUDA has slow paths for it, TensorRT takes no uint8 activations."""
    return kind != "fp16" if target == "cpu" else kind != "int8"
