"""Every PNG is drawn in one place: whole or not at all, the same anywhere, and nothing is left behind."""

from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from tersor.pipeline.show.picture import AXES, BARS, PLAIN, Style, png


def draw(path: Path, style: Style = BARS, dpi: int = 110) -> None:
    """Three bars."""
    with png(path, (3, 2), style=style, dpi=dpi) as figure:
        figure.subplots().bar(range(3), (1, 2, 3))


def test_a_drawing_that_fails_leaves_the_old_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), png(path, (3, 2)):
        _ = 1 / 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("style", [BARS, AXES, PLAIN])
def test_a_style_ends_with_its_picture(style: Style, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw(tmp_path / "a.png", style)
    assert dict(matplotlib.rcParams) == before


def test_a_left_axis_is_drawn_where_it_is_asked_for(tmp_path: Path) -> None:
    sides = []
    for style in (BARS, AXES):
        with png(tmp_path / "a.png", (3, 2), style=style) as figure:
            sides.append(figure.subplots().spines["left"].get_visible())
    assert sides == [False, True]


def test_the_file_has_the_size_asked_for_and_does_not_name_the_version_that_drew_it(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", dpi=130)
    assert matplotlib.__version__.encode() not in (tmp_path / "a.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (390, 260)
        assert "Software" not in image.info
