"""What identifies a trial of a study: its settings, and all that it reads. The same key, the same result."""

from pathlib import Path
from typing import Any

from tersor.files import digest_of
from tersor.models.user_code import is_file_place, is_package_place, source_sha256
from tersor.pipeline.stages.identity import file_or_none, library_versions, network_source
from tersor.version import __version__

_NOT_TRAINED = ("name", "deploy", "gates")


def decides(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, as plain data, that a trial's result depends on."""
    return {k: v for k, v in recipe.items() if k not in _NOT_TRAINED}


class Sources:
    """What trials read, looked at once: data, the user's own code, weights, versions of libraries."""

    def __init__(self) -> None:
        self.versions = {"tersor": __version__, **library_versions()}
        self.seen: dict[tuple[str, str], Any] = {}

    def of(self, recipe: dict[str, Any]) -> list[Any]:
        """What identifies the sources of a recipe, as plain data."""
        stages = recipe["stages"]
        code = [place for place in (recipe["model"], *(s["stage"] for s in stages)) if is_file_place(place)]
        read = [self._once("code", place.rpartition(":")[0]) for place in code]
        read += [self._once("file", s["weights"]) for s in stages if s.get("weights")]
        read += [network_source(recipe["model"])] if is_package_place(recipe["model"]) else []
        return [self.versions, self._once("folder", recipe["data"]["path"]), read]

    def _once(self, kind: str, path: str | None) -> Any:
        if not path:
            return None
        if (kind, path) not in self.seen:
            self.seen[kind, path] = _LOOKS[kind](Path(path))
        return self.seen[kind, path]


def _folder(data: Path) -> list[Any]:
    """What a folder's files look like from outside: names, sizes, times; cheap, and changes when they do."""
    files = sorted(p for p in data.rglob("*") if p.is_file()) if data.is_dir() else []
    return [digest_of([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])]


def _code(path: Path) -> str | None:
    return source_sha256(path) if path.is_file() else None


_LOOKS = {"code": _code, "file": file_or_none, "folder": _folder}
