"""Run tersor commands the way a user does: each in a process of its own, in a folder of its own."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SECONDS = 240.0
"""After this long a command counts as hung and is killed."""

QUIET_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "140", "CUDA_VISIBLE_DEVICES": ""}

MODEL_FILES = (
    "baseline.onnx",
    "model.onnx",
    "model.int8.onnx",
    "model.lowbit.onnx",
    "model.tsr",
    "parity.npz",
)
"""What must have the same bytes when the same recipe runs again."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: its exit code, minus the signal that killed it."""

    code: int
    stdout: str
    stderr: str

    @property
    def message(self) -> str:
        """The lines of stderr from the first that starts with `tersor:` on; progress lines come before."""
        lines = self.stderr.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("tersor:")]
        return "\n".join(lines[starts[0] :]) if starts else ""


AS_QUIET = (
    "import runpy; from tersor.export.timing import benchmark, clock; "
    "clock.Signs.busy = lambda *_, **__: None; benchmark.MOST_SITTINGS = benchmark.FEWEST_SITTINGS; "
    "runpy.run_module('tersor.pipeline', run_name='__main__', alter_sys=True)"
)
"""The command as it is, but that it takes the machine for quiet: beside other tests it would time nothing."""


def tersor(*arguments: object, cwd: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run `python -m tersor.pipeline ...` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", AS_QUIET, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **QUIET_ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@dataclass
class Running:
    """A command under way."""

    server: "Server"
    pid: int
    output: tempfile.TemporaryDirectory[str] = field(repr=False)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Wait until it ends."""
        code = self.server.ask({"wait": self.pid, "seconds": seconds})["code"]
        texts = [Path(self.output.name, name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        self.output.cleanup()
        return Outcome(code, *texts)

    def alive(self) -> bool:
        """Whether the process still works (a zombie does not)."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    def send_when(self, ready: Callable[[], Any], number: signal.Signals = signal.SIGKILL) -> None:
        """Poll until `ready()` is true, then send a signal; an error if the process ends before that."""
        until = time.monotonic() + SECONDS
        while not _calm(ready):
            if not self.alive() or time.monotonic() > until:
                raise AssertionError(f"ended before the moment came: {self.wait()}")
            time.sleep(0.002)
        os.kill(self.pid, number)


def _calm(ready: Callable[[], Any]) -> Any:
    """`ready()`, or False when a folder vanished while it looked."""
    with contextlib.suppress(OSError):
        return ready()
    return False


class Server:
    """Forks commands from a process that has imported torch and the others already."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HERE / "fork_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **QUIET_ENVIRONMENT},
            text=True,
        )
        self.ready = False

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, return the answer."""
        assert self.process.stdin
        if not self.ready:
            self.ready = self._answer()["ready"]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the server of commands ended; tests/story/fork_server.py says why on stderr")
        return json.loads(line)

    def start(
        self,
        *arguments: object,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        file_limit_bytes: int | None = None,
        kill_at_rename: int | None = None,
        no_space_at: int | None = None,
        kill_at_file: int | None = None,
    ) -> Running:
        """Start a command.

        Args:
            arguments: what follows `tersor` on the command line.
            cwd: its folder.
            environment: variables to add.
            file_limit_bytes: no file may grow past this (RLIMIT_FSIZE), as on a disk that fills up.
            kill_at_rename: the process gets SIGKILL when it is about to make this rename, counted from 1.
            no_space_at: from this opening of a file for writing on, the disk is full (ENOSPC).
            kill_at_file: the process gets SIGKILL when it opens this file for writing, counted from 1.
        """
        output = tempfile.TemporaryDirectory()
        request = {
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd),
            "stdout": f"{output.name}/stdout",
            "stderr": f"{output.name}/stderr",
            "environment": dict(environment or {}),
            "file_limit_bytes": file_limit_bytes,
            "kill_at_rename": kill_at_rename,
            "no_space_at": no_space_at,
            "kill_at_file": kill_at_file,
        }
        return Running(self, self.ask({"start": request})["pid"], output)

    def run(self, *arguments: object, cwd: Path, **options: Any) -> Outcome:
        """Start a command and wait for it; options as for `start`."""
        return self.start(*arguments, cwd=cwd, **options).wait()

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)


NO_CLOCK = {"int8_operators": "weighted", "int8_layout": "plain"}
"""Settings under which the clock decides nothing: bytes are then the same wherever they are made."""


def tiny_recipe(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A recipe with every kind of step, as short as it can be while the network still learns.

    Args:
        name: of the run and the bundle.
        changes: top-level keys to replace.
    """
    tune = {"stage": "tune", "epochs": 1}
    stages = [
        {"stage": "train", "epochs": 2, "batch_size": 64, "learning_rate": 0.1},
        {"stage": "structure", "sparsity": 0.5, "align": 16},
        {**tune, "name": "tune-structure"},
        {"stage": "sparsity", "amount": 1.0},
        {**tune, "name": "tune-sparsity"},
        {"stage": "sharing", "bits": 4, "values": 15},
        {**tune, "name": "tune-sharing"},
    ]
    recipe = {
        "name": name,
        "seed": 0,
        "threads": 1,
        "model": "mnist",
        "arguments": {"batch_norm": True, "dropout": [0.1, 0.3]},
        "data": {"kind": "digits"},
        "stages": stages,
        "deploy": {"batches": [1, 8], "threads": [1], "seconds_per_model": 0.05, **NO_CLOCK},
    }
    return {**recipe, **changes}


def write_recipe(folder: Path, recipe: Mapping[str, Any]) -> Path:
    """Write `<name>.yaml` into a folder; returns its path."""
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by path; lock files, which are empty, are left out."""
    files = [
        p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock" and p.name != ".lock"
    ]
    return {str(p.relative_to(folder)): sha256(p) for p in files}


def stage_times(runs: Path) -> dict[str, int]:
    """When each file of a finished stage was written, in ns: unchanged while a stage is not repeated."""
    files = [p for p in (runs / ".stages").rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {str(p.relative_to(runs)): p.stat().st_mtime_ns for p in files if ".partial" not in str(p)}


def leftovers(folder: Path) -> list[str]:
    """Files and folders that only an unfinished piece of work would leave."""
    marks = (".tmp", ".part", ".partial", ".new", ".old")
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(marks))
