"""Pages from the templates in `templates/`: one file each, everything put into it escaped."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.pipeline.show import units
from tersor.pipeline.show.manifest import at
from tersor.pipeline.show.palette import DARK, LIGHT

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def template(name: str) -> "Template":
    """A template of the package; everything put into it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # By file and not by package: the rooms are links inside the package.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(units=units, at=at, light=LIGHT, dark=DARK)
    return environment.get_template(name)
