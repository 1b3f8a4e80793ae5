"""A case of bad input: what is damaged, what is run, what must come out; and how a case is run."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from story.harness import Outcome, Server, contents, leftovers, tiny_recipe, write_recipe

Prepare = Callable[[Path], Sequence[object]]
"""Given a folder with a finished run and bundle called `tiny`: does the damage, returns the arguments."""


@dataclass(frozen=True)
class Case:
    """One bad input.

    name: a few words.
    code: the exit code it must end with.
    says: fragments the message must hold: what is wrong, where, and what to do.
    prepare: does the damage, returns the command line.
    around: holds while the command runs (a lock, a folder made read-only).
    options: of Server.start.
    may_add: patterns of files that may be new afterwards.
    must_not_exist: a file that must not be made.
    """

    name: str
    code: int
    says: tuple[str, ...]
    prepare: Prepare
    around: Callable[[Path], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    options: Mapping[str, Any] = field(default_factory=dict)
    may_add: tuple[str, ...] = ()
    must_not_exist: str | None = None


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    outcome: Outcome
    lost: list[str]
    added: list[str]
    leftovers: list[str]
    forbidden: bool


def run_case(case: Case, finished: Path, folder: Path, server: Server) -> Result:
    """Run a case in `folder`, which becomes a copy of `finished`, and compare the files before and after."""
    shutil.copytree(finished, folder)
    arguments = case.prepare(folder)
    before = contents(folder)
    with case.around(folder):
        outcome = server.run(*arguments, cwd=folder, **case.options)
    after = contents(folder)
    added = [p for p in after if p not in before and not any(fnmatch(p, m) for m in case.may_add)]
    lost = [p for p in before if after.get(p) != before[p]]
    left = [p for p in leftovers(folder) if not any(fnmatch(p, m) for m in case.may_add)]
    forbidden = case.must_not_exist is not None and (folder / case.must_not_exist).exists()
    return Result(outcome, lost, added, left, forbidden)


def compress(*options: object, **changes: Any) -> Prepare:
    """Run compress with a changed recipe of the same name as the finished run's."""

    def prepare(folder: Path) -> Sequence[object]:
        return ["compress", write_recipe(folder, tiny_recipe(**changes)).name, *options]

    return prepare


def deploy(*options: object, **changes: Any) -> Prepare:
    """Run deploy with a changed recipe of the same name as the finished run's."""

    def prepare(folder: Path) -> Sequence[object]:
        return ["deploy", write_recipe(folder, tiny_recipe(**changes)).name, *options]

    return prepare


QUICK = {"batches": [1], "threads": [1], "seconds_per_model": 0.02, "int8": False, "lowbit": False}
"""`deploy` settings for cases that go through to the end: no export, little timing."""


def train(**settings: Any) -> list[dict[str, Any]]:
    """The stages of a recipe that only trains, for one epoch unless told otherwise."""
    return [{"stage": "train", "epochs": 1, **settings}]


def with_file(name: str, text: str | bytes, prepare: Prepare) -> Prepare:
    """`prepare`, after a file was written."""

    def first_write(folder: Path) -> Sequence[object]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return prepare(folder)

    return first_write


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """A folder without permission to write. (Commands of these tests obey it even when root runs them.)"""
    mode = path.stat().st_mode
    path.chmod(0o555)
    try:
        yield
    finally:
        path.chmod(mode)
