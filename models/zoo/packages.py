"""Networks of torchvision and timm under their names there, with random weights: nothing is downloaded."""

import difflib
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from tersor.errors import BadInput, Unavailable

SMALLEST = 32
"""Pixels: five halvings leave one."""
TRAINED = ("weights", "pretrained", "weights_backbone")
"""Arguments by which these packages download."""


def factory_in(place: str) -> Callable[..., nn.Module]:
    """The factory of `torchvision:NAME` or `timm:NAME`.

    Raises:
        BadInput: the package has no classification network of that name (with a suggestion).
        Unavailable: timm is not installed.
    """
    package, _, name = place.partition(":")
    return {"torchvision": torchvision_network, "timm": timm_network}[package](name)


def torchvision_network(name: str) -> Callable[..., nn.Module]:
    """A factory of torchvision's classification network `name`.

    Raises:
        BadInput: there is none.
    """
    from torchvision import models

    _check_name("torchvision", name, models.list_models(module=models))

    def factory(
        input_shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000, **arguments: Any
    ) -> nn.Module:
        """Images (N, 3, H, W) to logits (N, classes); arguments go to torchvision."""
        channels, height, width = input_shape
        _check_arguments(f"torchvision:{name}", arguments)
        if channels != 3 or min(height, width) < SMALLEST:
            raise BadInput(
                "the network does not take these images",
                got=f"{channels} channels, {height}x{width} pixels",
                wanted=f"3 channels, at least {SMALLEST}x{SMALLEST} pixels",
                where=f"network `{name}`",
                todo="Set `data.channels: 3` and `data.image_size`",
            )
        if name in ("googlenet", "inception_v3"):  # further outputs that only training uses
            arguments = {"aux_logits": False, "init_weights": False, **arguments}
        if name.startswith("vit_"):
            arguments = {"image_size": _side(name, height, width), **arguments}
        return models.get_model(name, weights=None, num_classes=classes, **arguments)

    return factory


def timm_network(name: str) -> Callable[..., nn.Module]:
    """A factory of timm's network `name` (the extra `timm`).

    Raises:
        BadInput: there is none.
        Unavailable: timm is not installed.
    """
    timm = _timm()
    _check_name("timm", name, timm.list_models())
    sizes_itself = not timm.models.get_pretrained_cfg(name).fixed_input_size

    def factory(
        input_shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000, **arguments: Any
    ) -> nn.Module:
        """Images (N, C, H, W) to logits (N, classes); arguments go to timm."""
        channels, height, width = input_shape
        _check_arguments(f"timm:{name}", arguments)
        if not sizes_itself:
            try:
                return timm.create_model(
                    name, num_classes=classes, in_chans=channels, img_size=(height, width), **arguments
                )
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
        return timm.create_model(name, num_classes=classes, in_chans=channels, **arguments)

    return factory


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise Unavailable(
            "timm is not installed",
            where="setting `model`",
            todo="Install the extra: pip install 'tersor[timm]'",
        ) from error


def _check_name(package: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    raise BadInput(
        f"{package} has no classification network called {name!r}",
        wanted=f"one of its {len(known)}, for example {', '.join(known[:: len(known) // 5][:5])}",
        where="setting `model`",
        todo=f"Did you mean '{package}:{near[0]}'?" if near else None,
    )


def _check_arguments(place: str, arguments: dict[str, Any]) -> None:
    """Trained weights come from a file of the user's, whose bytes are part of what a run is."""
    for name in TRAINED:
        if arguments.get(name):
            raise BadInput(
                "a network is not built with weights that are downloaded",
                got=f"{name}: {arguments[name]}",
                where=f"network `{place}`, setting `arguments`",
                todo="Save the weights to a file and start with `stage: load, weights: FILE`",
            )


def _side(name: str, height: int, width: int) -> int:
    if height != width:
        raise BadInput(
            "the network takes square images",
            got=f"{height}x{width} pixels",
            where=f"network `{name}`",
            todo="Set `data.image_size`",
        )
    return height
