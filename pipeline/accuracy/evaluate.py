"""Measure a network on a split: accuracy, top-5, loss; and the BatchNorm statistics of a set of images."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.data.load import Split


@dataclass(frozen=True)
class Images:
    """A split as tensors: preprocessed float32 (N, C, H, W) and int64 labels (N,)."""

    inputs: Tensor
    labels: Tensor

    @staticmethod
    def of(split: Split, preprocessing: Preprocessing, device: str = "cpu") -> "Images":
        """Preprocess a whole split once."""
        inputs = torch.from_numpy(preprocessing.apply(split.images))
        return Images(inputs.to(device), torch.from_numpy(split.labels).to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Images":
        """The first `count` images, or all where there are fewer."""
        return Images(self.inputs[:count], self.labels[:count])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of `size` images at a time, in their order; the last may be fewer."""
        return zip(self.inputs.split(size), self.labels.split(size))


@dataclass(frozen=True)
class Evaluation:
    """Accuracy, top-5 accuracy (fractions), and mean cross-entropy in nats."""

    accuracy_fraction: float
    top5_accuracy_fraction: float
    loss: float


@dataclass
class Tally:
    """The sums behind an Evaluation, batch by batch; top-5 of fewer than five classes is 1.

    They lie where the outputs do until the result is asked for: reading each batch's would make a GPU wait.
    """

    images: int = 0
    right: Tensor | int = 0
    among_five: Tensor | int = 0
    loss: Tensor | float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: logits (N, classes), labels (N,)."""
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.images += len(labels)
        self.right = self.right + (logits.argmax(1) == labels).sum()
        self.among_five = self.among_five + best.any(1).sum()
        self.loss = self.loss + functional.cross_entropy(logits, labels, reduction="sum").double()

    def result(self) -> Evaluation:
        """The measures over all images counted; at least one."""
        right, among_five, loss = int(self.right), int(self.among_five), float(self.loss)
        return Evaluation(right / self.images, among_five / self.images, loss / self.images)


def evaluate(
    module: nn.Module, images: Images, *, batch_size: int = 512, precision: str = "fp32"
) -> Evaluation:
    """Measure a module in eval mode, on at least one image."""
    module.eval()
    tally = Tally()
    with torch.inference_mode(), autocast(images.inputs.device.type, precision):
        for inputs, labels in images.batches(batch_size):
            tally.add(module(inputs), labels)
    return tally.result()


def reestimate_batch_norm(module: nn.Module, inputs: Tensor, *, batch_size: int = 256) -> nn.Module:
    """Replace running means and variances by their averages over inputs (N, C, H, W), float32.

    Everything but BatchNorm stays in eval mode. Changes `module` in place and returns it in eval mode.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return module.eval()
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None means a plain average over all batches
        norm.train()
    with torch.no_grad():
        for batch in inputs.split(batch_size):
            if len(batch) > 1:
                module(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return module.eval()


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """The context in which `bf16` multiplies in bfloat16 and `fp32` changes nothing."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
