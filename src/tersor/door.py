"""What `import tersor` offers that trains or builds networks: it imports torch. docs/python.md shows each.

What only reads, checks and times files is in artifacts.py, which needs no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from torch import nn

from tersor.artifacts import AnyPath, Bundle
from tersor.errors import BadInput
from tersor.export.forms.to_onnx import export_onnx
from tersor.models import definition as definitions
from tersor.models import network as networks
from tersor.models.preprocessing import Preprocessing
from tersor.models.user_code import check_call
from tersor.pipeline import deploy as second_story
from tersor.pipeline import run as first_story
from tersor.pipeline.data.load import HANDED_OVER, Data
from tersor.pipeline.recipe.read import as_overrides, parse_recipe, read_recipe
from tersor.pipeline.recipe.recipe import DataSettings, Recipe
from tersor.pipeline.stages import run_folder
from tersor.pipeline.stages.store import Store
from tersor.pipeline.study.file import read_study
from tersor.pipeline.study.run import run_study
from tersor.pipeline.study.trial import Trial

AnyRecipe = str | Path | Recipe | Mapping[str, Any]
"""A YAML file, a recipe, or what would stand in the file."""


class Network(networks.Network):
    """A network definition plus its tensors: a value, see `tersor.models.network.Network`."""

    @classmethod
    def of(
        cls,
        what: nn.Module | Callable[..., nn.Module] | str,
        *,
        input_shape: tuple[int, int, int],
        classes: Sequence[str] | int,
        preprocessing: Preprocessing | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Self:
        """A network of a live module, a factory, a name of the zoo, or `path/to/file.py:factory`.

        Args:
            what: a module with its weights as they are; or what builds one, with fresh weights from torch's
                global generator. A factory may take `input_shape`, `classes` (their number) and `arguments`.
            input_shape: (channels, height, width) of one image.
            classes: names in the order of the outputs, or how many.
            preprocessing: of images; default: pixels / 255.
            arguments: further keyword arguments of the factory.

        A network of a live module or a function serves in this process; saving it says what is missing.

        Raises:
            BadInput: no such definition, a factory that fails, or what is given is none of these.
        """
        names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
        pre = preprocessing or Preprocessing()
        if isinstance(what, str):
            return cls.taken(networks.create(what, arguments or {}, input_shape, names, pre))
        if isinstance(what, nn.Module):
            return cls.of_module(what, input_shape, names, pre)
        if not callable(what):
            raise BadInput(
                "a network cannot be made of this",
                got=f"a {type(what).__name__}",
                wanted="a torch.nn.Module, a function that makes one, a name of the zoo, or file.py:factory",
                where="Network.of",
            )
        name = getattr(what, "__name__", "factory")
        keywords = definitions.offered(what, input_shape, len(names), arguments or {})
        check_call(what, keywords, "the network's factory", name)
        return cls.of_module(definitions.called(what, keywords, name), input_shape, names, pre)

    @classmethod
    def load(cls, path: AnyPath) -> Self:
        """Read a network that `save` wrote.

        Raises:
            BadInput: missing, damaged, or made by another version of the user's factory.
        """
        return cls.taken(networks.load(Path(path)))

    @classmethod
    def taken(cls, network: networks.Network) -> Self:
        """The same network as one of this class."""
        return cls(**{field.name: getattr(network, field.name) for field in fields(networks.Network)})

    def export(self, path: AnyPath, *, fold_batch_norm: bool = False) -> Path:
        """Write it as ONNX, float32, only the batch free.

        Args:
            path: the file to write.
            fold_batch_norm: into the convolutions; a file to be packed is smaller unfolded.

        Raises:
            BadInput: an operation that ONNX has no form for. Unavailable: the file cannot be written.
        """
        export_onnx(self, Path(path), fold_batch_norm=fold_batch_norm)
        return Path(path)


class Run(run_folder.Run):
    """A finished run, opened by its folder: `.stages`, `.recipe`, `.network()`, `.onnx()`, `.data()`."""

    def network(self, stage: str | int | None = None) -> Network:
        """The network that a stage produced (its name or its index), or the final one."""
        return Network.taken(super().network(stage))

    def baseline(self) -> Network:
        """The first stage's network: trained or loaded, not compressed."""
        return self.network(0)


def compress(
    recipe: AnyRecipe,
    data: AnyPath | Data | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    runs: AnyPath = "runs",
    ledger: first_story.Which = "last",
    quiet: bool = False,
) -> Run:
    """Run a recipe: train, prune, tune, share, pack. Stages that are finished are reused.

    Args:
        recipe: a YAML file, a Recipe, or what would stand in the file.
        data: where the data lie, or the data; default: what the recipe says.
        set: settings by their dotted names, as `--set` takes them: {"tune.epochs": 3}.
        runs: the folder of runs.
        ledger: after which stages the file goes through gzip, zstd and xz too: `none`, `last` or `all`.
        quiet: no progress.

    Raises:
        TersorError: any of its kinds.
    """
    resolved, store = _recipe(recipe, data, set), Store(Path(runs))
    handed_over = data if isinstance(data, Data) else None
    return Run(first_story.compress(resolved, store, data=handed_over, ledger=ledger, quiet=quiet).folder)


def deploy(
    run: run_folder.Run,
    data: AnyPath | Data | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    dist: AnyPath = "dist",
    require: Sequence[str] = (),
    force: bool = False,
    quiet: bool = False,
) -> Bundle:
    """Turn a finished run into a checked bundle: ONNX files, parity, accuracy, timing, report.

    Args:
        run: what `compress` returned, or `Run(folder)`.
        data: where the data lie now, or the data; default: where the run found them.
        set: settings of `deploy` and `gates`, by their dotted names.
        dist: the folder of bundles.
        require: targets that must be timed, such as "cuda".
        force: keep times that were taken on a busy machine, marked.
        quiet: no progress.

    Raises:
        TersorError: any of its kinds; ClaimBroken where a gate does not hold.
    """
    handed_over = data if isinstance(data, Data) else None
    path = None if data is None or isinstance(data, Data) else Path(data)
    recipe = read_recipe(run.folder / run_folder.RECIPE, as_overrides(set or {}), path)
    folder, _ = second_story.deploy(
        recipe,
        Store(run.folder.parent),
        Path(dist),
        data=handed_over,
        require=require,
        force=force,
        quiet=quiet,
    )
    return Bundle(folder)


def study(
    file: AnyPath,
    data: AnyPath | None = None,
    *,
    runs: AnyPath = "runs",
    fast: bool = False,
    quiet: bool = False,
    **changes: Any,
) -> tuple[Path, list[Trial]]:
    """Run a study: many recipes that differ in a few settings, each once, resumable.

    Args:
        file: the study, a YAML file.
        data: where the data lie.
        runs: the folder of runs.
        fast: the study's small variant.
        quiet: no progress.
        changes: keys of the study file, such as `workers=2`.

    Returns:
        The study's folder, and its trials.

    Raises:
        TersorError: any of its kinds; a trial that fails is told in its record.
    """
    asked = read_study(Path(file), fast=fast, changes=changes)
    return run_study(asked, Path(runs), None if data is None else Path(data), quiet=quiet)


def _recipe(recipe: AnyRecipe, data: AnyPath | Data | None, changes: Mapping[str, Any] | None) -> Recipe:
    path = None if data is None or isinstance(data, Data) else Path(data)
    if isinstance(recipe, str | Path):
        resolved = read_recipe(Path(recipe), as_overrides(changes or {}), path)
    else:
        raw = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
        resolved = parse_recipe(raw, "the recipe", as_overrides(changes or {}), path)
    if isinstance(data, Data) and data.name == HANDED_OVER:
        return resolved.model_copy(update={"data": DataSettings(kind=HANDED_OVER)})
    return resolved
