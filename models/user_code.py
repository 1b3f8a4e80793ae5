"""A user's own Python file: what it is identified by, and a function of it. Knows no torch.

A file is identified by its bytes together with those of the modules of the user's that it imports: those
beside it, and those found on the path that are installed nowhere. Imports are read off the source, so that
nothing has to run to know whether something changed; what a file imports by a computed name is not seen.
"""

import ast
import contextlib
import difflib
import hashlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tersor.errors import BadInput
from tersor.files import digest_of, sha256_of

_INSTALLED = ("site-packages", "dist-packages")


PACKAGES = ("torchvision", "timm")
"""Before a colon these are packages, whose networks go by their names there."""


def is_package_place(place: str) -> bool:
    """Whether `place` names a network of a package: `torchvision:NAME`, `timm:NAME`."""
    return place.partition(":")[0] in PACKAGES and ":" in place


def is_file_place(place: str) -> bool:
    """Whether `place` names something in a file (`path/to/file.py:name`) rather than by a name of ours."""
    return (":" in place or place.endswith(".py")) and not is_package_place(place)


def file_of(place: str, *, of: str, what: str, where: str) -> Path:
    """The file of `path/to/file.py:name`.

    Args:
        place: file and name.
        of: whose file it is, `network` or `stage`, for the message.
        what: what is named there, `factory` or `function`, for the message.
        where: which setting says it, for the message.

    Raises:
        BadInput: no such file, or no name behind it.
    """
    path = Path(place.rpartition(":")[0] or place)
    if ":" not in place or not path.is_file():
        raise BadInput(
            f"the {of}'s file is missing or no {what} is named",
            got=place,
            wanted=f"path/to/file.py:{what}, with an existing file",
            where=where,
        )
    return path


def source_sha256(path: Path) -> str:
    """SHA-256 in hex of a file, and of the user's modules that it imports if there are any.

    Without such modules it is that of the file's bytes.

    Raises:
        OSError: the file cannot be read.
    """
    digest, helpers = sha256_of(path), imported_files(path)
    return digest if not helpers else digest_of([digest, *(sha256_of(file) for file in helpers)])


def imported_files(path: Path) -> list[Path]:
    """The user's own modules that a file imports, and those that they import, sorted by name.

    Raises:
        OSError: a file cannot be read.
    """
    seen: dict[Path, str] = {}
    todo = [(path.resolve(), "")]
    while todo:
        file, name = todo.pop()
        for module in _imports(file, name):
            imported = _own_file(module, path.resolve().parent)
            if imported is not None and imported not in seen and imported != path.resolve():
                seen[imported] = module
                todo.append((imported, module))
    return sorted(seen, key=lambda file: seen[file])


def load_function(place: str, *, of: str, what: str, where: str, hint: str) -> Callable[..., Any]:
    """The function of `path/to/file.py:name`, its file imported anew.

    The modules beside the file are found by it, and imported anew too where they have changed.

    Args:
        place, of, what, where: as for `file_of`.
        hint: what to do when the file has no such function.

    Raises:
        BadInput: no such file or function, or a file that fails when it is imported.
    """
    path, name = file_of(place, of=of, what=what, where=where), place.rpartition(":")[2]
    module = _imported(path, of)
    if not callable(getattr(module, name, None)):
        near = difflib.get_close_matches(name, [k for k, v in vars(module).items() if callable(v)], 1)
        raise BadInput(
            f"the file has no {what} called {name!r}",
            where=path,
            todo=f"Did you mean {near[0]!r}?" if near else hint,
        )
    return getattr(module, name)


def check_call(function: Callable[..., Any], given: dict[str, Any], what: str, where: str) -> None:
    """Check that a function takes these keyword arguments.

    Raises:
        BadInput: an argument it does not know, or one that is missing.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise BadInput(
            f"{what} does not take these arguments",
            got=f"{', '.join(sorted(given)) or 'none'} ({error})",
            wanted=", ".join(signature.parameters),
            where=where,
        ) from error


@contextlib.contextmanager
def beside(path: Path) -> Iterator[None]:
    """Let modules beside a file be imported; none of them stays from before it changed."""
    folder = path.resolve().parent
    if any(not file.is_file() or sha256_of(file) != digest for file, digest in _loaded.values()):
        for name in _loaded:  # all of them: one that did not change may hold values of one that did
            sys.modules.pop(name, None)
        _loaded.clear()
    for file in imported_files(path):
        _forget_namesake(file, folder)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            imported = getattr(sys.modules.get(name), "__file__", None)
            if imported and _is_own(Path(imported)):
                _loaded[name] = (Path(imported), sha256_of(Path(imported)))


_loaded: dict[str, tuple[Path, str]] = {}
"""Modules of the user's that were imported here -> the file that they came from and its SHA-256."""


def _imported(path: Path, owner: str) -> ModuleType:
    # A name of its own for each file: dataclasses and typing look their module up in sys.modules.
    name = f"tersor_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"the {owner}'s file is no Python source", where=path, wanted="a .py file")
    module = importlib.util.module_from_spec(spec)
    earlier = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with beside(path):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script may end the process when it is imported
        if earlier is None:
            del sys.modules[name]
        else:
            sys.modules[name] = earlier
        raise BadInput(
            f"the {owner}'s file fails when imported", got=f"{type(error).__name__}: {error}", where=path
        ) from error
    return module


def _imports(file: Path, name: str) -> list[str]:
    """Dotted names of what a file imports, those of `from x import y` with and without `y`."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []  # told when it is imported
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, parts), *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    # importing a.b.c imports a and a.b
    return list(dict.fromkeys(n.rsplit(".", k)[0] for n in names if n for k in range(n.count("."), -1, -1)))


def _own_file(name: str, folder: Path) -> Path | None:
    """The file of a module if it is the user's own: beside `folder`, or on the path and installed nowhere."""
    places: Sequence[str] = [str(folder), *(p or "." for p in sys.path)]
    spec = None
    for part in name.split("."):
        try:
            spec = importlib.machinery.PathFinder.find_spec(part, places)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin).resolve()
    return file if _is_own(file) else None


def _is_own(file: Path) -> bool:
    """Whether a file belongs to no library: not Python's, not installed, not tersor."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    ours = Path(__file__).resolve().parents[1]
    rooms = [ours / room for room in ("models", "export", "pipeline", "src")]
    file = file.resolve()
    if any(part in _INSTALLED for part in file.parts) or library in file.parents:
        return False
    return file.suffix == ".py" and not any(room in file.parents for room in rooms)


def _forget_namesake(file: Path, folder: Path) -> None:
    """Forget a module that was imported from elsewhere under the name that this file has beside `folder`."""
    try:
        parts = file.relative_to(folder).with_suffix("").parts
    except ValueError:
        return
    name = ".".join(parts).removesuffix(".__init__")
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None and Path(loaded).resolve() != file and _is_own(Path(loaded)):
        del sys.modules[name]
