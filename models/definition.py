"""Build a network definition: a name of the zoo, or a factory in the user's own file."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tersor.errors import BadInput, TersorError
from tersor.models.zoo import NETWORKS

Factory = Callable[..., nn.Module]


def build(
    definition: str, input_shape: tuple[int, int, int], classes: int, arguments: Mapping[str, Any]
) -> nn.Module:
    """Build a module with fresh weights.

    Args:
        definition: a name of the zoo, or `path/to/file.py:factory`.
        input_shape: (channels, height, width); passed to factories that take `input_shape`.
        classes: number of outputs; passed to factories that take `classes`.
        arguments: further keyword arguments.

    Raises:
        BadInput: unknown name (with a suggestion), missing file or factory, wrong arguments,
            or a factory that fails or returns something else than a module.
    """
    factory = _from_file(definition) if is_file_definition(definition) else _from_zoo(definition)
    offered = {"input_shape": input_shape, "classes": classes}
    parameters = inspect.signature(factory).parameters
    given = {k: v for k, v in offered.items() if k in parameters} | dict(arguments)
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise BadInput(
            "the network's factory does not take these arguments",
            got=f"{', '.join(sorted(given)) or 'none'} ({error})",
            wanted=", ".join(parameters),
            where=definition,
        ) from error
    try:
        module = factory(**given)
    except TersorError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(
            "the network's factory failed", got=f"{type(error).__name__}: {error}", where=definition
        ) from error
    if not isinstance(module, nn.Module):
        raise BadInput(
            "the factory did not return a network",
            got=type(module).__name__,
            wanted="a torch.nn.Module",
            where=definition,
        )
    return module


def is_file_definition(definition: str) -> bool:
    """Whether `definition` names a factory in a file rather than a network of the zoo."""
    return ":" in definition or definition.endswith(".py")


def source_digest(definition: str) -> str | None:
    """SHA-256 of the factory's file in hex; None for networks of the zoo."""
    if not is_file_definition(definition):
        return None
    return hashlib.sha256(_file_of(definition).read_bytes()).hexdigest()


def _from_zoo(name: str) -> Factory:
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1)
        raise BadInput(
            f"there is no network called {name!r}",
            wanted=f"one of {', '.join(NETWORKS)}, or path/to/file.py:factory",
            where="setting `model`",
            todo=f"Did you mean {near[0]!r}?" if near else None,
        )
    module, function = NETWORKS[name].split(":")
    return getattr(importlib.import_module(f"tersor.models.zoo.{module}"), function)


def _file_of(definition: str) -> Path:
    path = Path(definition.rpartition(":")[0] or definition)
    if ":" not in definition or not path.is_file():
        raise BadInput(
            "the network's file is missing or no factory is named",
            got=definition,
            wanted="path/to/file.py:factory, with an existing file",
            where="setting `model`",
        )
    return path


def _from_file(definition: str) -> Factory:
    path, function = _file_of(definition), definition.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(f"tersor_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput("the network's file is no Python source", where=path, wanted="a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script may end the process when it is imported
        raise BadInput(
            "the network's file fails when imported", got=f"{type(error).__name__}: {error}", where=path
        ) from error
    if not callable(getattr(module, function, None)):
        near = difflib.get_close_matches(function, [k for k, v in vars(module).items() if callable(v)], 1)
        raise BadInput(
            f"the file has no factory called {function!r}",
            where=path,
            todo=f"Did you mean {near[0]!r}?" if near else "Name a function that returns a torch.nn.Module",
        )
    return getattr(module, function)
