"""Build a network definition: a name of the zoo, of a package, or a factory in the user's own file."""

import contextlib
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tersor.errors import BadInput, TersorError
from tersor.models.user_code import (
    beside,
    check_call,
    file_of,
    is_file_place,
    is_package_place,
    load_function,
    source_sha256,
)
from tersor.models.zoo import NETWORKS

Factory = Callable[..., nn.Module]


def build(
    definition: str, input_shape: tuple[int, int, int], classes: int, arguments: Mapping[str, Any]
) -> nn.Module:
    """Build a module with fresh weights.

    Args:
        definition: a name of the zoo, `torchvision:NAME`, `timm:NAME`, or `path/to/file.py:factory`.
        input_shape: (channels, height, width); passed to factories that take `input_shape`.
        classes: number of outputs; passed to factories that take `classes`.
        arguments: further keyword arguments.

    Raises:
        BadInput: unknown name (with a suggestion), missing file or factory, wrong arguments,
            or a factory that fails or returns something else than a module.
    """
    factory = factory_of(definition)
    keywords = offered(factory, input_shape, classes, arguments)
    check_call(factory, keywords, "the network's factory", definition)
    with beside(_file_of(definition)) if is_file_place(definition) else contextlib.nullcontext():
        return shaped(called(factory, keywords, definition), input_shape, definition)


def offered(
    factory: Factory, input_shape: tuple[int, int, int], classes: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The keyword arguments for a factory: those that it takes of what is known, and further ones."""
    known = {"input_shape": input_shape, "classes": classes}
    parameters = inspect.signature(factory).parameters
    return {k: v for k, v in known.items() if k in parameters} | dict(arguments)


def called(factory: Factory, given: Mapping[str, Any], where: str) -> nn.Module:
    """What a factory returns.

    Raises:
        BadInput: it fails, or returns something else than a module.
    """
    try:
        module = factory(**given)
    except TersorError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(
            "the network's factory failed", got=f"{type(error).__name__}: {error}", where=where
        ) from error
    if not isinstance(module, nn.Module):
        raise BadInput(
            "the factory did not return a network",
            got=type(module).__name__,
            wanted="a torch.nn.Module",
            where=where,
        )
    return module


def shaped(module: nn.Module, input_shape: tuple[int, int, int], where: str) -> nn.Module:
    """The module with all its shapes: lazy layers get theirs from one image of zeros.

    Raises:
        BadInput: they do not take it.
    """
    if not any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        return module
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *input_shape))
    except Exception as error:
        raise BadInput(
            "the network's lazy layers cannot be given their shapes",
            got=f"{type(error).__name__}: {error}",
            wanted=f"a forward pass of one image of {input_shape[0]} channels, "
            f"{input_shape[1]}x{input_shape[2]} pixels",
            where=where,
            todo="Name the shapes in the definition (nn.Conv2d in place of nn.LazyConv2d)",
        ) from error
    return module.train(was_training)


def factory_of(definition: str) -> Factory:
    """The function that builds a network: of the zoo or a package by its name, or of the user's file.

    Raises:
        BadInput: unknown name (with a suggestion), missing file or factory, a file that fails.
        Unavailable: timm is not installed.
    """
    if is_package_place(definition):
        from tersor.models.zoo.packages import factory_in

        return factory_in(definition)
    if not is_file_place(definition):
        return _from_zoo(definition)
    return load_function(
        definition,
        of="network",
        what="factory",
        where="setting `model`",
        hint="Name a function that returns a torch.nn.Module",
    )


def source_digest(definition: str) -> str | None:
    """SHA-256 in hex of the factory's file and of the user's modules that it imports; None for others.

    Raises:
        BadInput: no such file.
    """
    return source_sha256(_file_of(definition)) if is_file_place(definition) else None


def _from_zoo(name: str) -> Factory:
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1)
        raise BadInput(
            f"there is no network called {name!r}",
            wanted=f"one of {', '.join(NETWORKS)}, torchvision:NAME, timm:NAME, or path/to/file.py:factory",
            where="setting `model`",
            todo=f"Did you mean {near[0]!r}?" if near else None,
        )
    module, function = NETWORKS[name].split(":")
    return getattr(importlib.import_module(f"tersor.models.zoo.{module}"), function)


def _file_of(definition: str) -> Path:
    return file_of(definition, of="network", what="factory", where="setting `model`")
