"""What images are normalised with: the mean and standard deviation of training pixels, or those asked for."""

from collections.abc import Sequence

import numpy as np

from tersor.errors import BadInput
from tersor.models.preprocessing import Preprocessing


def statistics(images: np.ndarray, divisor: float) -> Preprocessing:
    """Mean and standard deviation of the divided pixels, per channel, rounded to 4 decimals.

    Args:
        images: uint8 (N, C, H, W).
        divisor: what pixels are divided by first.

    A channel of one single value gets a standard deviation of 1, since nothing can be divided by 0.
    """
    values = np.arange(256) / divisor
    means, stds = [], []
    for channel in range(images.shape[1]):
        # Counting values is exact and takes no float copy of a whole data set.
        counts = np.bincount(images[:, channel].reshape(-1), minlength=256)
        mean = float(np.average(values, weights=counts))
        std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
        means.append(round(mean, 4))
        stds.append(round(std, 4) or 1.0)
    return Preprocessing(divisor, tuple(means), tuple(stds))


def preprocessing_of(
    images: np.ndarray,
    divisor: float,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    where: object,
) -> Preprocessing:
    """The mean and standard deviation that are given, or else those of the images.

    Args:
        images: uint8 (N, C, H, W).
        divisor: what pixels are divided by first.
        mean, std: per channel, of divided pixels.
        where: for the message.

    Raises:
        BadInput: one without the other, or not one number a channel.
    """
    if mean is None and std is None:
        return statistics(images, divisor)
    channels = images.shape[1]
    if mean is None or std is None or not len(mean) == len(std) == channels:
        raise BadInput(
            "data.mean and data.std do not fit the images",
            got=f"mean {mean}, std {std}",
            wanted=f"both, with {channels} number(s) each, one a channel",
            where=where,
        )
    return Preprocessing(divisor, tuple(map(float, mean)), tuple(map(float, std)))
