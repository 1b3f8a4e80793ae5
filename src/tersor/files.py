"""Files that are whole or not there: written aside and renamed, locked, hashed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tersor.errors import BadInput, Busy, Unavailable


def digest_of(parts: Any) -> str:
    """SHA-256 in hex over plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file in hex, None when it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
