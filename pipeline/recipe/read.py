"""Recipes from YAML files and --set overrides, with errors that say where and suggest what was meant."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tersor.errors import BadInput
from tersor.files import write_whole
from tersor.pipeline.recipe.base import Written, did_you_mean, read_written, spot_in, stages_by_name
from tersor.pipeline.recipe.recipe import KINDS, OWN, Recipe


def read_recipe(path: Path, overrides: Sequence[str] = (), data: Path | None = None) -> Recipe:
    """Read a recipe, and the base that it names with `base:`.

    Args:
        path: a YAML file.
        overrides: `name.setting=value`; name is a stage's name or a section (`gates.max_bytes=9000`),
            or a top-level key alone (`seed=1`). Values are YAML.
        data: what DATA= or --data says; for a recipe on digits it means an image folder.

    Raises:
        BadInput: missing file or base, no YAML, unknown key (with a suggestion), wrong type or value.
    """
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("recipes").rglob("*.yaml")], 1)
        raise BadInput(
            "the recipe is missing", where=path, todo=f"Did you mean {near[0]}?" if near else "Check RECIPE="
        )
    written = read_written(path)
    return parse_recipe(written.merged(), written, overrides, data)


def parse_recipe(
    raw: Mapping[str, Any], where: str | Written, overrides: Sequence[str] = (), data: Path | None = None
) -> Recipe:
    """Check plain data and turn it into a Recipe.

    Args:
        raw: what would stand in the file.
        where: for messages.
        overrides, data: as for `read_recipe`.

    Raises:
        BadInput: the first thing that is wrong, with its place and, for unknown keys, a suggestion.
    """
    given = copy.deepcopy(dict(raw))
    for override in overrides:
        _apply(given, override)
    if data is not None and isinstance(given.get("data") or {}, dict):
        given["data"] = _with_path(given.get("data") or {}, data)
    try:
        return Recipe.model_validate(given)
    except ValidationError as error:
        raise explain(error, given, where) from error


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, all defaults spelled out, as YAML."""
    write_whole(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Settings by their dotted names as `--set` takes them: `name.setting=value`, the value in YAML."""
    ending = "..." + chr(10)
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix(ending).strip()}"
        for key, value in changes.items()
    ]


def _with_path(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = data.get("kind", "digits")
    return {**data, "kind": "folder" if kind == "digits" else kind, "path": str(path)}


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise BadInput(
            "an override cannot be read",
            got=override,
            wanted="name.setting=value",
            where="--set (SET= in make)",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput("an override's value is not YAML", got=text, where=f"--set {key}") from error
    target: Any = raw
    if len(parts) > 1:
        stages = stages_by_name(raw.get("stages"))
        head, sections = parts.pop(0), {k: v for k, v in Recipe.model_fields.items() if k != "stages"}
        if head in stages:
            target = stages[head]
        elif head in sections:
            target = raw[head] = _settings_in(raw, head, override)
        else:
            raise BadInput(
                f"nothing in the recipe is called {head!r}",
                wanted=f"a stage ({', '.join(stages)}) or a section ({', '.join(sections)})",
                where=f"--set {override}",
                todo=did_you_mean(head, [*stages, *sections]),
            )
    for part in parts[:-1]:
        target[part] = _settings_in(target, part, override)
        target = target[part]
    target[parts[-1]] = value


def _settings_in(raw: Mapping[str, Any], key: str, override: str) -> dict[str, Any]:
    inner = raw.get(key)
    if inner is not None and not isinstance(inner, dict):
        raise BadInput(f"{key!r} has no settings of its own", got=repr(inner), where=f"--set {override}")
    return dict(inner or {})


def explain(
    error: ValidationError, raw: Mapping[str, Any], where: str | Written, root: type[BaseModel] = Recipe
) -> BadInput:
    """Turn pydantic's first error into one for people: the place, what is allowed, what was meant."""
    # the most telling first: a misspelt key also makes the right one missing, a union tries every form
    telling = {"value_error": 0, "extra_forbidden": 1}
    first = min(error.errors(), key=lambda e: telling.get(e["type"], 2))
    place = [p for p in first["loc"] if not _is_tag(p, first["loc"])]
    at = where.where(place) if isinstance(where, Written) else spot_in(where, place)
    if first["type"] == "extra_forbidden":
        known = _known_keys(place, raw, root)
        if isinstance(where, Written) and len(place) == 1:
            known.append("base")
        return BadInput(
            f"unknown key {str(place[-1])!r}",
            where=at,
            wanted=f"one of {', '.join(known)}" if known else None,
            todo=did_you_mean(str(place[-1]), known),
        )
    if first["type"] == "union_tag_invalid":
        kinds = (*KINDS, OWN)
        got = str(first.get("ctx", {}).get("tag"))
        return BadInput(
            f"there is no stage {got!r}",
            wanted=f"one of {', '.join(kinds)}",
            where=at,
            todo=did_you_mean(got, kinds),
        )
    if first["type"] == "value_error":  # our own words, whole as they are
        return BadInput(first["msg"].removeprefix("Value error, "), where=at)
    if first["type"] == "union_tag_not_found":
        return BadInput(
            "a stage does not say what it is",
            got=repr(first["input"])[:120],
            wanted=f"`stage:` and one of {', '.join((*KINDS, OWN))}",
            where=at,
        )
    return BadInput(
        "the recipe has a wrong value",
        got=repr(first["input"])[:120],
        wanted=first["msg"].removeprefix("Input should be "),
        where=at,
    )


def _is_tag(part: Any, loc: tuple[Any, ...]) -> bool:
    """pydantic puts the stage kind into the place, behind the index: noise for the reader."""
    return part in (*KINDS, OWN) and len(loc) > 2 and loc[0] == "stages" and part == loc[2]


def _known_keys(place: Sequence[Any], raw: Mapping[str, Any], root: type[BaseModel]) -> list[str]:
    """The keys that are allowed where `place[-1]` stands."""
    model: Any = root
    here: Any = raw
    for part in place[:-1]:
        here = here[part] if isinstance(here, Mapping | list) else {}
        if isinstance(part, int):
            model = KINDS.get(here.get("stage"), Recipe)
        elif part != "stages":
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))
