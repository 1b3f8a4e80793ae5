"""Frozen dataclasses that lie in JSON files: read once, each value checked against the type of its field."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from tersor.errors import BadInput
from tersor.files import read_json, write_json

REST = "rest"
"""Name of the field that takes the keys which are no fields."""
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
MOST_NESTED, MOST_BITS, LONGEST_SHOWN = 32, 64, 60
"""Of untrusted JSON: levels of nesting, bits of a whole number. And characters of a value in an error."""


@dataclass(frozen=True)
class Record:
    """A frozen dataclass that lies in a JSON file; its fields are the keys, in their order.

    Fields are str, int, float, bool, Any, X | None, tuple[X, ...], Mapping[str, X] and dataclasses of these.
    One that is None and by default None is left out of the file. Keys that are no fields go into a field
    `rest` where there is one and come back from there, and are left out otherwise.
    """

    WHAT: ClassVar[str] = ""
    """What it is, in words."""
    WANTED: ClassVar[str | None] = None
    """What is asked for where a key is missing."""
    TODO: ClassVar[str] = ""
    """What helps when it is missing or damaged."""
    UNTRUSTED: ClassVar[bool] = False
    """Whether strangers may have written it: then no part of it may be deeply nested, huge, or no number."""

    @classmethod
    def read(cls, path: Path, what: str = "", todo: str = "") -> Self:
        """Read and check one.

        Raises:
            BadInput: missing, damaged, or not what this version of tersor writes.
        """
        told = read_json(path, what or cls.WHAT, todo or cls.TODO)
        return cls.of(told, what, path, todo)

    @classmethod
    def of(cls, told: Any, what: str = "", where: object = None, todo: str = "") -> Self:
        """One of plain data.

        Args:
            told: what `json.loads` gave.
            what, where, todo: for the error: what it is, where it lies, what helps.

        Raises:
            BadInput: a key is missing, or its value has another type; the message names the key.
        """
        try:
            if cls.UNTRUSTED:
                _check_plain(told)
            return _record(cls, told)
        except _Unfit as unfit:
            place = ", ".join(str(part) for part in (where, _path(unfit.place)) if part)
            raise BadInput(
                f"{what or cls.WHAT} is damaged",
                got=unfit.got,
                wanted=unfit.wanted,
                where=place or None,
                todo=todo or cls.TODO,
            ) from None

    def write(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As plain data: dicts, lists, text, numbers."""
        return dict(_keys(self))


class _Unfit(Exception):
    """A value that is not what its place asks for. place: the keys that lead there, outermost first."""

    def __init__(self, got: str, wanted: str | None, place: Sequence[Any] = ()) -> None:
        super().__init__(got)
        self.got, self.wanted, self.place = got, wanted, [*place]


def _record(kind: Any, told: Any) -> Any:
    """A dataclass of a mapping; one that is no Record has its defaults for code, not for files."""
    if not isinstance(told, Mapping):
        raise _Unfit(_shown(told), "a mapping")
    types, known = _types(kind), [entry for entry in fields(kind) if entry.name != REST]
    for entry in known:
        if entry.name not in told and not (issubclass(kind, Record) and _has_default(entry)):
            raise _Unfit(f"no {entry.name}", getattr(kind, "WANTED", None))
    given = [entry.name for entry in known if entry.name in told]
    values = {name: _part(types[name], told[name], name) for name in given}
    if REST in types:
        values[REST] = {key: value for key, value in told.items() if key not in values}
    try:
        return kind(**values)
    except ValueError as error:  # what __post_init__ asks for beyond types
        raise _Unfit("other values", str(error)) from None


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _has_default(entry: "Field[Any]") -> bool:
    return entry.default is not MISSING or entry.default_factory is not MISSING


def _part(kind: Any, told: Any, key: str | int) -> Any:
    """A value inside another one."""
    try:
        return _value(kind, told)
    except _Unfit as unfit:
        unfit.place.insert(0, key)
        raise


def _value(kind: Any, told: Any) -> Any:
    """What was told as a value of a field's type; lists become tuples."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return told
    if origin in (Union, UnionType):
        return _one_of(parts, told)
    if origin is tuple:
        if not isinstance(told, list | tuple):
            raise _Unfit(_shown(told), "a list")
        return tuple(_part(parts[0], part, index) for index, part in enumerate(told))
    if origin is Mapping:
        if not isinstance(told, Mapping):
            raise _Unfit(_shown(told), "a mapping")
        return {key: _part(parts[1], part, key) for key, part in told.items()}
    if is_dataclass(kind):
        return _record(kind, told)
    if not _is(kind, told):
        raise _Unfit(_shown(told), WORDS[kind])
    return told


def _one_of(kinds: tuple[Any, ...], told: Any) -> Any:
    if told is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1:
        return _value(others[0], told)
    if not any(_is(kind, told) for kind in others):
        raise _Unfit(_shown(told), " or ".join(WORDS[kind] for kind in others))
    return told


def _is(kind: type, told: Any) -> bool:
    """Python's bool is an int, JSON's true is no number; JSON's 1 is a float too."""
    if isinstance(told, bool):
        return kind is bool
    return isinstance(told, int | float) if kind is float else isinstance(told, kind)


def _check_plain(told: Any) -> None:
    """Refuse what later code would stumble over, without stumbling: no recursion here."""
    left: list[tuple[Any, tuple[Any, ...]]] = [(told, ())]
    while left:
        value, place = left.pop()
        if len(place) > MOST_NESTED:
            raise _Unfit(f"more than {MOST_NESTED} levels of nesting", None, place[:1])
        if isinstance(value, Mapping):
            left += [(key, place) for key in value]
            left += [(part, (*place, key)) for key, part in value.items()]
        elif isinstance(value, list):
            left += [(part, (*place, index)) for index, part in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise _Unfit(_shown(value), "a number", place)
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise _Unfit("a huge number", f"at most {MOST_BITS} bits", place)
        elif isinstance(value, str) and not _is_text(value):
            raise _Unfit(_shown(value), "text that UTF-8 can hold", place)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _keys(record: Any) -> Iterator[tuple[str, Any]]:
    """A dataclass's keys and plain values, those that were not known last."""
    for entry in fields(record):
        value = getattr(record, entry.name)
        if entry.name != REST and not (value is None and entry.default is None):
            yield entry.name, _plain(value)
    for key, value in getattr(record, REST, {}).items():
        yield key, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if is_dataclass(value):
        return dict(_keys(value))
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _path(place: Sequence[Any]) -> str:
    """Where something is: `artifacts[0].bytes`."""
    steps = [f"[{key}]" if isinstance(key, int) else f".{_name(str(key))}" for key in place]
    return "".join(steps).removeprefix(".")


def _name(key: str) -> str:
    plain = key.isascii() and key.replace(".", "_").isidentifier() and len(key) <= LONGEST_SHOWN
    return key if plain else _shown(key)


def _shown(value: Any) -> str:
    """A value in an error: as JSON, short, on one line."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = json.dumps(value, default=str)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."
