"""Random changes to batches of training images."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.errors import BadInput
from tersor.pipeline.recipe.recipe import Augment


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


def shrink(images: Tensor, pixels: int) -> Tensor:
    """A batch (N, C, H, W) as (N, C, pixels, pixels), bilinear with antialiasing."""
    return functional.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True)


def check_smaller(module: nn.Module, images: Tensor, pixels: int) -> None:
    """Whether a network takes its images (N, C, H, W) at `pixels` x `pixels` too.

    Raises:
        BadInput: the images are smaller than that, or layers are made for one size only.
    """
    height, width = images.shape[2:]
    where = "the training's `smaller.pixels`"
    if pixels > min(height, width):
        raise BadInput(
            "larger than the images", got=pixels, wanted=f"at most {min(height, width)}", where=where
        )
    try:
        with torch.no_grad():
            module.eval()(shrink(images[:1], pixels))
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            "the network takes no smaller images",
            got=f"{pixels} x {pixels} pixels",
            wanted=f"{height} x {width}, which a Linear layer after flatten is made for, or a size near it",
            where=where,
            todo="Leave `smaller` out, or use a network that ends in a mean over pixels",
        ) from error
