"""Random changes to batches of training images."""

import torch
from torch import Tensor
from torch.nn import functional

from tersor.pipeline.recipe import Augment


def augment(images: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Shift and mirror a batch (N, C, H, W) at random; each image is drawn for itself."""
    count, _, height, width = images.shape
    device, pad = images.device, settings.shift_pixels
    if pad:
        padded = functional.pad(images, (pad, pad, pad, pad), value=0.0)
        down, right = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(device)
        rows = (down[:, None] + torch.arange(height, device=device))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width, device=device))[:, None, None, :]
        which = torch.arange(count, device=device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=device)[None, :, None, None]
        images = padded[which, channels, rows, columns]
    if settings.flip:
        mirrored = torch.rand(count, generator=generator).lt(0.5).to(device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images
