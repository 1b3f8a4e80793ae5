"""Random changes to batches of training images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.errors import BadInput
from tersor.pipeline.recipe.recipe import Augment


@dataclass(frozen=True)
class Draws:
    """What was drawn for images: shifts (2, N), int64, in 0 .. 2 x shift_pixels; mirrored (N,), bool."""

    shifts: Tensor | None
    mirrored: Tensor | None

    @staticmethod
    def of(
        counts: Sequence[int], settings: Augment, generator: torch.Generator, device: str | torch.device
    ) -> "Draws":
        """Draw on the CPU for batches of `counts` images, and bring all to the device at once.

        A copy for each batch would make the CPU wait for the GPU at every step.
        """
        shifts, mirrored = list[Tensor](), list[Tensor]()
        for count in counts:
            if pad := settings.shift_pixels:
                shifts.append(torch.randint(0, 2 * pad + 1, (2, count), generator=generator))
            if settings.flip:
                mirrored.append(torch.rand(count, generator=generator).lt(0.5))
        return Draws(
            torch.cat(shifts, 1).to(device) if shifts else None,
            torch.cat(mirrored).to(device) if mirrored else None,
        )

    def part(self, begin: int, count: int) -> "Draws":
        """Those of `count` images from `begin` on."""
        chosen = slice(begin, begin + count)
        return Draws(
            self.shifts[:, chosen] if self.shifts is not None else None,
            self.mirrored[chosen] if self.mirrored is not None else None,
        )


def augment(images: Tensor, settings: Augment, draws: Draws) -> Tensor:
    """Shift and mirror a batch (N, C, H, W) as was drawn; each image for itself."""
    count, _, height, width = images.shape
    device, pad = images.device, settings.shift_pixels
    if draws.shifts is not None:
        padded = functional.pad(images, (pad, pad, pad, pad), value=0.0)
        down, right = draws.shifts
        rows = (down[:, None] + torch.arange(height, device=device))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width, device=device))[:, None, None, :]
        which = torch.arange(count, device=device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=device)[None, :, None, None]
        images = padded[which, channels, rows, columns]
    if draws.mirrored is not None:
        images = torch.where(draws.mirrored[:, None, None, None], images.flip(3), images)
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
