"""What several networks of the zoo share: small blocks and the size after convolutions."""

from torch import nn

from tersor.errors import BadInput


def conv_norm(
    inputs: int, outputs: int, *, kernel: int = 3, padding: int = 0, stride: int = 1, batch_norm: bool = True
) -> nn.Sequential:
    """A convolution with or without BatchNorm after it; with one, the convolution has no bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=not batch_norm)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs)) if batch_norm else nn.Sequential(conv)


def size_after(side: int, kernel: int, *, padding: int = 0, pool: int = 1, where: str) -> int:
    """Side of a square feature map after one convolution of stride 1 and a max-pool, in pixels.

    Raises:
        BadInput: nothing would be left of the image.
    """
    left = (side + 2 * padding - kernel + 1) // pool
    if left < 1:
        raise BadInput(
            "the image is too small for this network",
            got=f"{side} pixels a side before a {kernel}x{kernel} convolution",
            where=where,
            todo="Use a smaller kernel or larger images",
        )
    return left


def square_side(input_shape: tuple[int, int, int], where: str) -> int:
    """The side of a square input, in pixels.

    Raises:
        BadInput: the input is not square.
    """
    _, height, width = input_shape
    if height != width:
        raise BadInput("this network takes square images", got=f"{height}x{width} pixels", where=where)
    return height
