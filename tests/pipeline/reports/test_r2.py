"""R2's table: figures meet their settings, and what R2 did not measure stays empty."""

from pathlib import Path

import pytest
from trials import trial

from tersor.pipeline.reports import r2 as table_r2
from tersor.pipeline.study.file import read_study
from tersor.pipeline.study.trial import Trial


def record(setting: str, value: float, accuracy: float) -> Trial:
    metrics = {"sparsity_fraction": 0.67, "test_accuracy_fraction": accuracy, "packed_bytes": 123456}
    return trial(settings={setting: value}, metrics=metrics)


def rows() -> list[dict]:
    return [
        table_r2.row_of(table_r2.STD, record("sparsity.amount", 0.75, 0.9)),
        table_r2.row_of(table_r2.STD, record("sparsity.amount", 1.0, 0.8)),
        table_r2.row_of(table_r2.PERCENT, record("sparsity.amount", 0.6688, 0.7)),
        table_r2.row_of(table_r2.SHARING, record("sharing.bits", 3, 0.85)),
    ]


def test_r2s_figures_stand_beside_ours() -> None:
    found = [(row["accuracy_percent"], row["r2_accuracy_percent"]) for row in rows()]
    assert found == [(90.0, 83.14), (80.0, None), (70.0, 68.16), (85.0, 86.75)]


def test_markdown_has_a_line_a_row_and_dashes_where_r2_has_nothing() -> None:
    text = table_r2.markdown(rows())
    assert "| 0.75 | 67.00 | 90.00 | 123,456 | 66.88 | 83.14 |" in text
    assert "| 1 | 67.00 | 80.00 | 123,456 | - | - |" in text
    assert "| 3 | 67.00 | 85.00 | 123,456 | - | 86.75 |" in text


def test_picture_is_a_png(tmp_path: Path) -> None:
    table_r2.draw(rows(), tmp_path / "r2.png")
    assert (tmp_path / "r2.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("path", [table_r2.STD, table_r2.PERCENT, table_r2.SHARING])
def test_studies_are_sound_and_hold_r2s_settings(path: str) -> None:
    study = read_study(Path(path))
    (amounts,) = study.axes.values()
    wanted = {table_r2.STD: table_r2.R2_STD, table_r2.PERCENT: table_r2.R2_PERCENT}.get(
        path, table_r2.R2_SHARING
    )
    assert set(wanted) <= set(amounts)
