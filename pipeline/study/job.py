"""A trial as plain data, which a worker on any machine can be handed."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """A trial for a worker.

    record: where its record goes, a JSON file written whole. key: what identifies it.
    depth: run only this many stages (a common prefix); None: all, and write the record.
    """

    number: int
    key: str
    settings: dict[str, Any]
    recipe: dict[str, Any]
    runs: str
    record: str
    test: bool
    depth: int | None = None
