"""What a finished run's folder holds, for the commands that look at it afterwards: networks, recipe, data."""

from pathlib import Path
from typing import Any

from tersor.errors import BadInput
from tersor.files import read_json
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.pipeline.data.load import Data, load_data
from tersor.pipeline.recipe.read import read_recipe
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.environment import prepare_torch

TODO = "Run `tersor compress` first"


def stage_network(run: Path, stage: str | None = None) -> Network:
    """The network a stage of a finished run produced; None: the first stage's, the trained one.

    Args:
        run: its folder, such as runs/digits.
        stage: the stage's name, without the number in front.

    Raises:
        BadInput: the run is not finished or damaged, or has no such stage.
    """
    folders = stage_folders(run)
    names = [folder.partition("-")[2] for folder in folders]
    if stage is not None and stage not in names:
        raise BadInput("the run has no such stage", got=stage, wanted=", ".join(names), where=run)
    folder = folders[0 if stage is None else names.index(stage)]
    return networks.load(run / folder / "network.safetensors")


def stage_folders(run: Path) -> list[str]:
    """The folders of the run's stages, in order: `01-train` and so on.

    Raises:
        BadInput: the run is not finished or damaged.
    """
    return list(read_json(run / "metrics.json", "the run's metrics", TODO)["stages"])


def recipe_and_data(run: Path, data: Path | None) -> tuple[Recipe, Data]:
    """The recipe of a finished run and its data; torch is made ready as it was for the run.

    Args:
        run: its folder.
        data: where the data lie now; None: where the run found them.

    Raises:
        BadInput: the run is not finished, or the data are not those it was made from.
    """
    done = read_json(run / "metrics.json", "the run's metrics", TODO)
    recipe = read_recipe(run / "recipe.yaml", (), data)
    prepare_torch(recipe)
    found = load_data(**recipe.data.model_dump(), seed=recipe.seed)
    if found.digest() != done["data_sha256"]:
        raise BadInput("these are not the data of the run", where=run, todo="Give the same data with --data")
    return recipe, found


def stage_metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics of a finished run's stages, in order.

    Raises:
        BadInput: the run is not finished or damaged.
    """
    todo = "Run `tersor compress` first"
    names = read_json(run / "metrics.json", "the run's metrics", todo)["stages"]
    return [read_json(run / name / "metrics.json", "a stage's metrics", todo) for name in names]
