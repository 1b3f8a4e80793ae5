"""The only code that touches the run folder and the stage cache.

runs/<name>/            what a person looks at: a folder per stage, the final files, metrics.json
runs/.stages/<digest>/  finished stage results, shared by all runs; a stage that is under way works in
                        <digest>.partial and is renamed when done, so a finished folder is always whole
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.models.errors import BadInput, Busy, TersorError, Unavailable

if TYPE_CHECKING:
    from tersor.models.network import Network

STAGE_FILES = ("network.safetensors", "model.onnx", "metrics.json")
CHECKPOINT = "checkpoint.pt"
"""In a working folder: what an interrupted training goes on from."""


def digest_of(parts: Any) -> str:
    """SHA-256 in hex over plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


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
            whole = all(_sha256(folder / name) == sums[name] for name in STAGE_FILES)
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
        write_json(partial / "sums.json", {name: _sha256(partial / name) for name in STAGE_FILES})
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


def replace_with_link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` by a hard link, or a copy where links are not possible."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    if target.exists() and target.samefile(source):
        return  # renaming a link onto another link of the same file does nothing: the first would stay
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary name, then rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others may write the same file
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path, what: str, todo: str) -> Any:
    """Read JSON.

    Raises:
        BadInput: missing or damaged; `what` and `todo` go into the message.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{what} is missing", where=path, todo=todo) from error
    except (ValueError, OSError) as error:
        raise BadInput(f"{what} is damaged", got=str(error), where=path, todo=todo) from error


@contextlib.contextmanager
def lock(path: Path, what: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends.

    With `waiting`, a lock that somebody else holds is waited for, after one call of it.

    Raises:
        Busy: somebody else holds it, and no `waiting` was given.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if waiting is None:
                raise Busy(
                    f"another process is working on {what}", where=path, todo="Wait for it, or stop it"
                ) from error
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into errors for people.

    Raises:
        Unavailable: no space, read-only, no permission, or a file stands where a folder should be.
    """
    causes = {
        errno.ENOSPC: ("the disk is full", "Free some space and run again; finished stages are kept"),
        errno.EDQUOT: (
            "the disk quota is used up",
            "Free some space and run again; finished stages are kept",
        ),
        errno.EFBIG: ("a file would grow past the limit", "Raise the file size limit and run again"),
        errno.EROFS: ("the folder is on a read-only disk", "Choose another folder"),
        errno.EACCES: ("the folder may not be written", "Change its permissions or choose another"),
        errno.EPERM: ("the folder may not be written", "Change its permissions or choose another"),
        errno.ENOTDIR: ("a file stands where a folder should be", "Move it away or choose another folder"),
        errno.EEXIST: ("a file stands where a folder should be", "Move it away or choose another folder"),
    }
    try:
        yield
    except OSError as error:
        if error.errno not in causes:
            raise
        what, todo = causes[error.errno]
        place = error.filename2 or error.filename or where  # of a copy, where to
        raise Unavailable(what, got=error.strerror, where=place, todo=todo) from error


def _clear(folder: Path, keep: Collection[str]) -> None:
    """Remove what is not to be kept, and the folder when nothing is left."""
    for entry in folder.iterdir():
        if entry.name not in keep:
            entry.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
