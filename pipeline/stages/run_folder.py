"""A run's folder: the only code that knows what lies where in it.

runs/<name>/01-train, 02-...   a folder a stage: network.safetensors, model.onnx, metrics.json
runs/<name>/                   the last stage's network.safetensors and model.onnx, model.tsr, recipe.yaml,
                               environment.json; metrics.json comes last, so a run that has it is finished
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tersor.errors import BadInput
from tersor.export.codec.pack import pack
from tersor.files import digest_of, made_folder, replace_with_link, sha256_of, write_json
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.pipeline.data.load import Data, data_of
from tersor.pipeline.recipe.read import read_recipe, write_recipe
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.environment import environment, prepare_torch
from tersor.pipeline.stages.metrics import RunMetrics, StageMetrics
from tersor.pipeline.stages.store import METRICS, NETWORK, ONNX, StageResult

PACKED, RECIPE, ENVIRONMENT = "model.tsr", "recipe.yaml", "environment.json"


@dataclass(frozen=True)
class Run:
    """A finished run, opened by its folder; nothing is read before it is asked for.

    Every property and method raises BadInput when the run is not finished or damaged.
    """

    folder: Path

    @property
    def name(self) -> str:
        """That of its recipe."""
        return self.recipe.name

    @cached_property
    def metrics(self) -> RunMetrics:
        """Its stages' folders, sizes and hashes."""
        return RunMetrics.read(self.folder / METRICS)

    @cached_property
    def stages(self) -> tuple[StageMetrics, ...]:
        """What was measured after each stage, in order."""
        return tuple(StageMetrics.read(self.folder / name / METRICS) for name in self.metrics.stages)

    @property
    def recipe(self) -> Recipe:
        """What it was made by, resolved."""
        _ = self.metrics  # tells an unfinished run
        return read_recipe(self.folder / RECIPE)

    @property
    def packed(self) -> Path:
        """model.tsr, the last stage's ONNX file packed."""
        return self.folder / PACKED

    def onnx(self, stage: str | int | None = None) -> Path:
        """The plain ONNX file of a stage (its name or its index), or the final one."""
        return (self.folder if stage is None else self._stage_folder(stage)) / ONNX

    def network(self, stage: str | int | None = None) -> Network:
        """The network that a stage produced (its name or its index), or the final one.

        Raises:
            BadInput: there is no such stage.
        """
        _ = self.metrics  # tells an unfinished run
        return networks.load((self.folder if stage is None else self._stage_folder(stage)) / NETWORK)

    def baseline(self) -> Network:
        """The first stage's network: trained or loaded, not compressed."""
        return self.network(0)

    def data(self, path: Path | None = None) -> Data:
        """The data it was made from; torch is made ready as it was for the run.

        Args:
            path: where they lie now; None: where the run found them.

        Raises:
            BadInput: they are not there, or are others now.
        """
        recipe = read_recipe(self.folder / RECIPE, (), path)
        prepare_torch(recipe)
        data = data_of(recipe)
        if data.digest() != self.metrics.data_sha256:
            raise BadInput(
                "these are not the data of the run",
                where=self.folder,
                todo="Give the same data with --data",
            )
        return data

    @contextlib.contextmanager
    def results(self, name: str) -> Iterator[Path]:
        """A folder of the run for what a look at it finds, such as `influence`; refusals to write are told.

        Raises:
            Unavailable: it cannot be written.
        """
        with made_folder(self.folder / name) as folder:
            yield folder

    @contextlib.contextmanager
    def work(self) -> Iterator[Path]:
        """A folder of the run in which a bundle is put together; it is gone at the end."""
        with fresh_folder(self.folder / "deploy.partial") as work:
            yield work

    @property
    def rejected(self) -> Path:
        """Where a bundle lies whose gates do not hold."""
        return self.folder / "rejected"

    def check_made_by(self, recipe: Recipe) -> None:
        """Check that it was made by this recipe and that its files are as they were then.

        Raises:
            BadInput: it is missing, unfinished, damaged, or was made with other settings.
        """
        todo = "Run `tersor compress` with the same recipe, data and settings first"
        what = f"run {recipe.name!r} is not finished: its metrics.json"
        done = RunMetrics.read(self.folder / METRICS, what, todo)
        if done.recipe_sha256 != digest_of(recipe.decides_network()):
            raise BadInput(
                "the run was made with other settings than this recipe's",
                got=_differing(recipe, self.folder / RECIPE),
                wanted="the recipe and --set that `tersor compress` was given",
                where=self.folder,
                todo=todo,
            )
        for name, digest in done.sha256.items():
            if not (self.folder / name).is_file() or sha256_of(self.folder / name) != digest:
                raise BadInput("a file of the run is damaged or missing", where=self.folder / name, todo=todo)

    def check_same_data(self, data: Data) -> None:
        """Check that the data have not changed since: its training images could be our test images.

        Raises:
            BadInput: other images, labels or classes.
        """
        if self.metrics.data_sha256 != data.digest():
            raise BadInput(
                "the data have changed since the run was made",
                got=f"SHA-256 {data.digest()}",
                wanted=f"SHA-256 {self.metrics.data_sha256}",
                where=f"data `{data.name}`",
                todo="Restore them, or run `tersor compress` again",
            )

    def _stage_folder(self, stage: str | int) -> Path:
        folders = self.metrics.stages
        names = [folder.partition("-")[2] for folder in folders]
        if isinstance(stage, str):
            if stage not in names:
                raise BadInput(
                    "the run has no such stage", got=stage, wanted=", ".join(names), where=self.folder
                )
            stage = names.index(stage)
        return self.folder / folders[stage]


def write_run(folder: Path, recipe: Recipe, data: Data, results: Sequence[StageResult]) -> Run:
    """Fill a run's folder: stage folders, the last stage's files, and that packed.

    A run that fails before everything is there leaves an earlier one as it was.

    Raises:
        OSError: the folder cannot be written.
    """
    names = tuple(f"{i + 1:02d}-{s.name}" for i, s in enumerate(recipe.stages))
    with new_contents(folder) as new:
        for name, result in zip(names, results, strict=True):
            (new / name).mkdir()
            for file in (NETWORK, ONNX):
                replace_with_link(result.folder / file, new / name / file)
            result.metrics.write(new / name / METRICS)
        last = results[-1]
        replace_with_link(last.folder / NETWORK, new / NETWORK)
        replace_with_link(last.onnx, new / ONNX)
        report = pack(last.onnx, new / PACKED, coder=recipe.deploy.coder)
        write_recipe(recipe, new / RECIPE)
        write_json(new / ENVIRONMENT, environment(recipe))
        files = [NETWORK, ONNX, PACKED, f"{names[0]}/{ONNX}", f"{names[0]}/{NETWORK}"]
        RunMetrics(
            names,
            digest_of(recipe.decides_network()),
            data.digest(),
            last.digest,
            report.original_bytes,
            report.packed_bytes,
            {file: sha256_of(new / file) for file in files},
        ).write(new / METRICS)
    return Run(folder)


@contextlib.contextmanager
def new_contents(run: Path) -> Iterator[Path]:
    """A folder to be filled with a run's files, which then take the place of those of the run before.

    While they do, metrics.json is absent (it goes first and comes last), so that files of two runs
    are never taken for one.
    """
    with fresh_folder(run / ".new") as new:
        yield new
        (run / METRICS).unlink(missing_ok=True)
        for entry in run.iterdir():
            if entry.is_dir() and entry.name[:2].isdigit():  # a stage's folder
                shutil.rmtree(entry)
        for entry in sorted(new.iterdir(), key=lambda e: e.name == METRICS):
            target = run / entry.name
            target.unlink(missing_ok=True)  # renaming a link onto another link of the same file does nothing
            os.replace(entry, target)


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """An empty folder, gone again at the end; what an interrupted try left there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _differing(recipe: Recipe, made_with: Path) -> str:
    """The first settings in which a recipe differs from that of the run, a few of them."""
    try:
        before = flat(read_recipe(made_with).decides_network())
    except BadInput:
        return "a run of another version of tersor, or a damaged one"
    now = flat(recipe.decides_network())
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    changes = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names[:3]]
    return "; ".join(changes) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; a stage by its own name."""
    if isinstance(settings, dict):
        inner = list(settings.items())
    elif isinstance(settings, list) and settings and all(isinstance(s, dict) for s in settings):
        inner = [(str(s.get("name", at)), s) for at, s in enumerate(settings)]
        inner.append(("order", [name for name, _ in inner]))
    else:
        return {prefix: settings}
    return {k: v for name, part in inner for k, v in flat(part, f"{prefix}.{name}".lstrip(".")).items()}
