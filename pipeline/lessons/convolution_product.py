"""A convolution as one matrix product: every patch of the image a column (`unfold`), then matmul."""

from torch import Tensor, nn
from torch.nn import functional

from tersor.errors import BadInput


class GemmConv2d(nn.Module):
    """A Conv2d (of one group, zero padding) computed by unfold and one matrix product."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        if not fits(convolution):
            raise BadInput(
                "this convolution cannot be written as one matrix product",
                got=f"groups {convolution.groups}, padding {convolution.padding}, {convolution.padding_mode}",
                wanted="one group and zeros for padding, given as numbers",
            )
        self.of = convolution

    def columns(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> patches (N, C x kernel x kernel, out height x out width)."""
        of = self.of
        assert not isinstance(of.padding, str)  # `fits` saw to it
        return functional.unfold(images, of.kernel_size, of.dilation, of.padding, of.stride)

    def product(self, columns: Tensor) -> Tensor:
        """Patches -> outputs (N, filters, out height x out width)."""
        product = self.of.weight.flatten(1) @ columns
        return product if self.of.bias is None else product + self.of.bias[:, None]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> outputs (N, filters, out height, out width), float32."""
        of = self.of
        assert not isinstance(of.padding, str)
        sizes = zip(images.shape[2:], of.kernel_size, of.dilation, of.padding, of.stride)
        shape = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in sizes]
        return self.product(self.columns(images)).reshape(len(images), -1, *shape)


def fits(convolution: nn.Conv2d) -> bool:
    """Whether one matrix product does it: one group, zeros for padding, given as numbers."""
    numbers = not isinstance(convolution.padding, str)
    return convolution.groups == 1 and numbers and convolution.padding_mode == "zeros"


def as_products(module: nn.Module) -> int:
    """Put a GemmConv2d in the place of every convolution that fits, in place; returns how many."""
    convolutions = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and fits(m)]
    for name, convolution in convolutions:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, GemmConv2d(convolution))
    return len(convolutions)
