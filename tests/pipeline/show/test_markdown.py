"""A Markdown table is one whatever its cells hold."""

import pytest

from tersor.pipeline.show.markdown import markdown_table, number_or_dash


def test_a_table_has_a_line_for_its_header_its_sides_and_each_row() -> None:
    text = markdown_table(("layer", "", "MACs"), [("fc1", "", 12), ("fc2", "x", 3)], "llr")
    assert text == "| layer | | MACs |\n|---|---|---:|\n| fc1 |  | 12 |\n| fc2 | x | 3 |"


@pytest.mark.parametrize(
    ("align", "line"), [("l", "|---|---|---|"), ("lr", "|---|---:|---:|"), ("rl", "|---:|---|---|")]
)
def test_the_last_side_holds_for_all_columns_that_follow(align: str, line: str) -> None:
    assert markdown_table("abc", [], align).splitlines()[1] == line


@pytest.mark.parametrize("cell", ["a | b", "a\nb", "a\r\n|\n", "|"])
def test_no_cell_ends_itself_or_its_row(cell: str) -> None:
    lines = markdown_table((cell, "b"), [(cell, "c")]).splitlines()
    assert len(lines) == 3
    assert [line.replace("\\|", "").count("|") for line in lines] == [3, 3, 3]


def test_a_missing_number_is_a_dash_and_a_zero_is_not() -> None:
    assert [number_or_dash(value, ".2f") for value in (None, 0.0, 1.234)] == ["-", "0.00", "1.23"]
