"""Other compressors are asked about the last stage only, unless about all; and about none twice."""

from pathlib import Path

import pytest

from tersor.pipeline import run as runs
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.show.report import stage_table
from tersor.pipeline.stages.metrics import Ledger, StageMetrics
from tersor.pipeline.stages.store import Store

SHARING, VECTORS = {"stage": "sharing", "bits": 2}, {"stage": "vectors"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that went through other compressors, which here answer at once."""
    sizes: list[int] = []

    def answer(data: bytes) -> Ledger:
        sizes.append(len(data))
        return Ledger(gzip_bytes=3, zstd_bytes=2, xz_bytes=1, seconds=5.0)

    monkeypatch.setattr(runs, "size_ledger", answer)
    return sizes


def has_ledger(folder: Path, *more: dict[str, object], **how: str) -> list[bool]:
    """Of each stage of a tiny run, whether its metrics hold other compressors."""
    train = {"stage": "train", "epochs": 1}
    recipe = Recipe.model_validate(
        {"name": "tiny", "threads": 1, "model": "mnist", "data": {"limit": 20}, "stages": [train, *more]}
    )
    done = runs.compress(recipe, Store(folder), quiet=True, **how)  # type: ignore[arg-type]
    return [stage.has_ledger for stage in done.stages]


def test_only_the_last_stage_has_a_ledger(tmp_path: Path, asked: list[int]) -> None:
    assert has_ledger(tmp_path, SHARING) == [False, True]
    assert len(asked) == 1


def test_asked_for_all_every_stage_has_one_and_only_what_lacked_was_measured(
    tmp_path: Path, asked: list[int]
) -> None:
    has_ledger(tmp_path, SHARING)
    assert has_ledger(tmp_path, SHARING, ledger="all") == [True, True]
    assert len(asked) == 2


def test_a_cached_stage_that_becomes_the_last_gets_one(tmp_path: Path, asked: list[int]) -> None:
    has_ledger(tmp_path, SHARING, VECTORS)
    assert has_ledger(tmp_path, SHARING) == [False, True]
    assert len(asked) == 2


def test_asked_for_none_other_compressors_cost_nothing(tmp_path: Path, asked: list[int]) -> None:
    assert has_ledger(tmp_path, SHARING, ledger="none") == [False, False]
    assert asked == []


def test_nothing_is_asked_twice(tmp_path: Path, asked: list[int]) -> None:
    for _ in range(2):
        has_ledger(tmp_path, SHARING, ledger="all")
    assert len(asked) == 2


def test_a_damaged_ledger_is_made_again(tmp_path: Path, asked: list[int]) -> None:
    has_ledger(tmp_path)
    (path,) = tmp_path.glob(".stages/*/ledger.json")
    path.write_text("{")
    assert has_ledger(tmp_path) == [True]
    assert len(asked) == 2


def test_measuring_seconds_count_the_ledger(tmp_path: Path, asked: list[int]) -> None:
    has_ledger(tmp_path)
    assert StageMetrics.read(tmp_path / "tiny" / "01-train" / "metrics.json").measuring_seconds >= 5


def test_the_table_says_what_was_not_measured_and_how_to_get_it() -> None:
    known = {
        "seconds": 3.0,
        "measuring_seconds": 4.0,
        "onnx_bytes": 10,
        "packed_bytes": 5,
        "entropy_bytes": 4,
    }
    table = stage_table([{"name": "train", **known}])
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert [cells[name] for name in ("gzip", "zstd", "xz")] == [["–"]] * 3
    assert (cells["time"], cells["measuring"]) == (["3.00 s"], ["4.00 s"])
    assert "--ledger all" in str(table.caption)
    whole = stage_table([{**known, "gzip_bytes": 9, "zstd_bytes": 8, "xz_bytes": 7}])
    assert whole.caption is None
