"""Records say what is in a file: each value has the type of its field, or the error names the key."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tersor.errors import BadInput
from tersor.records import Record


@dataclass(frozen=True)
class Part:
    """Not a Record: its default is for code."""

    size: int
    scale: float = 1.0


@dataclass(frozen=True)
class Whole(Record):
    """One of every type of field."""

    WHAT: ClassVar[str] = "the whole"
    TODO: ClassVar[str] = "Make it again"

    name: str
    loss: float
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part | None]
    limit: int | str | None
    anything: Any = 0
    note: str | None = None


@dataclass(frozen=True)
class Open(Record):
    """One that keeps what it does not know."""

    name: str
    rest: Mapping[str, Any] = field(default_factory=dict)


WHOLE: dict[str, Any] = {
    "name": "x",
    "loss": 1,
    "parts": [{"size": 1, "scale": 2.0}],
    "by_name": {"a": {"size": 2, "scale": 3}, "b": None},
    "limit": None,
    "anything": [{"deep": [1, 2]}],
}


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    found = Whole.of(WHOLE)
    assert found.parts == (Part(1, 2.0),)
    assert found.by_name["a"] == Part(2, 3)
    found.write(tmp_path / "w.json")
    assert json.loads((tmp_path / "w.json").read_text()) == WHOLE
    assert Whole.read(tmp_path / "w.json") == found


def test_only_what_is_none_by_default_is_left_out() -> None:
    assert "limit" in Whole.of(WHOLE).to_json()
    assert "note" not in Whole.of(WHOLE).to_json()
    assert Whole.of(WHOLE | {"note": "n"}).to_json()["note"] == "n"


def test_unknown_keys_are_left_out_or_kept_in_rest() -> None:
    assert "colour" not in Whole.of(WHOLE | {"colour": "red"}).to_json()
    told = {"name": "x", "rest": 1, "colour": {"red": []}}
    assert Open.of(told).rest == {"rest": 1, "colour": {"red": []}}
    assert Open.of(told).to_json() == told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 1}, "Got 1. Wanted text. Where: name. Make it again."),
        ({"loss": True}, "Got true. Wanted a number. Where: loss."),
        ({"limit": 1.5}, "Got 1.5. Wanted a whole number or text. Where: limit."),
        ({"parts": [{"size": 1}]}, "Got no scale. Where: parts[0]."),
        (
            {"by_name": {"a b": {"size": "y", "scale": 1}}},
            'Wanted a whole number. Where: by_name."a b".size.',
        ),
    ],
)
def test_a_wrong_value_is_told_by_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        Whole.of(WHOLE | change)
    assert str(caught.value).startswith("the whole is damaged. ")
    assert words in str(caught.value)


@pytest.mark.parametrize("told", [None, [], "x", 3, {}])
def test_what_is_no_such_mapping_is_told_with_its_file(told: Any, tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match=r"it is damaged.*Where: .*w\.json\. Ask\.") as caught:
        Whole.read(tmp_path / "w.json", "it", "Ask")
    assert caught.value.exit_code == 2


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the whole is missing.*Make it again"):
        Whole.read(tmp_path / "w.json")


def test_our_own_files_may_hold_a_loss_that_is_no_number() -> None:
    assert math.isnan(Whole.of(WHOLE | {"loss": math.nan}).loss)
