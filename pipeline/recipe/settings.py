"""What all settings have in common, and those of a stage."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageSettings(Settings):
    """Base of the settings of a stage. A subclass with `stage: Literal["kind"]` is a stage of recipes.

    stage: the kind; name: what this one is called in the recipe, unique there.
    """

    if TYPE_CHECKING:  # every kind declares its own, with its literal and default
        stage: str
        name: str

    begins: ClassVar[bool] = False
    """Whether a recipe begins with such a stage, and has it nowhere else."""

    def undone_by(self, later: "StageSettings") -> str | None:
        """Why a stage may not come after this one: it would undo what this one made. None: it may."""
        return None


def would_not_hold(made: StageSettings) -> str:
    """Why `structure` may not follow what prunes, shares or rounds weights."""
    return (
        "`structure` comes before what prunes, shares or rounds weights: what it rebuilds would "
        f"not hold what `{made.name}` has made"
    )
