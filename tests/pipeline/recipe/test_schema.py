"""The JSON schema accepts what tersor accepts and refuses the mistakes that an editor should underline."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tersor.pipeline.recipe.schema import recipe_schema

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
RESOLVED = sorted((ROOT / "results").glob("*/recipe.yaml"))
WHOLE: dict[str, Any] = {"name": "x", "model": "mnist", "stages": [{"stage": "train"}, {"stage": "tune"}]}
BASED: dict[str, Any] = {"base": "x.yaml", "name": "y"}


def accepts(recipe: object) -> bool:
    return Draft202012Validator(recipe_schema()).is_valid(recipe)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("path", [*RECIPES, *RESOLVED], ids=lambda path: "-".join(path.parts[-2:]))
def test_recipes_as_written_and_as_resolved_fit_the_schema(path: Path) -> None:
    Draft202012Validator(recipe_schema()).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "recipe",
    [
        WHOLE,
        {"base": "x.yaml"},
        {**BASED, "stages": WHOLE["stages"]},
        {**BASED, "stages": {"tune": {"epochs": 3, "distill": None}}},
        {**BASED, "stages": {"polish": {"bits": 3}}},
        {**BASED, "gates": None, "deploy": {"batches": None}, "arguments": {"width": None}},
        {**WHOLE, "stages": [{"stage": "train"}, {"stage": "mine.py:prune", "amount": [1, "b"]}]},
        {**BASED, "stages": {"prune": {"amount": [1, "b"]}}},
    ],
)
def test_what_may_be_written_fits(recipe: dict[str, Any]) -> None:
    assert accepts(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"name": "x", "stages": [{"stage": "train"}]},
        {**WHOLE, "sead": 1},
        {**WHOLE, "stages": {"tune": {"epochs": 3}}},
        {**WHOLE, "stages": [{"stage": "train", "epoch": 3}]},
        {**WHOLE, "stages": [{"stage": "trian"}]},
        {**WHOLE, "stages": [{"stage": "train", "epochs": 0}]},
        {**WHOLE, "stages": [{"stage": "train", "epochs": None}]},
        {**WHOLE, "gates": {"max_byte": 3}},
        {**WHOLE, "gates": None},
        {"base": 3},
        {"base": ""},
        {**BASED, "sead": 1},
        {**BASED, "gates": {"max_byte": 3}},
        {**BASED, "data": {"kind": "cifar"}},
        {**BASED, "stages": {"tune": {"epoch": 3}}},
        {**BASED, "stages": {"tune": {"epochs": "many"}}},
        {**BASED, "stages": {"polish": None}},
        {**BASED, "stages": [{"stage": "train", "epoch": 3}]},
    ],
)
def test_mistakes_do_not_fit(recipe: dict[str, Any]) -> None:
    assert not accepts(recipe)
