"""A stage of the user's own: a function in a file, `stage: path/to/file.py:function`."""

import difflib
import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tersor.errors import BadInput
from tersor.models.user_code import is_file_place, load_function
from tersor.pipeline.recipe.settings import StageSettings

OFFERED = ("network", "settings", "data", "seed", "device", "baseline", "tell")
"""What a stage's function may ask for, by the names of its parameters."""


class Own(StageSettings):
    """A stage of your own: a function in a file, with settings that its own pydantic model checks.

    The function takes `network` and, where it has parameters of these names, `settings` (annotated with a
    pydantic model), `data`, `seed`, `device`, `baseline` and `tell`; it returns the network, or the network
    and a dict of what it has to tell. Its settings stand in the recipe beside `stage` and `name`. Before the
    training it is tried on the fresh network and a few images; `function.rehearse = False` leaves that out.
    """

    model_config = ConfigDict(extra="allow")

    stage: str = Field(pattern=r".\.py:.", description="path/to/file.py:function")
    name: str = Field("", pattern=r"^[a-z0-9._-]*$", description="default: that of the function")

    @model_validator(mode="after")
    def _checked(self) -> "Own":
        given = dict(self.__pydantic_extra__ or {})
        checked = checked_settings(self.stage, given)
        plain = checked.model_dump(mode="json") if checked is not None else {}
        object.__setattr__(self, "__pydantic_extra__", plain)
        if not self.name:
            object.__setattr__(self, "__dict__", {**self.__dict__, "name": name_of(self.stage)})
            self.__pydantic_fields_set__.add("name")
        return self

    @property
    def own_settings(self) -> BaseModel | None:
        """The settings as the function's own model has them; None where it takes none."""
        return checked_settings(self.stage, dict(self.__pydantic_extra__ or {}))


def load_stage(place: str) -> Callable[..., Any]:
    """The function of a stage of the user's.

    Raises:
        BadInput: no such file or function, a file that fails when it is imported, or a function that asks for
            something that stages are not given.
    """
    function = load_function(
        place,
        of="stage",
        what="function",
        where="setting `stage`",
        hint="Name a function that takes a network and returns one",
    )
    parameters = inspect.signature(function).parameters
    fixed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD,)]
    unknown = [name for name in fixed if name not in OFFERED]
    if unknown or "network" not in parameters:
        raise BadInput(
            "the stage's function asks for what a stage is not given",
            got=", ".join(parameters) or "no parameters",
            wanted=f"`network` and any of {', '.join(OFFERED[1:])}",
            where=place,
        )
    return function


def checked_settings(place: str, given: dict[str, Any]) -> BaseModel | None:
    """Settings of a stage of the user's, checked by the model that its parameter `settings` names.

    Raises:
        BadInput: the stage cannot be loaded, or takes no such setting.
        pydantic.ValidationError: a setting has a wrong value.
    """
    function = load_stage(place)
    model = _model_of(function, place)
    fields = {} if model is None else model.model_fields
    known = {name for key, field in fields.items() for name in (key, field.alias) if name}
    allows = model is not None and model.model_config.get("extra") == "allow"
    for key in given:
        if key not in known and not allows:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            raise BadInput(
                f"unknown key {key!r}",
                wanted=f"one of {', '.join(sorted(known))}" if known else "no settings: it takes none",
                where=f"stage `{place}`",
                todo=f"Did you mean {near[0]!r}?" if near else None,
            )
    return None if model is None else model.model_validate(given)


def name_of(stage: str) -> str:
    """What a stage of the user's is called where the recipe does not say: as its function."""
    return stage.rpartition(":")[2].lower().replace("_", "-").strip("-")


def is_own(stage: str) -> bool:
    """Whether a kind of stage is a user's own."""
    return is_file_place(stage)


def _model_of(function: Callable[..., Any], place: str) -> type[BaseModel] | None:
    if "settings" not in inspect.signature(function).parameters:
        return None
    try:
        model = typing.get_type_hints(function).get("settings")
    except Exception as error:  # names in a user's annotations may fail in any way
        raise BadInput(
            "the annotations of the stage's function cannot be read",
            got=f"{type(error).__name__}: {error}",
            where=place,
        ) from error
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise BadInput(
            "the parameter `settings` of the stage's function says no pydantic model",
            got=getattr(model, "__name__", model),
            wanted="an annotation such as `settings: MySettings`, MySettings being a pydantic.BaseModel",
            where=place,
        )
    return model
