"""One recipe from another: a file says `base: other.yaml` and what is different."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tersor.errors import BadInput
from tersor.pipeline.recipe.own_stage import is_own, name_of

MERGED = ("data", "deploy", "gates", "arguments")
"""Mappings of a recipe that are merged key by key with the base's; other values replace the base's."""

_NOT_SAID = object()


@dataclass(frozen=True)
class Written:
    """A recipe as it is written: in one file, or in one file and its bases.

    files: path and content of each, without the key `base`; the recipe first, then its base, and so on.
    """

    files: tuple[tuple[Path, dict[str, Any]], ...]

    def merged(self) -> dict[str, Any]:
        """The keys of the recipe as one file without a base would have them.

        Raises:
            BadInput: changes to stages that the base has not, or where there is no base.
        """
        path, merged = self.files[-1]
        if isinstance(merged.get("stages"), dict):
            raise BadInput(
                "`stages` is a mapping, which changes the stages of a base, but there is no base",
                got=", ".join(map(str, merged["stages"])) or "an empty mapping",
                wanted="a list of stages, or `base:` and the recipe whose stages are to be changed",
                where=f"{path}, stages",
            )
        for path, own in reversed(self.files[:-1]):
            merged = _over(merged, own, str(path))
        return merged

    def where(self, place: Sequence[Any]) -> str:
        """The file in which the value at a place of the merged recipe stands, and the place; else all files.

        Args:
            place: keys, and indices of lists.
        """
        named = self._by_name(place)
        says = self._that_say(named) or self.files
        spot = named if isinstance(says[0][1].get("stages"), dict) else place
        file, others = str(says[0][0]), [str(path) for path, _ in says[1:]]
        if file != str(self.files[0][0]):
            file += f" (base of {self.files[0][0]})"
        elif others:
            file += f" (base: {', '.join(others)})"
        return spot_in(file, spot)

    def _by_name(self, place: Sequence[Any]) -> list[Any]:
        """A place with the stage's name where its index was."""
        stages = self.merged().get("stages")
        match list(place):
            case ["stages", int(at), *inner] if isinstance(stages, list) and at < len(stages):
                return ["stages", stage_name(stages[at]), *inner]
            case keys:
                return keys

    def _that_say(self, keys: Sequence[Any]) -> list[tuple[Path, dict[str, Any]]]:
        """The files whose values are what the merged recipe has at a place."""
        merged_down_to = 3 if keys[:1] == ["stages"] else 2 if keys and keys[0] in MERGED else 1
        says = []
        for path, content in self.files:
            value = _value_at(content, keys[:merged_down_to])
            if value is not _NOT_SAID:
                says.append((path, content))
                if len(keys) >= merged_down_to or not isinstance(value, dict):
                    break
        return says


def read_written(path: Path) -> Written:
    """Read a recipe file that is there, and its bases.

    Raises:
        BadInput: a file that is no YAML mapping; a base that is missing or leads back to itself.
    """
    files: list[tuple[Path, dict[str, Any]]] = []
    where = str(path)
    while True:
        content = _mapping_in(path, where)
        files.append((path, {key: value for key, value in content.items() if key != "base"}))
        if "base" not in content:
            return Written(tuple(files))
        base = _place_of(content["base"], path, where)
        known = [file.resolve() for file, _ in files]
        if base.resolve() in known:
            ring = [*(file for file, _ in files[known.index(base.resolve()) :]), base]
            raise BadInput(
                "the base of a recipe leads back to the recipe",
                got=" -> ".join(map(str, ring)),
                wanted="a base that stands without it",
                where=f"{where}, base",
            )
        where = f"{base} (base of {path})"
        path = base


def stage_name(stage: Any) -> str:
    """What a stage is called that is written so: by its name, else by its kind or its own function."""
    if not isinstance(stage, dict):
        return str(stage)
    kind = str(stage.get("stage"))
    return str(stage.get("name") or (name_of(kind) if is_own(kind) else kind))


def stages_by_name(stages: Any) -> dict[str, dict[str, Any]]:
    """The stages in what a recipe says under `stages`, whatever it says."""
    listed = stages if isinstance(stages, list) else []
    return {stage_name(stage): stage for stage in listed if isinstance(stage, dict)}


def spot_in(file: str, place: Sequence[Any]) -> str:
    """A place in a file, in words; keys and indices are joined by dots."""
    return f"{file}, {'.'.join(map(str, place)) or 'the recipe'}"


def did_you_mean(got: str, known: Iterable[str]) -> str | None:
    """The question whether a name was meant that is like this one; None where none is."""
    near = difflib.get_close_matches(got, list(known), 1, 0.5)
    return f"Did you mean {near[0]!r}?" if near else None


def _mapping_in(path: Path, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(
            "the recipe is not readable as YAML",
            got=_yaml_words(error),
            where=where,
            todo="Mend the line; recipes/ has examples",
        ) from error
    if not isinstance(content, dict):
        raise BadInput("the recipe is empty or no mapping", got=type(content).__name__, where=where)
    return content


def _yaml_words(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong and in which line."""
    mark = getattr(error, "problem_mark", None)
    words = getattr(error, "problem", None) or str(error)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return " ".join(words.split()) + place


def _place_of(said: Any, path: Path, where: str) -> Path:
    """The file that `base:` of another names."""
    if not isinstance(said, str) or not said.strip():
        raise BadInput(
            "`base` names no recipe", got=repr(said), wanted="the path of a YAML file", where=f"{where}, base"
        )
    for place in (path.parent / said, Path(said)):
        if place.is_file():
            return place
    others = [other.name for other in sorted(path.parent.glob("*.yaml")) if other != path]
    others += map(str, sorted(Path("recipes").rglob("*.yaml")))
    raise BadInput(
        "the base of the recipe is missing",
        got=said,
        wanted=f"a file, seen from {path.parent} or from where the command runs",
        where=f"{where}, base",
        todo=did_you_mean(said, others),
    )


def _over(base: dict[str, Any], own: dict[str, Any], where: str) -> dict[str, Any]:
    """A recipe's keys over those of its base."""
    changes = dict(own)
    for key in MERGED:
        if isinstance(own.get(key), dict) and isinstance(base.get(key), dict):
            changes[key] = _changed(base[key], own[key])
    if isinstance(own.get("stages"), dict):
        changes["stages"] = _changed_stages(base.get("stages"), own["stages"], where)
    return _changed(base, changes)


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes over what a base says; null takes the base's out, and is a value where the base has none."""
    out = {key for key, value in changes.items() if value is None and key in base}
    return {key: value for key, value in {**base, **changes}.items() if key not in out}


def _changed_stages(stages: Any, changes: Mapping[str, Any], where: str) -> list[Any]:
    """The stages of a base, some with other settings."""
    named = stages_by_name(stages)
    for name, settings in changes.items():
        if name not in named:
            raise BadInput(
                f"the base has no stage {name!r}",
                wanted=f"one of {', '.join(named)}" if named else "a base with stages",
                where=f"{where}, stages",
                todo=did_you_mean(str(name), named),
            )
        if not isinstance(settings, dict):
            raise BadInput(
                "what changes in a stage is no mapping",
                got=repr(settings)[:120],
                wanted="settings and their values",
                where=f"{where}, stages.{name}",
                todo="To leave a stage out, write `stages` as a list",
            )
    return [
        _changed(stage, changes.get(stage_name(stage), {})) if isinstance(stage, dict) else stage
        for stage in (stages if isinstance(stages, list) else [])
    ]


def _value_at(content: dict[str, Any], keys: Sequence[Any]) -> Any:
    """What a file says at a place; stages go by their names."""
    here: Any = content
    for depth, key in enumerate(keys):
        if depth == 1 and keys[0] == "stages" and isinstance(here, list):
            here = stages_by_name(here)
        if not isinstance(here, dict) or key not in here:
            return _NOT_SAID
        here = here[key]
    return here
