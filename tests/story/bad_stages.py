"""Stages of the user's own that are missing, fail, take other settings or return something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from story.cases import Case, compress, train

GOOD = """
from pydantic import BaseModel
from tersor import Network

class Settings(BaseModel):
    factor: float = 0.5

def soften(network: Network, settings: Settings) -> Network:
    return network
"""


def own(code: str | None, stage: str = "mine.py:soften", **settings: Any) -> Callable[[Path], Any]:
    """compress with mine.py as a second stage."""

    def prepare(folder: Path) -> Any:
        if code is not None:
            (folder / "mine.py").write_text(code)
        return compress(stages=[*train(), {"stage": stage, **settings}])(folder)

    return prepare


CASES = [
    Case(
        "own stage whose file is missing",
        2,
        (
            "the stage's file is missing or no function is named",
            "nowhere.py:soften",
            "path/to/file.py:function",
        ),
        own(None, "nowhere.py:soften"),
    ),
    Case(
        "own stage whose function is missing",
        2,
        ("the file has no function called 'softn'", "mine.py", "Did you mean 'soften'?"),
        own(GOOD, "mine.py:softn"),
    ),
    Case(
        "own stage that fails on import",
        2,
        ("the stage's file fails when imported", "ZeroDivisionError", "mine.py"),
        own("1 / 0"),
    ),
    Case(
        "own stage with an unknown setting",
        2,
        ("unknown key 'facter'", "stage `mine.py:soften`", "Did you mean 'factor'?"),
        own(GOOD, facter=1.0),
    ),
    Case(
        "own stage with a wrong value",
        2,
        ("'much'", "valid number", "stages.1.factor"),
        own(GOOD, factor="much"),
    ),
    Case(
        "own stage that returns something else",
        2,
        (
            "the stage did not return a network",
            "Got a int",
            "stage `soften`, mine.py:soften",
            "return network",
        ),
        own("def soften(network):\n    return 3\n"),
    ),
    Case(
        "own stage that fails",
        2,
        ("the stage failed", "KeyError: 'nowhere'", "stage `soften`, mine.py:soften"),
        own("def soften(network):\n    return network.tensors['nowhere']\n"),
    ),
    Case(
        "own stage that returns another number of outputs",
        2,
        ("outputs do not fit the classes", "(2, 10)"),
        own(
            "from tersor import Network\n\ndef soften(network):\n"
            "    return Network.of('mnist', input_shape=network.input_shape, classes=7)\n"
        ),
    ),
    Case(
        "own stage that asks for what is not given",
        2,
        ("asks for what a stage is not given", "network, teacher", "mine.py:soften"),
        own("def soften(network, teacher):\n    return network\n"),
    ),
    Case(
        "own stage whose settings are no model",
        2,
        ("says no pydantic model", "settings: MySettings", "mine.py:soften"),
        own("def soften(network, settings: dict):\n    return network\n"),
    ),
]
