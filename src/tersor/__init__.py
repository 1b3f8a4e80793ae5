"""tersor: make a PyTorch CNN small and fast, prove that it still works, ship it as ONNX.

    run = tersor.compress("recipes/digits.yaml")
    bundle = tersor.deploy(run)
    session = tersor.load(bundle.path / "model.tsr")

docs/python.md shows every name. Importing tersor imports nothing else: names are fetched when they are used.
"""

from tersor.version import __version__ as __version__

TYPE_CHECKING = False  # typing's own costs four milliseconds
if TYPE_CHECKING:
    from typing import Any

    from tersor import errors, stages
    from tersor.artifacts import Bundle, benchmark, inspect, load, pack, unpack, verify
    from tersor.door import Network, Run, compress, deploy, study
    from tersor.pipeline.data.load import Data
    from tersor.pipeline.recipe.recipe import Recipe

__all__ = [
    "Bundle",
    "Data",
    "Network",
    "Recipe",
    "Run",
    "benchmark",
    "compress",
    "deploy",
    "errors",
    "inspect",
    "load",
    "pack",
    "stages",
    "study",
    "unpack",
    "verify",
]

_PLACES = {
    "tersor.artifacts": ("Bundle", "benchmark", "inspect", "load", "pack", "unpack", "verify"),
    "tersor.door": ("Network", "Run", "compress", "deploy", "study"),
    "tersor.pipeline.data.load": ("Data",),
    "tersor.pipeline.recipe.recipe": ("Recipe",),
}


def __getattr__(name: str) -> "Any":
    """Fetch a public name when it is first used (PEP 562)."""
    from importlib import import_module

    if name in ("errors", "stages"):
        return import_module(f"tersor.{name}")
    for place, names in _PLACES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(place), name))
    raise AttributeError(f"module 'tersor' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
