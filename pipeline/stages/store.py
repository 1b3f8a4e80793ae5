"""The only code that touches the run folder and the stage cache.

runs/<name>/            what a person looks at: a folder per stage, the final files, metrics.json
runs/.stages/<digest>/  finished stage results, shared by all runs; a stage that is under way works in
                        <digest>.partial and is renamed when done, so a finished folder is always whole
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.errors import TersorError, Unavailable
from tersor.files import lock, replace_with_link, sha256_of, write_json, writing

if TYPE_CHECKING:
    from tersor.models.network import Network

STAGE_FILES = ("network.safetensors", "model.onnx", "metrics.json")
CHECKPOINT = "checkpoint.pt"
"""In a working folder: what an interrupted training goes on from."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its folder in the cache, and whether it had to be computed."""

    digest: str
    folder: Path
    reused: bool

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured after the stage."""
        return json.loads((self.folder / "metrics.json").read_text())

    def network(self) -> "Network":
        """The network the stage produced."""
        # imports torch: seconds, which a look at finished results need not cost
        from tersor.models.network import load

        return load(self.folder / "network.safetensors")

    @property
    def onnx(self) -> Path:
        """The network as plain ONNX, BatchNorm unfolded."""
        return self.folder / "model.onnx"


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
        with lock(self.cache / f"{digest[:32]}.lock", "the same stage", waiting), writing(partial):
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


def show_stage(folder: Path, result: StageResult) -> None:
    """Put a stage's result where a person looks for it."""
    folder.mkdir(exist_ok=True)
    for file in STAGE_FILES:
        replace_with_link(result.folder / file, folder / file)


@contextlib.contextmanager
def new_contents(run: Path) -> Iterator[Path]:
    """A folder to be filled with a run's files, which then take the place of those of the run before.

    While they do, metrics.json is absent (it goes first and comes last), so that files of two runs
    are never taken for one.
    """
    new = run / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        (run / "metrics.json").unlink(missing_ok=True)
        for entry in run.iterdir():
            if entry.is_dir() and entry.name[:2].isdigit():  # a stage's folder
                shutil.rmtree(entry)
        for entry in sorted(new.iterdir(), key=lambda e: e.name == "metrics.json"):
            target = run / entry.name
            target.unlink(missing_ok=True)  # renaming a link onto another link of the same file does nothing
            os.replace(entry, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _clear(folder: Path, keep: Collection[str]) -> None:
    """Remove what is not to be kept, and the folder when nothing is left."""
    for entry in folder.iterdir():
        if entry.name not in keep:
            entry.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
