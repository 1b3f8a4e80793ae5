"""A finished run or a bundle, looked at in the same way."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from onnx import numpy_helper

from tersor.errors import BadInput
from tersor.export.bundle.folder import MANIFEST, read_manifest
from tersor.export.bundle.manifest import AGAIN, Manifest, needed
from tersor.export.forms import graph as graphs
from tersor.files import made_folder
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.read import parse_recipe
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.shipping.recheck import bundle_data
from tersor.pipeline.stages.environment import prepare_torch
from tersor.pipeline.stages.metrics import StageMetrics
from tersor.pipeline.stages.run_folder import Run

T = TypeVar("T")

BASELINE, MODEL = "baseline.onnx", "model.onnx"


class Finished(Protocol):
    """What a look at something finished may ask of it; see `Run` for what each gives and raises."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def name(self) -> str:
        """That of its recipe."""

    @property
    def recipe(self) -> Recipe:
        """What it was made by."""

    @property
    def stages(self) -> tuple[StageMetrics, ...]:
        """What was measured after each stage."""

    def onnx(self, stage: str | int | None = None) -> Path:
        """The plain ONNX file of a stage, or the final one."""

    def network(self, stage: str | int | None = None) -> Network:
        """The network of a stage, or the final one."""

    def baseline(self) -> Network:
        """The network before compression."""

    def data(self, path: Path | None = None) -> Data:
        """The data it was made from."""

    def results(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A folder for what a look at it finds."""


@dataclass(frozen=True)
class ShippedRun:
    """A bundle, as far as it tells of the run that it came from: the first network and the last one.

    Every property and method raises BadInput when the bundle is damaged.
    """

    folder: Path
    runs: Path = Path("runs")
    """What a look at it finds goes into the folder of its name there: a bundle holds what is listed only."""

    @cached_property
    def manifest(self) -> Manifest:
        """What it claims."""
        return read_manifest(self.folder)

    @property
    def name(self) -> str:
        """That of its recipe."""
        return self.manifest.name

    @property
    def recipe(self) -> Recipe:
        """What it was made by; of paths only the last part is known."""
        return parse_recipe(self._needed("recipe", self.manifest.recipe), f"{self.folder / MANIFEST}, recipe")

    @property
    def stages(self) -> tuple[StageMetrics, ...]:
        """What was measured after each stage, without the trainings' curves."""
        told = self._needed("stages", self.manifest.stages or None)
        path = self.folder / MANIFEST
        return tuple(
            StageMetrics.of(stage, "the manifest", f"{path}, stages[{index}]", AGAIN)
            for index, stage in enumerate(told)
        )

    def onnx(self, stage: str | int | None = None) -> Path:
        """baseline.onnx for the first stage, model.onnx for the last.

        Raises:
            BadInput: another stage, or the file is not there.
        """
        names = [stage.name for stage in self.stages]
        last = len(names) - 1
        at = last if stage is None else names.index(stage) if stage in names else stage
        if at not in (0, last):
            raise BadInput(
                "a bundle holds the first and the last stage's network only",
                got=stage,
                wanted=f"{names[0]} or {names[-1]}",
                where=self.folder,
                todo="Give the folder of the run for the stages between",
            )
        path = self.folder / (MODEL if at == last else BASELINE)
        if not path.is_file():
            raise BadInput(f"{path.name} is missing", where=self.folder, todo="Get the bundle again")
        return path

    def network(self, stage: str | int | None = None) -> Network:
        """The network that an ONNX file of the bundle holds; values are floats, forms are not told there.

        Raises:
            BadInput: its definition is a file that is not here, or the file holds other tensors.
        """
        recipe, manifest = self.recipe, self.manifest
        fresh = networks.create(
            recipe.model,
            recipe.arguments,
            manifest.input.image_shape,
            self._needed("classes", manifest.classes),
            self._needed("preprocessing", manifest.preprocessing),
        )
        path = self.onnx(stage)
        found = {t.name: numpy_helper.to_array(t) for t in graphs.read_model(path).graph.initializer}
        tensors = {
            name: torch.from_numpy(np.array(found[name])) if name in found else tensor
            for name, tensor in fresh.tensors.items()
        }
        missing = [n for n, t in fresh.tensors.items() if n not in found and t.is_floating_point()]
        if missing:
            raise BadInput(
                "the bundle's ONNX file does not hold the network's tensors",
                got=f"{len(missing)} missing, such as {missing[0]!r}",
                where=path,
                todo=f"Give the folder of the run {manifest.name!r}",
            )
        loaded = fresh.with_tensors(tensors)
        return loaded.with_module(loaded.module())

    def baseline(self) -> Network:
        """The network before compression."""
        return self.network(0)

    def data(self, path: Path | None = None) -> Data:
        """The data it was made from; torch is made ready as it was for the run.

        Raises:
            BadInput: they are not there, or are others now.
        """
        prepare_torch(self.recipe)
        data = bundle_data(self.manifest, path)
        if data is None:
            raise BadInput(
                "the bundle's data are needed", where=self.folder, todo="Say where they are with --data"
            )
        return data

    @contextlib.contextmanager
    def results(self, name: str) -> Iterator[Path]:
        """A folder outside of the bundle for what a look at it finds, such as runs/digits/influence.

        Raises:
            Unavailable: it cannot be written.
        """
        with made_folder(self.runs / self.name / name) as folder:
            yield folder

    def _needed(self, key: str, value: T | None) -> T:
        return needed(value, key, self.folder / MANIFEST)


def open_finished(path: Path) -> Run | ShippedRun:
    """Open the folder of a finished run, or a bundle.

    Raises:
        BadInput: it is neither.
    """
    if (path / MANIFEST).is_file():
        return ShippedRun(path)
    run = Run(path)
    _ = run.metrics  # tells what is missing before anything else is done
    return run
