"""`tersor profile`: the staircase of a network's layers on this machine, timed and drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.errors import BadInput
from tersor.files import made_folder
from tersor.models import network
from tersor.models.network import Network
from tersor.models.preprocessing import Preprocessing
from tersor.models.zoo import NETWORKS
from tersor.pipeline.data.load import data_of
from tersor.pipeline.lessons import staircase_picture
from tersor.pipeline.recipe.read import read_recipe
from tersor.pipeline.shipping.opened import open_finished
from tersor.pipeline.stages.store import Store
from tersor.pipeline.stages.table import fresh_network
from tersor.pipeline.structure import staircase
from tersor.progress import Reporter


@dataclass(frozen=True)
class Profile:
    """What was timed: the machine, a row a layer, the picture, and where the measurements lie."""

    machine: dict[str, Any]
    rows: list[dict[str, Any]]
    picture: Path
    measurements: Path


def run_profile(
    what: str,
    data: Path | None,
    runs: Path,
    *,
    shape: str,
    setting: tuple[int, int, bool],
    step: int,
    out: Path | None,
    quiet: bool,
) -> Profile:
    """Time the layers of a network at many widths, one layer at a time, and draw the latency.

    Args:
        what: a recipe, a finished run, a bundle, or a network of the zoo.
        data: of a recipe.
        runs: folder of runs, which holds the measurements.
        shape: `channels,height,width` of an image, for networks of the zoo.
        setting: threads, batch, whether layers are int8.
        step: widths are multiples of it.
        out: the picture; None: beside the measurements.
        quiet: no progress.

    Raises:
        BadInput: nothing to profile there. Unavailable: the folder cannot be written.
    """
    profiled, name = _network(what, data, shape)
    threads, batch, int8 = setting
    profiles = Store(runs).profiles
    stairs = staircase.Staircase(profiles, staircase.Setting(threads, batch, int8))
    with Reporter([("timing layers", 1.0)], quiet=quiet) as reporter, reporter.step() as tell:
        rows = staircase.sweep(profiled, stairs, step, lambda done: tell(done, "one layer at a time"))
        tell(1.0, f"{len(rows)} distinct layers")
    precision, plural = ("int8" if int8 else "fp32"), ("" if threads == 1 else "s")
    path = out or profiles / f"{name}-{precision}-t{threads}-b{batch}.png"
    with made_folder(path.parent):
        conditions = f"{precision}, {threads} thread{plural}, batch {batch}"
        title = (
            f"{name}: {conditions}, ONNX Runtime {stairs.machine['onnxruntime']}, {stairs.machine['model']}"
        )
        staircase_picture.draw(rows, title, path)
    return Profile(stairs.machine, rows, path, stairs.path)


def _network(what: str, data: Path | None, shape: str) -> tuple[Network, str]:
    """The network to profile and its name; only its shapes matter.

    Raises:
        BadInput: neither a recipe, a run nor a network of the zoo; a shape that is none.
    """
    path = Path(what)
    if what in NETWORKS:
        parts = shape.split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
            raise BadInput("the shape is none", got=shape, wanted="channels,height,width", where="--shape")
        channels, height, width = (int(part) for part in parts)
        classes = tuple(str(i) for i in range(10))
        plain = Preprocessing(255.0, (0.5,) * channels, (0.5,) * channels)
        return network.create(what, {}, (channels, height, width), classes, plain), what
    if path.suffix in (".yaml", ".yml"):
        recipe = read_recipe(path, (), data)
        return fresh_network(recipe, data_of(recipe)), recipe.name
    if path.is_dir():
        return open_finished(path).network(), path.name
    raise BadInput(
        "there is nothing to profile",
        got=what,
        wanted=f"a recipe (.yaml), a finished run, a bundle, or one of {', '.join(NETWORKS)}",
        where="argument WHAT",
    )
