"""A colour has one name in one place, by day and by night."""

import re
from pathlib import Path

from tersor.pipeline.show.palette import DARK, LIGHT

PIPELINE = Path(__file__).parents[3] / "pipeline"


def test_no_colour_is_written_outside_the_palette() -> None:
    files = [*PIPELINE.rglob("*.py"), *PIPELINE.rglob("*.j2")]
    coloured = {f.name for f in files if re.search(r"#[0-9a-fA-F]{6}\b", f.read_text())}
    assert coloured == {"palette.py"}


def test_light_and_dark_name_the_same_colours() -> None:
    assert list(LIGHT) == list(DARK)


def test_every_variable_that_a_page_uses_is_a_colour_of_both_palettes() -> None:
    text = "".join(f.read_text() for f in (PIPELINE / "show" / "templates").glob("*.j2"))
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", text)) - {"t", "h", "own"}  # set where they are used
    assert len(used) > 10
    assert used <= set(LIGHT)
