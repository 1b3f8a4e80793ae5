"""docs/settings.md: every setting of a recipe, read off the models that check recipes."""

import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tersor.pipeline.recipe import recipe as recipes
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.show.markdown import markdown_table

Row = tuple[str, str, str, str]
"""Name, values, default, what it is."""
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "items: at least"}

HEAD = """# Settings

Every setting of a recipe, with its default; written by `tersor recipe settings`. Unknown keys are errors,
with a suggestion. `--set stage.setting=value` (`SET=` in make) changes one, by the stage's `name`;
`base: other.yaml` makes [one recipe from another](how-it-works.md#one-recipe-from-another).
`tersor recipe plan` shows what would be done and what is cached; `tersor recipe schema` is for editors.

Exit codes: 0 all is well; 1 failed for a reason of its own (a training that diverged, a fault of tersor);
2 bad input; 3 a claim or gate does not hold; 4 something asked for is not there (a GPU, disk space);
75 another run holds the folder; 130 interrupted, run it again to go on.
"""


def settings_page() -> str:
    """Markdown: a table for the recipe, each section, each stage, and what they hold."""
    sections: dict[str, type[BaseModel]] = {"A recipe": Recipe}
    for name in ("data", "deploy", "gates"):
        section = Recipe.model_fields[name].annotation
        assert isinstance(section, type)
        sections[f"`{name}:`"] = section
    for kind, stage in (recipes.KINDS | {recipes.OWN: recipes.Own}).items():
        sections[f"Stage `{kind}`"] = stage
    for name, of in list(sections.items()):
        for field in of.model_fields.values():
            inner = _models(field.annotation) if name != "A recipe" else ()
            sections |= {f"`{model.__name__.lower()}:`": model for model in inner}
    return HEAD + "".join(_section(title, model) for title, model in sections.items())


def _section(title: str, model: type[BaseModel]) -> str:
    said = (model.__doc__ or "").split("\n\n")
    told = "\n\n".join(" ".join(part.split()) for part in said)
    rows = [_row(name, field) for name, field in model.model_fields.items() if name != "stage"]
    if model is recipes.Tune:
        rows, told = _beyond(model), told + " All settings of `train`, and with other defaults or besides:"
    table = markdown_table(("setting", "values", "default", ""), rows)
    return f"\n## {title}\n{told}\n\n{table}\n"


def _beyond(tune: type[BaseModel]) -> list[Row]:
    """The rows of `tune` that `train` lacks or has otherwise."""
    train = {name: _row(name, field) for name, field in recipes.Train.model_fields.items()}
    own = {name: _row(name, field) for name, field in tune.model_fields.items() if name != "stage"}
    return [row for name, row in own.items() if train.get(name) != row]


def _row(name: str, field: FieldInfo) -> Row:
    default = "needed" if field.is_required() else _default(field)
    words = [_type(field.annotation), *_limits(field)]
    return f"`{name}`", ", ".join(words), default, field.description or ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "its own defaults"
    if value is None:
        return "-"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _limits(field: FieldInfo) -> Iterator[str]:
    held = list(field.metadata)
    for part in (field.annotation, *get_args(field.annotation)):  # limits inside `Annotated[...] | None`
        held += [
            inner for meta in getattr(part, "__metadata__", ()) for inner in getattr(meta, "metadata", [meta])
        ]
    for limit in held:
        for key, words in LIMITS.items():
            if getattr(limit, key, None) is not None:
                yield f"{words} {getattr(limit, key):g}"


def _type(annotation: Any) -> str:
    """A type in words: what a YAML value may be."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in inner if part is not type(None))
    if origin is list:
        return "list" if inner == (Any,) else f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[0])}: {_type(inner[1])}"
    if origin is tuple:
        return " x ".join(_type(part) for part in inner)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _link(annotation)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "path" if getattr(annotation, "__name__", "") == "Path" else "any value")


def _link(model: type[BaseModel]) -> str:
    kind = next((kind for kind, stage in recipes.KINDS.items() if stage is model), None)
    if kind is not None:
        return f"[{kind}](#stage-{kind})"
    if model is recipes.Own:
        return f"[{recipes.OWN}](#stage-pathtofilepyfunction)"
    name = "data" if model is recipes.DataSettings else model.__name__.lower()
    return f"[{name}](#{name})"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
