"""What identifies a trial of a study: its settings, and all that it reads. The same key, the same result."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tersor.files import digest_of, sha256_of

PACKAGES = ("tersor", "torch", "nni", "numpy", "onnx", "onnxscript")

_NOT_TRAINED = ("name", "deploy", "gates")


def decides(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, as plain data, that a trial's result depends on."""
    return {k: v for k, v in recipe.items() if k not in _NOT_TRAINED}


class Sources:
    """What trials read, looked at once: data, factory, weights, versions of packages."""

    def __init__(self) -> None:
        self.versions = {package: _version(package) for package in PACKAGES}
        self.seen: dict[tuple[str, str], Any] = {}

    def of(self, recipe: dict[str, Any]) -> list[Any]:
        """What identifies the sources of a recipe, as plain data."""
        model, weights = recipe["model"].rpartition(":")[0], (s.get("weights") for s in recipe["stages"])
        read = [self._once("file", path) for path in (model, *weights)]
        return [self.versions, self._once("folder", recipe["data"]["path"]), read]

    def _once(self, kind: str, path: str | None) -> Any:
        if not path:
            return None
        if (kind, path) not in self.seen:
            self.seen[kind, path] = (_file if kind == "file" else _folder)(Path(path))
        return self.seen[kind, path]


def _folder(data: Path) -> list[Any]:
    """What a folder's files look like from outside: names, sizes, times; cheap, and changes when they do."""
    files = sorted(p for p in data.rglob("*") if p.is_file()) if data.is_dir() else []
    return [digest_of([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])]


def _file(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
