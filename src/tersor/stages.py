"""Every stage under its recipe name, as a function of a network and data.

    small, told = tersor.stages.structure(net, data, sparsity=0.5, align=16)

The settings are those of the recipe (docs/settings.md). A stage of one's own is `own`.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import torch
from pydantic import ValidationError

from tersor.models.network import Network
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.read import explain
from tersor.pipeline.recipe.recipe import KINDS, Recipe
from tersor.pipeline.recipe.settings import StageSettings
from tersor.pipeline.stages.environment import check_device, prepare_torch
from tersor.pipeline.stages.table import Context, row_of
from tersor.progress import Tell

N = TypeVar("N", bound=Network)


def run(
    stage: str,
    network: N,
    data: Data,
    *,
    seed: int = 0,
    device: str = "cpu",
    baseline: Network | None = None,
    runs: str | Path = "runs",
    tell: Tell = lambda *_: None,
    **settings: Any,
) -> tuple[N, dict[str, Any]]:
    """Run one stage.

    Args:
        stage: its kind, or `path/to/file.py:function`.
        network: where it starts; not changed.
        data: trains and calibrates on `data.train`, chooses on `data.validation`; the test split is not read.
        seed: of everything random in it.
        device: `cpu` or `cuda`.
        baseline: the network before all compression, for distillation and budgets; default: `network`.
        runs: the folder whose staircase profiles are used and filled by timed widths.
        tell: told the fraction done and a few words.
        settings: of the stage, as in a recipe.

    Returns:
        The network that it makes, and what it has to tell.

    Raises:
        BadInput: no such stage or setting, or a network or data that do not fit.
        TersorError: any other of its kinds.
    """
    raw: dict[str, Any] = {
        "name": "python",
        "model": network.definition,
        "seed": seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "stages": [{"stage": "train"}, {"stage": stage, **settings}],
    }
    begins = stage in KINDS and KINDS[stage].begins
    if begins:
        raw["stages"] = raw["stages"][1:]
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise explain(error, raw, f"tersor.stages.{stage}") from error
    check_device(recipe)
    prepare_torch(recipe)
    chosen: StageSettings = recipe.stages[-1]
    first = baseline if baseline is not None else network
    with TemporaryDirectory() as folder:
        context = Context(
            recipe, data, seed, Path(folder) / "checkpoint.pt", Path(runs) / ".profiles", tell, lambda: first
        )
        result, details = row_of(chosen).run(network, chosen, context)
    return cast(N, result), details


def own(stage: str, network: N, data: Data, **settings: Any) -> tuple[N, dict[str, Any]]:
    """Run a stage of one's own, `path/to/file.py:function`; as `run`."""
    return run(stage, network, data, **settings)


def __getattr__(name: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """The stage of that kind."""
    if name not in KINDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(KINDS)}")

    def stage(network: N, data: Data, **settings: Any) -> tuple[N, dict[str, Any]]:
        """Run it; see `run`."""
        return run(name, network, data, **settings)

    stage.__name__ = stage.__qualname__ = name
    stage.__doc__ = f"{KINDS[name].__doc__}\n\nSettings: {', '.join(KINDS[name].model_fields)}; see `run`."
    return stage


def __dir__() -> list[str]:
    """What there is."""
    return sorted([*KINDS, "own", "run"])
