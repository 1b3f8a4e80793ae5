"""How stored pixels become a network's input. numpy only: a shipped model is fed without torch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Preprocessing:
    """input = (pixels / divisor - mean) / std.

    divisor: full scale of the stored pixels (255 for 8-bit images, 16 for digits).
    mean, std: one number per channel, in units of the divided pixels.
    """

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W) -> float32 (N, C, H, W)."""
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        return (pixels.astype(np.float32) / np.float32(self.divisor) - mean) / std
