"""The stage cache, and who holds a run's folder. What lies in that folder is run_folder.py's to know.

runs/.stages/<digest>/  finished stage results, shared by all runs; a stage that is under way works in
                        <digest>.partial and is renamed when done, so a finished folder is always whole;
                        ledger.json comes later, where other compressors were asked
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.errors import BadInput, TersorError, Unavailable
from tersor.files import lock, sha256_of, write_json, writing
from tersor.pipeline.stages.metrics import Ledger, StageMetrics

if TYPE_CHECKING:
    from tersor.models.network import Network

NETWORK, ONNX, METRICS = STAGE_FILES = ("network.safetensors", "model.onnx", "metrics.json")
"""What a finished stage consists of: the network, the same as plain ONNX, and what was measured."""
LEDGER = "ledger.json"
"""Beside these, where it was asked for: a file of its own, so that no finished file is ever changed."""
CHECKPOINT = "checkpoint.pt"
"""In a working folder: what an interrupted training goes on from."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its folder in the cache, and whether it had to be computed."""

    digest: str
    folder: Path
    reused: bool

    @property
    def metrics(self) -> StageMetrics:
        """What was measured after the stage, with the ledger where there is one."""
        measured, path = StageMetrics.read(self.folder / METRICS), self.folder / LEDGER
        if not measured.has_ledger and path.is_file():
            with contextlib.suppress(BadInput):  # damaged: it is made again when it is asked for
                return measured.with_ledger(Ledger.read(path))
        return measured

    def network(self) -> "Network":
        """The network the stage produced."""
        # imports torch: seconds, which a look at finished results need not cost
        from tersor.models.network import load

        return load(self.folder / NETWORK)

    @property
    def onnx(self) -> Path:
        """The network as plain ONNX, BatchNorm unfolded."""
        return self.folder / ONNX


class Store:
    """A root folder (`runs/`) with its stage cache."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.profiles = root, root / ".stages", root / ".profiles"

    def find(self, digest: str) -> StageResult | None:
        """A finished, undamaged stage, or None. A damaged one is moved out of the way.

        Raises:
            OSError: it is there but cannot be read, which does not make it damaged.
        """
        folder = self.cache / digest[:32]
        if not folder.is_dir():
            return None
        try:
            sums = json.loads((folder / "sums.json").read_text())
            whole = all(sha256_of(folder / name) == sums[name] for name in STAGE_FILES)
        except (FileNotFoundError, KeyError, ValueError):
            whole = False
        if not whole:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                folder.replace(aside)
            return None
        return StageResult(digest, folder, reused=True)

    def cached(
        self, digest: str, compute: Callable[[Path], None], waiting: Callable[[], None]
    ) -> StageResult:
        """A stage's result: the finished one, or what `compute` now writes into the folder it is given.

        Args:
            digest: of everything that decides the result.
            compute: writes `STAGE_FILES`; what an interrupted try left there is in the folder.
            waiting: called once when another process works on the same stage, which is then waited for.

        Raises:
            Unavailable: the cache cannot be written.
        """
        if (ready := self.find(digest)) is not None:
            return ready
        with self.working_folder(digest, waiting) as folder:
            if (ready := self.find(digest)) is not None:
                return ready  # another process finished it while this one waited
            compute(folder)
            return self.finish(digest, folder)

    def keep_ledger(self, result: StageResult, ledger: Ledger) -> None:
        """Lay what other compressors made of a finished stage's file beside it.

        Raises:
            Unavailable: the cache cannot be written.
        """
        folder = result.folder
        with lock(self._lock(result.digest), "the same stage", lambda: None), writing(folder):
            for left in folder.glob(f".{LEDGER}.*"):
                left.unlink()  # of a process that was killed while it wrote
            ledger.write(folder / LEDGER)

    def _lock(self, digest: str) -> Path:
        return self.cache / f"{digest[:32]}.lock"

    @contextlib.contextmanager
    def working_folder(self, digest: str, waiting: Callable[[], None]) -> Iterator[Path]:
        """The folder in which a stage works; what lies there from an interrupted try is kept.

        After an error only a checkpoint stays, and not even that when the stage would fail again.

        When another process works on the same stage, `waiting` is called once and then waits for it;
        look with `find` whether it has finished the stage.

        Raises:
            Unavailable: the folder cannot be written.
        """
        with writing(self.cache):
            self.cache.mkdir(parents=True, exist_ok=True)
        partial = self.cache / f"{digest[:32]}.partial"
        with lock(self._lock(digest), "the same stage", waiting), writing(partial):
            partial.mkdir(exist_ok=True)
            try:
                yield partial
            except Exception as error:
                hopeless = isinstance(error, TersorError) and not isinstance(error, Unavailable)
                _clear(partial, keep=() if hopeless else (CHECKPOINT,))
                raise
            with contextlib.suppress(OSError):
                partial.rmdir()  # still there and empty when another process had finished the stage

    def finish(self, digest: str, partial: Path) -> StageResult:
        """Turn a working folder into a finished result."""
        _clear(partial, keep=STAGE_FILES)
        write_json(partial / "sums.json", {name: sha256_of(partial / name) for name in STAGE_FILES})
        folder = self.cache / digest[:32]
        if folder.is_dir():  # another process was faster
            shutil.rmtree(partial)
        else:
            os.replace(partial, folder)
        return StageResult(digest, folder, reused=False)

    def run_folder(self, name: str) -> Path:
        """The folder of a run, made if absent.

        Raises:
            Unavailable: it cannot be written.
        """
        folder = self.root / name
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # what /proc answers
            raise Unavailable(
                "the folder cannot be made", where=folder, todo="Choose another folder"
            ) from error
        return folder

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[Path]:
        """Hold the folder of a run against other processes.

        Raises:
            Busy: another run holds it.
        """
        folder = self.run_folder(name)
        with writing(folder), lock(folder / ".lock", f"run {name!r}"):
            yield folder


def _clear(folder: Path, keep: Collection[str]) -> None:
    """Remove what is not to be kept, and the folder when nothing is left."""
    for entry in folder.iterdir():
        if entry.name not in keep:
            entry.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
