"""Settings of a training, shared by the stages `train` and `tune`."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from tersor.pipeline.recipe.settings import Fraction, Settings, StageSettings, would_not_hold


class Augment(Settings):
    """Random changes to training images, drawn anew for every image and epoch."""

    shift_pixels: int = Field(0, ge=0, description="pad by this many pixels and crop at random")
    flip: bool = Field(False, description="mirror left-right with probability 1/2")


class Smaller(Settings):
    """The first epochs on smaller images: most of what they teach at a fraction of the time."""

    pixels: int = Field(ge=4, description="height and width, at most the images' own")
    share: float = Field(
        0.4, gt=0, lt=1, description="of the epochs, rounded; the later ones see whole images"
    )


class Ramp(Settings):
    """Weights pruned by magnitude while the network trains: more with every step of the ramp."""

    method: Literal["global", "level", "std"] = "global"
    amount: float = Field(0.9, ge=0, description="at the end of the ramp; see the stage `sparsity`")
    start: float = Field(0.0, ge=0, description="at its beginning; the zeros that are there stay anyway")
    shape: Literal["cubic", "linear"] = Field("cubic", description="cubic: AGP, fast at first")
    amounts: list[float] = Field([], description="one for each epoch instead of start, amount and shape")
    epochs: int | None = Field(
        None, ge=1, description="length of the ramp; default: two thirds of the training"
    )
    updates_per_epoch: int = Field(1, ge=1)
    layers: list[str] = Field([], description="patterns; empty: all Conv and Linear layers")
    exclude: list[str] = []
    per_layer: dict[str, float] = Field(
        {}, description="pattern of layers -> their own final amount (level, std)"
    )

    @model_validator(mode="after")
    def _sound(self) -> "Ramp":
        given = [self.amount, self.start, *self.amounts, *self.per_layer.values()]
        if self.method != "std" and not all(0 <= amount <= 1 for amount in given):
            raise ValueError(
                f"amounts are fractions of the weights for method {self.method}: 0 <= amount <= 1"
            )
        if self.method == "global" and self.per_layer:
            raise ValueError("per_layer needs method level or std: global ranks all layers together")
        if any(later < earlier for earlier, later in pairwise(self.amounts)):
            raise ValueError("amounts must not fall: pruned weights stay pruned")
        return self


class Penalty(Settings):
    """Sparse optimisation: what pulls weights of Conv and Linear layers to zero in training."""

    kind: Literal["l1", "proximal", "trimmed_l1", "hard_threshold"]
    weight: float = Field(
        1e-5, ge=0, description="of the sum of magnitudes in the loss; not of hard_threshold"
    )
    keep: float = Field(
        0.1, ge=0, le=1, description="fraction that is free (trimmed_l1) or kept (hard_threshold), per layer"
    )

    @property
    def makes_zeros(self) -> bool:
        """Whether weights become exactly zero, not only small."""
        return self.kind in ("proximal", "hard_threshold")


def _is_default(value: object) -> bool:
    """Left out of what is hashed and saved: results from before the setting keep their names."""
    return value is None or value is False


class Training(StageSettings):
    """How a network is trained; shared by `train` and `tune`."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=2, description="BatchNorm has no variance over a single image")
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(0.05, gt=0, description="peak of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's; Adam keeps its betas")
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    label_smoothing: Fraction = 0.0
    augment: Augment = Augment()
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast")
    channels_last: bool = False
    compiled: bool = Field(
        False,
        exclude_if=_is_default,
        description="by torch.compile, faster after a minute; needs a C++ compiler",
    )
    smaller: Smaller | None = Field(None, exclude_if=_is_default, description="begin with smaller images")
    early_stop_patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better validation loss, keep the best"
    )
    stop_at_train_accuracy: Fraction | None = Field(
        None, description="stop after the first epoch with this accuracy on its training batches"
    )
    ramp: Ramp | None = Field(None, description="prune weights while training")
    penalty: Penalty | None = Field(None, description="sparse optimisation")

    @property
    def makes_zeros(self) -> bool:
        """Whether the training ends with weights that are zero and are to stay so."""
        return self.ramp is not None or (self.penalty is not None and self.penalty.makes_zeros)

    def undone_by(self, later: StageSettings) -> str | None:
        """Channels go before weights become zero."""
        return would_not_hold(self) if self.makes_zeros and later.stage == "structure" else None

    @model_validator(mode="after")
    def _ramp_fits(self) -> "Training":
        if self.ramp is not None and max(self.ramp.epochs or 0, len(self.ramp.amounts)) > self.epochs:
            raise ValueError(
                f"the ramp is longer than the training of {self.epochs} epochs: it would not end"
            )
        return self
