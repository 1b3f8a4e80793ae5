"""A study: a base recipe plus axes. One YAML file, one typed model; expanded here into trials."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from tersor.errors import BadInput
from tersor.pipeline.recipe.read import as_overrides, explain, read_recipe
from tersor.pipeline.recipe.recipe import Name, Recipe, Settings

MOST_POINTS = 10_000
"""A larger grid needs --yes."""


class Range(Settings):
    """A range of numbers for a search; grids take lists."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"a range needs low < high (and low > 0 for log), not {self.low:g} and {self.high:g}"
            )
        return self


class Objective(Settings):
    """What a search looks for."""

    metric: str
    direction: Literal["maximize", "minimize"] = "maximize"


class Search(Settings):
    """How points are chosen: the whole grid, or Optuna's TPE or NSGA-II."""

    kind: Literal["grid", "tpe", "nsga2"] = "grid"
    trials: int = Field(50, ge=1, description="of tpe and nsga2")
    objectives: list[Objective] = [Objective(metric="validation_accuracy_fraction")]


class Limit(Settings):
    """A constraint on a metric; trials outside are kept, marked, and left out of fronts and top tables."""

    metric: str
    min: float | None = None
    max: float | None = None


class Top(Settings):
    """A table of the best trials."""

    metric: str
    direction: Literal["maximize", "minimize"] = "maximize"
    count: int = Field(3, ge=1)


class Latency(Settings):
    """Timing, in a serial pass after all trials: never beside other work."""

    target: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    batch: int = Field(1, ge=1)
    seconds_per_model: float = Field(0.3, gt=0)


class Axis(Settings):
    """Several settings that change together: {settings: [a.x, b.x], values: [[1, 2], [3, 4]]}."""

    settings: list[str] = Field(min_length=1)
    values: list[list[Any]]


class Variant(Settings):
    """What `fast: true` (or --fast) changes: minutes instead of the full size."""

    overrides: dict[str, Any] = {}
    axes: dict[str, list[Any] | Range | Axis] = {}
    seeds: list[int] | None = None


class StudyFile(Settings):
    """Everything a study is."""

    name: Name
    recipe: Path = Field(description="the base recipe, relative to where the command runs or to this file")
    overrides: dict[str, Any] = Field({}, description="setting -> value, for all trials")
    axes: dict[str, list[Any] | Range | Axis] = Field(description="setting -> values; or a name -> Axis")
    seeds: list[int] | None = Field(None, description="default: the recipe's")
    search: Search = Search()
    constraints: list[Limit] = []
    top: list[Top] = [Top(metric="validation_accuracy_fraction")]
    latency: Latency | None = None
    test: bool = Field(True, description="measure the finished networks on the test split too")
    engine: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=1)] | None = Field(None, description="default: cores / threads")
    threads: int = Field(
        1, ge=1, description="a trial's; part of what it is (sums round otherwise), unlike `workers`"
    )
    address: str | None = Field(None, description="of a Ray cluster; default: a local one")
    tracking: str | None = Field(None, description="MLflow tracking URI, or `sqlite` for runs/mlflow.db")
    or_local: bool = Field(
        False, description="go on with local workers and runs/mlflow.db when a server is not there"
    )
    fast: Variant = Variant()


@dataclass(frozen=True)
class Point:
    """One trial to be run: its number, the settings that make it different, its seed, its recipe."""

    number: int
    settings: dict[str, Any]
    seed: int
    recipe: Recipe


def read_study(path: Path, *, fast: bool = False, changes: Mapping[str, Any] | None = None) -> StudyFile:
    """Read a study file; `fast` puts its fast variant in, `changes` replace keys at the top.

    Raises:
        BadInput: missing file, no YAML, unknown key, wrong value, an empty axis.
    """
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("studies").rglob("*.yaml")], 1)
        todo = f"Did you mean {near[0]}?" if near else "Check STUDY="
        raise BadInput("the study is missing", where=path, todo=todo)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(
            "the study is not readable as YAML", got=" ".join(str(error).split()), where=path
        ) from error
    if not isinstance(raw, dict):
        raise BadInput("the study is empty or no mapping", got=type(raw).__name__, where=path)
    try:
        study = StudyFile.model_validate({**raw, **(changes or {})})
    except ValidationError as error:
        raise explain(error, raw, str(path), StudyFile) from error
    study = study.model_copy(update={"recipe": _beside(study.recipe, path)})
    if fast:
        small = study.fast
        study = study.model_copy(
            update={
                "overrides": study.overrides | small.overrides,
                "axes": study.axes | small.axes,
                "seeds": small.seeds or study.seeds,
                "name": f"{study.name}-fast",
            }
        )
    empty = [name for name, axis in study.axes.items() if not _choices(axis)]
    if empty or not study.axes:
        raise BadInput(
            "the grid is empty", got=f"no values for {', '.join(empty) or 'any axis'}", where=f"{path}, axes"
        )
    return study


def grid(study: StudyFile, data: Path | None, *, yes: bool = False) -> list[Point]:
    """Every point of the grid, seeds innermost.

    Raises:
        BadInput: an axis that names no setting (with a suggestion), a range in a grid, or more than
            10,000 points without `yes`.
    """
    ranged = [name for name, axis in study.axes.items() if isinstance(axis, Range)]
    if ranged:
        raise BadInput(
            f"axis {ranged[0]!r} is a range; a grid needs a list", todo="Set search.kind to tpe or nsga2"
        )
    choices = [_choices(axis) for axis in study.axes.values()]
    count = len(study.seeds or [0])
    for values in choices:
        count *= len(values)
    if count > MOST_POINTS and not yes:
        raise BadInput(
            f"the grid has {count:,} points", wanted=f"at most {MOST_POINTS:,}", todo="Add --yes to run it"
        )
    points: list[Point] = []
    for chosen in itertools.product(*choices):
        settings: dict[str, Any] = {}
        for name, axis, value in zip(study.axes, study.axes.values(), chosen):
            settings |= dict(zip(axis.settings, value)) if isinstance(axis, Axis) else {name: value}
        points += make_points(study, data, settings, len(points))
    return points


def make_points(study: StudyFile, data: Path | None, settings: dict[str, Any], first: int) -> list[Point]:
    """The points of one setting of the axes, one a seed, numbered from `first`."""
    overrides = as_overrides(study.overrides | settings)
    try:
        base = read_recipe(study.recipe, overrides, data)
    except BadInput as error:
        where = str(error.where).replace("--set ", "axes or overrides of the study, ")
        raise BadInput(
            error.what, got=error.got, wanted=error.wanted, where=where, todo=error.todo
        ) from error
    seeds: Sequence[int] = study.seeds or [base.seed]
    return [
        Point(
            first + i,
            settings,
            seed,
            base.model_copy(update={"seed": seed, "name": f"{study.name}-{first + i}"}),
        )
        for i, seed in enumerate(seeds)
    ]


def _beside(recipe: Path, study: Path) -> Path:
    """The recipe as the study names it; if it is not here, seen from the study's folder or the one above."""
    places = [recipe, study.parent / recipe, study.parent.parent / recipe]
    return next((place for place in places if place.is_file()), recipe)


def _choices(axis: list[Any] | Range | Axis) -> list[Any]:
    if isinstance(axis, Range):
        return [axis]
    return axis.values if isinstance(axis, Axis) else axis
