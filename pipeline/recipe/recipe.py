"""The recipe: one YAML file, one typed model per stage's settings."""

import functools
import itertools
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tersor.pipeline.recipe.own_stage import Own, is_own
from tersor.pipeline.recipe.settings import Fraction, Name, Settings, StageSettings, would_not_hold
from tersor.pipeline.recipe.structure import Schedule, Search, Structure
from tersor.pipeline.recipe.training import Augment, Penalty, Ramp, Training

__all__ = [
    "Augment",
    "Name",
    "Own",
    "Penalty",
    "Ramp",
    "Schedule",
    "Search",
    "Settings",
    "Structure",
    "Training",
]


class Train(Training):
    """Train from fresh weights."""

    stage: Literal["train"]
    name: Name = "train"
    begins = True


class Tune(Training):
    """Fine-tune; zeros stay zero, shared values stay shared, b-bit values stay on their grid."""

    stage: Literal["tune"]
    name: Name = "tune"
    optimizer: Literal["sgd", "adam"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "cosine"
    distill: Fraction = Field(0.0, description="share of the loss that compares with the baseline's outputs")
    learn_scales: bool = Field(
        False, description="train the scales of b-bit weights and activations too (LSQ), not only the weights"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="in place of the layers' own; a pruned network needs less"
    )


class Load(StageSettings):
    """Take weights that were trained elsewhere."""

    stage: Literal["load"]
    name: Name = "load"
    weights: Path = Field(description=".safetensors, or a state dict saved by torch.save (.pt, .pth)")
    begins = True


class PerLayer(StageSettings):
    """Settings of stages whose amount may be chosen for each layer by its sensitivity."""

    sensitivity: Literal["auto"] | None = Field(
        None, description="auto: each layer gets the hardest level that alone costs at most max_drop"
    )
    max_drop: Fraction = Field(0.01, description="of validation accuracy, for what is chosen automatically")

    def undone_by(self, later: StageSettings) -> str | None:
        """Channels go before weights are pruned, shared or rounded."""
        return would_not_hold(self) if later.stage == "structure" else None


class Sparsity(PerLayer):
    """Set small weights of Conv and Linear layers to zero.

    method `std`: |w| < amount x standard deviation of the layer. `level`: the fraction `amount` of each
    layer. `global`: the fraction `amount` of all layers together, by magnitude. `n_of_m`: `keep` of every
    `of` weights along the inputs stay.
    """

    stage: Literal["sparsity"]
    name: Name = "sparsity"
    method: Literal["std", "level", "global", "n_of_m"] = "std"
    amount: float = Field(1.0, ge=0)
    keep: int = Field(2, ge=1, description="of n_of_m: weights that stay in each group of `of`")
    of: int = Field(4, ge=2)
    layers: list[str] = Field([], description="patterns; empty: all Conv and Linear layers")
    exclude: list[str] = []
    per_layer: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="pattern of layers -> their own amount (std, level, and what sensitivity leaves)"
    )

    @model_validator(mode="after")
    def _fraction(self) -> "Sparsity":
        if self.method == "n_of_m" and self.keep >= self.of:
            raise ValueError(f"keep ({self.keep}) must be below of ({self.of})")
        if self.method in ("level", "global") and not 0 <= self.amount <= 1:
            raise ValueError(
                f"amount is a fraction of the weights for method {self.method}: 0 <= amount <= 1"
            )
        if self.per_layer and self.method in ("global", "n_of_m") and self.sensitivity is None:
            raise ValueError(f"per_layer needs method std or level: {self.method} has no amount of a layer")
        fractions = self.method == "level" or self.sensitivity is not None
        if fractions and any(amount > 1 for amount in self.per_layer.values()):
            raise ValueError("per_layer holds fractions of the weights here: 0 <= amount <= 1")
        return self


class Sharing(PerLayer):
    """Replace the weights of each layer by few shared values (k-means); zeros stay outside."""

    stage: Literal["sharing"]
    name: Name = "sharing"
    bits: int = Field(4, ge=1, le=8)
    values: int | None = Field(None, ge=1, le=256, description="shared values a layer; default 2^bits")
    rate: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0,
        description="price of a coded bit, in mean squared weights; 0: k-means; auto: what max_drop allows",
    )
    pays: Literal["layer", "network"] = Field(
        "layer", description="whose error a bit pays for; network: bits go where the loss feels errors most"
    )
    layers: list[str] = []
    exclude: list[str] = []
    per_layer: dict[str, Annotated[int, Field(ge=1, le=8)]] = Field(
        {}, description="pattern of layers -> their own bits"
    )

    @model_validator(mode="after")
    def _count(self) -> "Sharing":
        if self.values is not None and self.values > 2**self.bits:
            raise ValueError(f"values ({self.values}) do not fit {self.bits} bits")
        if self.pays == "network" and self.rate == 0:
            raise ValueError("pays: network needs a rate: without a price for bits there is nothing to pay")
        return self


class Linear(PerLayer):
    """Round the weights to a uniform b-bit grid: value = scale x integer. One bit is the sign."""

    stage: Literal["linear"]
    name: Name = "linear"
    bits: int = Field(8, ge=1, le=16, description="with sensitivity or budget: at most so many")
    symmetric: bool = Field(True, description="as many steps below zero as above; else from min to max")
    full_range: bool = Field(
        False, description="symmetric: one step more below zero; 2 bits are else ternary"
    )
    per_channel: bool = Field(True, description="one scale for each output channel, else one for the layer")
    scale: Literal["max", "percentile", "mse"] = Field(
        "max", description="what decides the scale: the largest weight, a percentile of them, the least error"
    )
    percentile: float = Field(99.9, gt=50, le=100, description="of scale: percentile; larger are clipped")
    budget: float | None = Field(
        None, gt=0, le=16, description="bits a weight on average, shared out among the layers by sensitivity"
    )
    layers: list[str] = []
    exclude: list[str] = []
    per_layer: dict[str, Annotated[int, Field(ge=1, le=16)]] = Field(
        {}, description="pattern of layers -> their own bits"
    )

    @model_validator(mode="after")
    def _one_grid(self) -> "Linear":
        if self.full_range and not self.symmetric:
            raise ValueError("full_range is for symmetric grids: an asymmetric one has all 2^bits values")
        if self.budget is not None and self.sensitivity is not None:
            raise ValueError("budget and sensitivity both choose the bits of each layer: give one of them")
        return self


class Activations(StageSettings):
    """Round the inputs of layers to a b-bit grid in all that follows: a whole network at W b / A b.

    The ONNX file stays in float; simulated accuracy is what stages report. The int8 file takes the ranges.
    """

    stage: Literal["activations"]
    name: Name = "activations"
    bits: int = Field(8, ge=1, le=16)
    method: Literal["minmax", "percentile", "entropy"] = Field(
        "entropy", description="what decides the range: all values, a percentile, least Kullback-Leibler"
    )
    percentile: float = Field(99.99, gt=50, le=100, description="of method percentile, at either end")
    images: int = Field(512, ge=1, description="of the training split, to calibrate on")
    layers: list[str] = []
    exclude: list[str] = []
    per_layer: dict[str, Annotated[int, Field(ge=1, le=16)]] = Field(
        {}, description="pattern of layers -> their own bits"
    )

    def undone_by(self, later: StageSettings) -> str | None:
        """Inputs have another range without some of the channels."""
        if later.stage != "structure":
            return None
        return "`activations` comes after the last `structure`: it would have to calibrate again"


class Vectors(StageSettings):
    """Fold each BatchNorm's statistics into its scale and shift, and round these and all biases."""

    stage: Literal["vectors"]
    name: Name = "vectors"
    bits: int = Field(8, ge=2, le=16, description="of a value, sign included; the step is a power of two")
    layers: list[str] = Field([], description="patterns of BatchNorm, Conv and Linear layers; empty: all")
    exclude: list[str] = []

    def undone_by(self, later: StageSettings) -> str | None:
        """BatchNorm's statistics are gone."""
        if later.stage not in ("tune", "structure"):
            return None
        return "`vectors` comes after the last `tune` and `structure`: they would undo it"


def _kinds(base: type[StageSettings] = StageSettings) -> dict[str, type[StageSettings]]:
    """The kinds of stages below a class: those that declare their literal."""
    kinds: dict[str, type[StageSettings]] = {}
    for model in base.__subclasses__():
        stage = model.model_fields.get("stage")
        if stage is not None and get_origin(stage.annotation) is Literal:
            kinds[get_args(stage.annotation)[0]] = model
        kinds |= _kinds(model)
    return kinds


KINDS = dict(sorted(_kinds().items(), key=lambda kind: not kind[1].begins))
"""Kind of stage -> its settings; a new subclass of StageSettings in this package is one more."""

OWN = "path/to/file.py:function"


def _kind_of(raw: Any) -> str | None:
    """What tells pydantic which settings a stage has."""
    stage = raw.get("stage") if isinstance(raw, dict) else getattr(raw, "stage", None)
    return OWN if isinstance(stage, str) and is_own(stage) else None if stage is None else str(stage)


if TYPE_CHECKING:
    AnyStage = StageSettings
else:
    _TAGGED = [Annotated[model, Tag(kind)] for kind, model in (KINDS | {OWN: Own}).items()]
    AnyStage = Annotated[functools.reduce(operator.or_, _TAGGED), Discriminator(_kind_of)]


class DataSettings(Settings):
    """Where the images come from. `path` is what DATA= or --data sets."""

    kind: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder", "arrays"] = Field(
        "digits", description="arrays: handed over in Python"
    )
    path: Path | None = None
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.25, gt=0, lt=1, description="for sets without a test split of their own")
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    channels: Literal[1, 3] | None = None
    resize: bool = False
    limit: int | None = Field(None, ge=2, description="at most this many training images")
    mean: list[float] | None = Field(
        None, description="per channel, of pixels / 255 (digits: / 16); default: of the training pixels"
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="with mean: what weights that are loaded were trained with"
    )


class Deploy(Settings):
    """What is shipped and where it is timed."""

    targets: list[Literal["cpu", "cuda", "tensorrt"]] = ["cpu"]
    batches: list[Annotated[int, Field(ge=1)]] = Field(
        [],
        description="images a run; none told: 1, and the most of 64, 32, 16, 8, 4, 2 whose multiply-adds are "
        "under 16 G: about a quarter second on one thread",
    )
    threads: list[Annotated[int, Field(ge=1)]] = [1]
    coder: Literal["huffman", "static", "adaptive", "auto"] = Field(
        "huffman",
        description="of model.tsr; static: smaller where zeros abound; adaptive: smaller, slower to decode; "
        "auto: the smallest a tensor",
    )
    int8: bool = True
    int8_reduce_range: bool | None = Field(None, description="7-bit weights; default: if the CPU has no VNNI")
    int8_calibration: Literal["auto", "minmax", "percentile", "entropy"] = Field(
        "auto", description="how activations get their ranges; auto: the best on validation images"
    )
    int8_operators: Literal["auto", "weighted", "most", "all"] = Field(
        "auto",
        description="in integers; weighted: layers with weights; most: all but the first and last layer; "
        "auto: the fastest on this CPU that keeps the accuracy",
    )
    int8_layout: Literal["auto", "plain", "padded", "blocks"] = Field(
        "auto",
        description="of the first layer; padded: channels up to a multiple of 4; blocks: pixels two by two; "
        "auto: plain unless another is clearly faster on this CPU",
    )
    int8_max_drop: Fraction | None = Field(
        None,
        description="of validation accuracy; layers stay in float until it holds; default: the gate's",
    )
    int8_keep_float: list[str] = Field(
        [], description="layers left in float; at batch 1 a 3x3 first layer of 3 channels is often faster so"
    )
    lowbit: bool = True
    lowbit_consumer: str = Field(
        "1.17", pattern=r"^\d+(\.\d+)*$", description="oldest ONNX Runtime that has to load model.lowbit.onnx"
    )
    seconds_per_model: float = Field(
        1.0,
        gt=0,
        description="least time spent on one file at one batch size; about 4 times that where it varies",
    )
    calibration_images: int = Field(
        0,
        ge=0,
        description="of int8; 0: 256, or as many as take 128 G multiply-adds, at least 64: large images have "
        "values enough",
    )


class Gates(Settings):
    """Claims that must hold, or deploy fails with exit code 3."""

    max_accuracy_drop: Fraction | None = Field(None, description="of any shipped file against the baseline")
    max_bytes: int | None = Field(None, ge=1, description="of model.tsr")
    max_latency_ms: float | None = Field(None, gt=0, description="p50 of the fastest file, first batch size")
    max_abs_diff: float | None = Field(None, gt=0, description="torch against ONNX Runtime, fp32 files")


class Recipe(Settings):
    """Everything that decides the result. Same recipe, seed, threads and machine type: same bytes."""

    name: Name
    seed: int = Field(0, ge=0)
    threads: int = Field(2, ge=1, description="threads of training; part of what decides the bytes")
    device: Literal["cpu", "cuda"] = "cpu"
    model: str = Field(description="a network of the zoo, or path/to/file.py:factory")
    arguments: dict[str, Any] = {}
    licence: str = Field("not stated", description="licence of the weights, written into every ONNX file")
    data: DataSettings = DataSettings()
    stages: list[AnyStage] = Field(min_length=1)
    deploy: Deploy = Deploy()
    gates: Gates = Gates()

    @field_validator("stages")
    @classmethod
    def _order(cls, stages: list[StageSettings]) -> list[StageSettings]:
        if not stages[0].begins:
            raise ValueError(f"the first stage must be `train` or `load`, not `{stages[0].stage}`")
        late = [s.name for s in stages[1:] if s.begins]
        if late:
            raise ValueError(f"`train` and `load` can only come first; found {', '.join(late)} later")
        for earlier, later in itertools.combinations(stages, 2):
            if (why := earlier.undone_by(later)) is not None:
                raise ValueError(why)
        names = [s.name for s in stages]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two stages are called {', '.join(twice)}: give one a `name:` of its own")
        return stages

    def decides_network(self) -> dict[str, Any]:
        """The settings that compress depends on, as plain data; deploy and gates may change freely."""
        # of the data only the path: they have a digest
        return self.model_dump(
            mode="json", exclude={"deploy": True, "gates": True, "name": True, "data": {"path"}}
        )
