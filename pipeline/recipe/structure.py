"""Settings of the stage `structure`."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tersor.pipeline.recipe.settings import Fraction, Name, Settings, StageSettings

Amount = Annotated[float, Field(ge=0, lt=1)]


class Schedule(Settings):
    """Channels masked step by step while the network trains, by NNI's AGPPruner or LinearPruner."""

    kind: Literal["agp", "linear"] = "agp"
    rounds: int = Field(5, ge=1, description="how many times more channels are masked")
    epochs: float = Field(2.0, gt=0, description="length of the whole schedule")
    learning_rate: float = Field(0.01, gt=0)
    batch_size: int = Field(128, ge=2)


class Search(Settings):
    """Widths chosen by measured latency: as much importance kept as a budget allows."""

    speedup: float | None = Field(None, gt=1, description="over the baseline in the same precision")
    latency_ms: float | None = Field(
        None, gt=0, description="of one run: a low percentile, about 2 % below the median of an idle machine"
    )
    macs: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="fraction of the baseline's")
    parameters: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="fraction of the baseline's"
    )
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)
    step: int = Field(8, ge=1, description="widths tried are multiples of this")
    rounds: int = Field(3, ge=1, description="of measuring the real network and correcting the prediction")

    @model_validator(mode="after")
    def _one(self) -> "Search":
        given = [n for n in ("speedup", "latency_ms", "macs", "parameters") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                "give one budget of speedup, latency_ms, macs, parameters; "
                f"found {', '.join(given) or 'none'}"
            )
        return self

    @property
    def timed(self) -> bool:
        """Whether the budget is one of time."""
        return self.speedup is not None or self.latency_ms is not None


class Structure(StageSettings):
    """Remove channels that an NNI pruner finds unimportant and rebuild the network without them."""

    stage: Literal["structure"]
    name: Name = "structure"
    pruner: Literal["fpgm", "l1norm", "l2norm", "taylor"] = Field(
        "fpgm", description="with search: taylor, if none is named"
    )
    sparsity: Amount = Field(0.5, description="fraction of the channels to remove")
    scope: Literal["layer", "global"] = Field(
        "layer", description="global: all layers ranked together, each by its own mean importance"
    )
    per_layer: dict[str, Amount] = Field({}, description="pattern of layers -> their own sparsity")
    align: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="kept widths are multiples of this; auto: the widest that costs no more time here"
    )
    search: Search | None = Field(None, description="choose widths by a budget in place of sparsity")
    precision: Literal["fp32", "int8"] = Field(
        "fp32",
        description="what budgets of time and `align: auto` are timed in; int8: as model.int8.onnx runs",
    )
    schedule: Schedule | None = Field(None, description="mask channels while training, then rebuild")
    layers: list[str] = Field([], description="patterns of layers to prune; empty: all convolutions")
    exclude: list[str] = []
    linear: bool = Field(False, description="prune neurons of linear layers too")
    rebuild: Literal["auto", "nni", "own"] = Field(
        "auto", description="auto: NNI's ModelSpeedup where it is right, else tersor's own"
    )
    taylor_batches: int = Field(20, ge=1, description="training batches of 64 for the gradients of taylor")
    max_cut: Fraction = Field(
        0.95, description="largest fraction removed of one layer, for global and search"
    )
    allow_less: bool = Field(False, description="accept less than half of the channels that were asked for")
    fold_parametrizations: bool = Field(
        False, description="make weights that are computed (weight norm) plain tensors; the graph takes over"
    )
    reestimate_batch_norm: bool = True

    @model_validator(mode="before")
    @classmethod
    def _comparable(cls, raw: Any) -> Any:
        """Norms do not say what a layer is worth to the network; a search between layers needs that."""
        if isinstance(raw, dict) and raw.get("search") and "pruner" not in raw:
            return {**raw, "pruner": "taylor"}
        return raw

    @model_validator(mode="after")
    def _one_way(self) -> "Structure":
        if self.search and (self.per_layer or self.scope == "global" or self.align or self.schedule):
            raise ValueError(
                "search chooses the widths by itself: leave out per_layer, scope, align, schedule"
            )
        if self.precision == "int8" and self.align != "auto" and not (self.search and self.search.timed):
            raise ValueError(
                "precision int8 says what is timed: give search a speedup or latency_ms, or set align to auto"
            )
        if self.schedule and self.pruner == "taylor":
            raise ValueError("schedule works with l1norm, l2norm and fpgm")
        if self.scope == "global" and self.per_layer:
            raise ValueError("per_layer has no meaning with scope global: all layers are ranked together")
        return self
