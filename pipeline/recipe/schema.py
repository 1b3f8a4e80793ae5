"""The JSON schema of recipes as they are written, for editors that complete and check YAML by it."""

from typing import Any

from tersor.pipeline.recipe.recipe import KINDS, DataSettings, Deploy, Gates, Recipe
from tersor.pipeline.recipe.settings import Settings

SECTIONS: dict[str, type[Settings]] = {"data": DataSettings, "deploy": Deploy, "gates": Gates}

BASE = {
    "type": "string",
    "minLength": 1,
    "description": "the recipe that this one changes: a path seen from this file's folder, "
    "else from where the command runs",
}


def recipe_schema() -> dict[str, Any]:
    """What may stand in a recipe file: a recipe, or `base:` and what is different, stages by their names.

    Settings of a stage of one's own are its function's to check: any are allowed.
    """
    whole = Recipe.model_json_schema()
    models = whole.pop("$defs")
    for model in (*SECTIONS.values(), *KINDS.values()):
        models[f"{model.__name__}Changes"] = _changes(models[model.__name__])
    based = _changes(whole)
    keys = based["properties"]
    for name, section in SECTIONS.items():
        keys[name] = _or_null({"$ref": f"#/$defs/{section.__name__}Changes"})
    kinds = {kind: {"$ref": f"#/$defs/{model.__name__}Changes"} for kind, model in KINDS.items()}
    by_name = {
        "type": "object",
        "description": "name of a stage of the base -> settings that are different",
        # a stage that is called as a kind is taken for one; others may be of any kind, or the user's own
        "properties": kinds,
        "additionalProperties": {"anyOf": [*kinds.values(), {"type": "object"}]},
    }
    keys["stages"] = {"anyOf": [*keys["stages"]["anyOf"], by_name]}
    keys["base"] = BASE
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A tersor recipe",
        "type": "object",
        "properties": {"base": BASE},
        "if": {"required": ["base"]},
        "then": {"$ref": "#/$defs/RecipeChanges"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": models | {"Recipe": whole, "RecipeChanges": based},
    }


def _changes(schema: dict[str, Any]) -> dict[str, Any]:
    """What may be said over a base: nothing is needed, and null takes the base's value out."""
    properties = {name: _or_null(value) for name, value in schema["properties"].items()}
    return {**schema, "properties": properties, "required": []}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
