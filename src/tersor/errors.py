"""Errors written for the person at the keyboard, each with its exit code."""

from functools import partial
from typing import Any


class TersorError(Exception):
    """A failure told in one paragraph: what, got, wanted, where, what to do.

    Args:
        what: what went wrong, a sentence without the final full stop.
        got: what was found.
        wanted: what would have been right.
        where: the file, stage, layer or setting concerned.
        todo: what the reader can do about it.

    Every part but `what` may be left out; `str(error)` is the paragraph.
    """

    exit_code = 1
    """1: failed for a reason of its own (NaN in training, our own bug)."""
    at_once = False
    """Whether a command must end without the clean-up of libraries, which would hang."""

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        wanted: object = None,
        where: object = None,
        todo: str | None = None,
    ) -> None:
        self.what, self.got, self.wanted, self.where, self.todo = what, got, wanted, where, todo
        parts = [what.rstrip(".") + "."]
        parts += [f"Got {got}."] if got is not None else []
        parts += [f"Wanted {wanted}."] if wanted is not None else []
        parts += [f"Where: {where}."] if where is not None else []
        parts += [todo if todo.endswith("?") else todo.rstrip(".") + "."] if todo else []
        super().__init__(" ".join(parts))

    def __reduce__(self) -> Any:
        """The same error in another process."""
        parts = (self.got, self.wanted, self.where)
        got, wanted, where = (None if part is None else str(part) for part in parts)  # others may not travel
        return partial(type(self), got=got, wanted=wanted, where=where, todo=self.todo), (self.what,)


class BadInput(TersorError):
    """Bad input or usage: recipe, missing data, damaged file, hostile checkpoint."""

    exit_code = 2


class FormatError(BadInput):
    """A packed file that cannot be decoded; the message names the place."""


class ClaimBroken(TersorError):
    """A gate or a verified claim does not hold: accuracy, parity, latency, size, hash."""

    exit_code = 3


class Unavailable(TersorError):
    """The environment lacks something asked for: a GPU, disk space, a writable folder."""

    exit_code = 4


class Busy(TersorError):
    """Another run holds the folder."""

    exit_code = 75
