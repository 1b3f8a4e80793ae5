"""Images and labels that are handed over in Python: arrays, datasets, loaders."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tersor.errors import BadInput

TOLERANCE = 2e-3
"""Of 255: how far a scaled pixel may be from a whole number; float32 and a mean and deviation taken off."""


def pairs_of(source: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a pair of arrays, a dataset of pairs, or a loader of batches.

    Args:
        source: (images, labels), numpy or torch; or what has `len` and gives (image, label) by number; or
            what is iterated over in batches (images, labels), such as a DataLoader. One that shuffles gives
            another order each time, and so other data.
        where: which argument, for messages.

    Returns:
        Images of any numeric dtype, (N, C, H, W), (N, H, W, C) or (N, H, W), and labels (N,).

    Raises:
        BadInput: something else.
    """
    try:
        if isinstance(source, tuple | list) and len(source) == 2 and _is_array(source[0]):
            return _array(source[0]), _array(source[1])
        if hasattr(source, "dataset") or not hasattr(source, "__getitem__"):
            return _joined(source)
        return _stacked(source)
    except BadInput:
        raise
    except Exception as error:  # a user's dataset may fail in any way
        raise BadInput(
            "images and labels cannot be read from this",
            got=f"a {type(source).__name__}: {type(error).__name__}: {error}",
            wanted="(images, labels), a dataset of (image, label), or a loader of such batches",
            where=where,
        ) from error


def pixels_of(
    images: np.ndarray, mean: Sequence[float] | None, std: Sequence[float] | None, where: str
) -> np.ndarray:
    """Pixels as they are stored, uint8 (N, C, H, W).

    Args:
        images: whole numbers 0 to 255, or these / 255 (what ToTensor makes), or these with `mean` taken off
            and divided by `std` (what Normalize makes), if both are given.
        mean, std: per channel, of pixels / 255.
        where: which argument, for messages.

    Raises:
        BadInput: another shape, or values that are none of these.
    """
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or not len(images):
        raise BadInput(
            "these are no images",
            got=f"an array of shape {images.shape}",
            wanted="(N, C, H, W), (N, H, W, C) or (N, H, W), N at least 1",
            where=where,
        )
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    for scaled in _readings(images.astype(np.float64), mean, std):
        whole = np.rint(scaled)
        if whole.min() >= 0 and whole.max() <= 255 and np.abs(scaled - whole).max() <= 255 * TOLERANCE:
            return whole.astype(np.uint8)
    raise BadInput(
        "pixels cannot be told from these values",
        got=f"{images.dtype}, {images.min():.4g} to {images.max():.4g}",
        wanted="whole numbers 0 to 255, or these divided by 255",
        where=where,
        todo="Give the images before Normalize, or say its `mean` and `std`",
    )


def _readings(
    images: np.ndarray, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Iterable[np.ndarray]:
    """What the pixels would be: scaled, as they are, normalised."""
    if not np.isfinite(images).all():
        return
    if images.max() <= 1:
        yield 255 * images
    yield images
    if mean is not None and std is not None and len(mean) == len(std) == images.shape[1]:
        shape = (1, -1, 1, 1)
        yield 255 * (images * np.reshape(std, shape) + np.reshape(mean, shape))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "__array__")


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _stacked(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    items = [dataset[i] for i in range(len(dataset))]
    images = np.stack([_image(image) for image, *_ in items])
    return images, np.array([int(label) for _, label, *_ in items])


def _image(image: Any) -> np.ndarray:
    """(C, H, W) or (H, W) of an array or a PIL picture."""
    pixels = _array(image)
    is_picture = not hasattr(image, "shape") and pixels.ndim == 3
    return pixels.transpose(2, 0, 1) if is_picture else pixels


def _joined(loader: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    batches = [(_array(images), _array(labels)) for images, labels, *_ in loader]
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])
