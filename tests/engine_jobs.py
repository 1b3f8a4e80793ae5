"""Jobs for tests of the engine: tiny trainings on digits with a network that does what its `mode` says."""

from pathlib import Path
from typing import Any

from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.study.job import Job

NET = """
import json, os, signal, time
from pathlib import Path

from torch import nn

HERE = Path(__file__).parent

def factory(mode="plain", width=4):
    if mode == "always" or (mode == "once" and (HERE / "marker").exists()):
        (HERE / "marker").unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "sleep":
        (HERE / f"sleeping-{os.getpid()}").touch()
        time.sleep(100)
    if mode in ("once", "raise"):  # fails before the export, which costs a new process ten seconds
        import threadpoolctl, torch
        pools = {p["prefix"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}
        environ = {n: v for n, v in os.environ.items() if n.endswith("_NUM_THREADS")}
        told = {"pools": pools, "torch": torch.get_num_threads(), "environ": environ}
        (HERE / "threads.json").write_text(json.dumps(told))
        raise ValueError("this network cannot be built")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def prepare(folder: Path) -> None:
    """Write the factory and what it looks at."""
    (folder / "net.py").write_text(NET)
    (folder / "marker").touch()
    (folder / "trials").mkdir()


def job(number: int, mode: str = "plain", threads: int = 1) -> Job:
    """A trial whose paths are all relative; its width makes it unlike the others."""
    arguments = {"mode": mode, "width": 4 + number}
    recipe: dict[str, Any] = {
        "name": f"t{number}",
        "threads": threads,
        "model": "net.py:factory",
        "arguments": arguments,
        "data": {"kind": "digits", "limit": 200},
        "stages": [{"stage": "train", "epochs": 1}],
    }
    plain = Recipe.model_validate(recipe).model_dump(mode="json")
    return Job(number, f"k{number}", arguments, plain, "runs", f"trials/k{number}.json", False)
