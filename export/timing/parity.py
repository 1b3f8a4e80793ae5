"""Does a file give what the network gave? Differences, predictions, the few inputs shipped to re-check."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor.errors import BadInput
from tersor.export.forms.graph import write_bytes
from tersor.export.timing.feeds import element_type

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BOUNDS = {"fp32": 1e-4, "packed": 1e-4, "lowbit": 1e-4, "fp16": 1e-2, "int8": 0.25}
"""kind -> largest difference allowed between a file's logits and the torch network's.

| kind | in units of | why |
|---|---|---|
| fp32, packed, lowbit | logits | sums taken in another order; measured up to 3e-5 on ResNet-20 |
| fp16 | the logits' range | rounding of 5e-4 a layer, adding up; measured 2e-4 to 9e-4 on the zoo |
| int8 | the logits' range | 256 steps an activation and a weight, layer upon layer; measured 0.004 to 0.12 |

The fp16 and int8 bounds catch a broken file (a wrong scale, swapped layers: differences of a whole
range); whether the rounding does harm is judged by accuracy on the test split, not here.
"""

ORDINARY_RANGE = 30.0
"""Of a trained classifier's logits. Beyond it the bounds in logits grow in proportion, as rounding does."""
RELATIVE = frozenset({"fp16", "int8"})
"""Kinds whose bound is a fraction of the range (largest minus smallest) of the expected logits."""


def bound(kind: str, expected: np.ndarray) -> float:
    """The largest difference allowed for a file of this kind, in logits.

    Args:
        kind: a key of `BOUNDS`.
        expected: the torch network's logits, float32 (N, classes).

    Raises:
        BadInput: unknown kind.
    """
    if kind not in BOUNDS:
        raise BadInput("no parity bound for this kind of file", got=kind, wanted=", ".join(BOUNDS))
    span = float(np.ptp(expected))
    return BOUNDS[kind] * (span if kind in RELATIVE else max(1.0, span / ORDINARY_RANGE))


def outputs(session: "InferenceSession", inputs: np.ndarray) -> np.ndarray:
    """Logits float32 (N, classes) of preprocessed images float32 (N, C, H, W), in one run.

    A file that takes halves gets them, and what it gives is compared in float32.

    Raises:
        BadInput: the images do not fit the model.
    """
    entry = session.get_inputs()[0]
    kind = element_type(entry)
    if not issubclass(kind, np.floating):
        kind = np.float32  # images are floats: what takes others refuses them below
    try:
        first = session.run(None, {entry.name: np.ascontiguousarray(inputs, kind)})[0]
        return first.astype(np.float32) if first.dtype == np.float16 else first
    except Exception as error:  # ONNX Runtime has no common base class below Exception
        raise BadInput(
            "the inputs do not fit the model",
            got=f"shape {inputs.shape}",
            wanted=f"{entry.type} of shape {entry.shape}",
        ) from error


def max_abs_diff(
    session: "InferenceSession",
    inputs: np.ndarray,
    expected: np.ndarray,
    *,
    batches: Sequence[int] = (1, 7, 32),
) -> float:
    """The largest absolute difference from `expected`, over all inputs at every batch size.

    Args:
        session: the model.
        inputs: preprocessed images, float32 (N, C, H, W), N at least 1.
        expected: logits, float32 (N, classes).
        batches: batch sizes; the last batch is filled up with the first inputs, so that every run
            has its full size however few the inputs are.

    Returns:
        The difference in logits; infinite when the model gives NaN.

    Raises:
        BadInput: no inputs, or shapes that do not fit.
    """
    if len(inputs) == 0 or len(inputs) != len(expected):
        raise BadInput(
            "parity needs as many inputs as expected outputs, at least one",
            got=f"{len(inputs)} inputs, {len(expected)} outputs",
        )
    worst = 0.0
    for batch in batches:
        order = np.arange(-(-len(inputs) // batch) * batch) % len(inputs)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            got = outputs(session, inputs[chosen])
            if got.shape != expected[chosen].shape:
                raise BadInput(
                    "the model's outputs have another shape than the expected ones",
                    got=got.shape,
                    wanted=expected[chosen].shape,
                )
            difference = float(np.max(np.abs(got.astype(np.float64) - expected[chosen])))
            worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst


def predictions(session: "InferenceSession", inputs: np.ndarray, batch: int = 256) -> np.ndarray:
    """The class of each preprocessed image: int64 (N,) from float32 (N, C, H, W)."""
    parts = [outputs(session, inputs[i : i + batch]).argmax(1) for i in range(0, len(inputs), batch)]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def accuracy(session: "InferenceSession", inputs: np.ndarray, labels: np.ndarray, batch: int = 256) -> float:
    """The fraction (0 to 1) of images whose largest logit is at their label.

    Args:
        session: the model.
        inputs: preprocessed images, float32 (N, C, H, W), N at least 1.
        labels: class numbers, int64 (N,).
        batch: images per run; the result does not depend on it.

    Raises:
        BadInput: no images, or another number of labels.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise BadInput(
            "accuracy needs as many labels as images, at least one",
            got=f"{len(inputs)} images, {len(labels)} labels",
        )
    return float(np.mean(predictions(session, inputs, batch) == np.asarray(labels)))


def write_parity(
    path: Path, inputs: np.ndarray, logits: np.ndarray, baseline_logits: np.ndarray | None = None
) -> None:
    """Write a few inputs and what torch gave for them as .npz: same arrays, same bytes.

    Args:
        path: the file to write.
        inputs: preprocessed images, float32 (N, C, H, W).
        logits: the compressed network's logits, float32 (N, classes).
        baseline_logits: the uncompressed network's, so that `baseline.onnx` can be re-checked too.

    Raises:
        Unavailable: the file cannot be written.
    """
    arrays = {"inputs": inputs, "logits": logits}
    arrays |= {} if baseline_logits is None else {"baseline_logits": baseline_logits}
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, the format's zero
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    write_bytes(memory.getvalue(), path)


def read_parity(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The inputs (N, C, H, W) and logits (N, classes) that `write_parity` wrote, float32.

    Raises:
        BadInput: the file is missing or damaged.
    """
    arrays = _arrays(path)
    return arrays["inputs"], arrays["logits"]


def read_baseline_logits(path: Path) -> np.ndarray | None:
    """The uncompressed network's logits (N, classes), float32; None where they were not written.

    Raises:
        BadInput: the file is missing or damaged.
    """
    return _arrays(path).get("baseline_logits")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name], np.float32) for name in archive.files}
        inputs, logits = arrays["inputs"], arrays["logits"]
    except FileNotFoundError as error:
        raise BadInput("the parity file is missing", where=path) from error
    except Exception as error:  # zipfile, zlib and numpy each raise their own classes
        raise BadInput("the parity file is damaged", got=str(error), where=path) from error
    rows = {len(array) for array in arrays.values()}
    if inputs.ndim != 4 or logits.ndim != 2 or rows != {len(inputs)} or rows == {0}:
        raise BadInput(
            "the parity file is damaged",
            got=f"inputs {inputs.shape}, logits {logits.shape}",
            wanted="(N, C, H, W) and (N, classes)",
            where=path,
        )
    return arrays
