"""What identifies a result: the same identity, the same result. Knows no torch before it is asked.

A stage's result lies in the cache under a digest of its identity, a study's trial under a digest of its own.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tersor.files import sha256_of
from tersor.machine import torchrun_processes
from tersor.models.user_code import file_of, is_file_place, source_sha256
from tersor.pipeline.recipe.recipe import Load, Recipe

LIBRARIES = ("torch", "torchvision", "nni", "onnx", "onnxscript", "onnxruntime", "numpy")
"""Those whose versions decide results: weights, files, and widths that are chosen by measuring."""


def stage_identity(
    recipe: Recipe, index: int, version: int, data_digest: str, before: str, versions: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that decides a stage's result, as plain data to be hashed.

    Args:
        recipe: of the run.
        index: of the stage in the recipe.
        version: of that kind of stage, from its row in the table.
        data_digest: `Data.digest()`.
        before: digest of the stage before; "start" for the first.
        versions: as `versions()` gives them.

    Raises:
        BadInput: the file of the user's network or stage is not there.
    """
    settings = recipe.stages[index]
    identity: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", exclude={"name"}),
        "version": version,
        "before": before,
        "index": index,
        "model": [recipe.model, recipe.arguments, network_source(recipe.model)],
        "licence": recipe.licence,
        "data": data_digest,
        "seed": recipe.seed,
        "threads": recipe.threads,
        "device": recipe.device,
        "versions": dict(versions),
    }
    if (ranks := torchrun_processes()) is not None:
        identity["ranks"] = ranks
    if isinstance(settings, Load):
        identity["weights"] = file_or_none(settings.weights)
    if is_file_place(settings.stage):
        identity["source"] = stage_source(settings.stage)
    return identity


def network_source(model: str) -> str | None:
    """SHA-256 of the file of a user's network with its helpers, the version of timm, None for the zoo.

    Raises:
        BadInput: it is not there.
    """
    if model.startswith("timm:"):  # the others are in `versions` always
        return f"timm {_version('timm')}"
    if not is_file_place(model):
        return None
    return source_sha256(file_of(model, of="network", what="factory", where="setting `model`"))


def stage_source(stage: str) -> str:
    """SHA-256 of the file of a user's stage with its helpers.

    Raises:
        BadInput: it is not there.
    """
    return source_sha256(file_of(stage, of="stage", what="function", where="setting `stage`"))


def file_or_none(path: Path) -> str | None:
    """SHA-256 of a file in hex, None when it is not there."""
    return sha256_of(path) if path.is_file() else None


def versions() -> dict[str, str]:
    """Library versions and the instruction set: they decide the last bits of every weight."""
    import torch

    return library_versions() | {"cpu": torch.backends.cpu.get_cpu_capability()}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide results; `absent` where one is not installed."""
    return {library: _version(library) for library in LIBRARIES}


def stage_seed(recipe: Recipe, index: int) -> int:
    """The seed of a stage: its own for each index; -1 is that of the fresh weights."""
    return int(np.random.SeedSequence([recipe.seed, index + 1]).generate_state(1, np.uint32)[0])


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
