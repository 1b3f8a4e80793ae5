"""Files that are whole or not there: hashed, written aside and renamed, locked; refusals in words."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor.errors import BadInput, Busy, Unavailable


def digest_of(parts: Any) -> str:
    """SHA-256 in hex over plain data; what JSON does not know counts by its `str`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces.

    Raises:
        OSError: it is not there or cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; at the end that file takes the place of `path` in one step.

    After an error it is removed, and `path` is as it was. Two processes that write the same file do not meet.
    A device or a pipe, such as /dev/stdout, is written to as it is.

    Raises:
        OSError: the file cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())  # a rename must not outlive the contents it promises
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file whole or not at all; text is UTF-8, what that cannot hold becomes `?`.

    Raises:
        OSError: the file cannot be written; an existing one is as it was.
    """
    with written_aside(path) as aside:
        aside.write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a header, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


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


def replace_with_link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` by a hard link, or a copy where links are not possible."""
    if target.exists() and target.samefile(source):
        return  # renaming a link onto another link of the same file does nothing: the first would stay
    with written_aside(target) as aside:
        aside.unlink(missing_ok=True)
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)


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
def made_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, made if missing; refusals to write become words.

    Raises:
        Unavailable: it cannot be written.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        yield path


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
        cause, todo = causes[error.errno]
        place = error.filename2 or error.filename or where  # of a copy, where to
        raise Unavailable(cause, got=error.strerror, where=place, todo=todo) from error
