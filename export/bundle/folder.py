"""What ships: a folder of files with manifest, checksums, model card and licence, swapped in whole."""

import ctypes
import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tersor.errors import BadInput, Unavailable
from tersor.export.bundle.card import model_card
from tersor.export.bundle.manifest import Artifact, Manifest
from tersor.files import sha256_of

__all__ = ["file_entry", "model_card", "read_manifest", "sha256_of", "write_bundle"]

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
NOT_STATED = "not stated"
SPDX_LICENCE = "SPDX-License-Identifier: Apache-2.0\nhttps://www.apache.org/licenses/LICENSE-2.0\n"


def write_bundle(folder: Path, files: Mapping[str, Path | bytes], manifest: Manifest) -> None:
    """Write `folder` whole: the files, manifest.json, LICENSE (of the weights, as the manifest says it),
    SHA256SUMS; or leave it as it was.

    Everything is put together in a hidden folder beside `folder`, which then takes its place in
    one step. What a killed run left there is cleared first.

    Args:
        folder: the bundle, such as `dist/digits`; an existing one is replaced.
        files: plain name -> file to copy, or its bytes. A `LICENSE` here replaces ours.
        manifest: written with its keys in the order of its fields.

    Raises:
        BadInput: a name with a folder in it, or one that this function writes itself.
        Unavailable: the folder or disk does not take the files; an existing bundle is intact.
    """
    for name in files:
        if Path(name).name != name or name in ("", ".", "..", MANIFEST, SUMS):
            raise BadInput("no file of this name goes into a bundle", got=repr(name), wanted="a plain name")
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    parts: dict[str, Path | bytes] = {
        "LICENSE": licence_of(manifest).encode(),
        **files,
        MANIFEST: text.encode(),
    }
    new = folder.with_name(f".{folder.name}.new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove(new)
        new.mkdir()
        for name, part in parts.items():
            _put(part, new / name)
        (new / SUMS).write_text("".join(f"{sha256_of(new / n)}  {n}\n" for n in sorted(parts)))
        _swap(new, folder)
    except OSError as error:
        raise Unavailable(
            "the bundle cannot be written, the one before it is intact",
            got=error.strerror or str(error),
            wanted="a writable folder with enough space",
            where=folder,
            todo="Free disk space or choose another folder",
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def file_entry(path: Path, kind: str) -> Artifact:
    """What the manifest says of a file before anything of it is measured: name, kind, bytes, SHA-256."""
    return Artifact(path.name, kind, path.stat().st_size, sha256_of(path))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, every claim of the type that it must have.

    Raises:
        BadInput: it is missing, no JSON, lacks keys, has wrong values, or names files outside the bundle.
    """
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            "there is no bundle here", got="no manifest.json", where=folder, todo="Run deploy first"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput("the manifest cannot be read", got=str(error), where=path) from error
    return Manifest.of(told, where=path)


def licence_of(manifest: Manifest) -> str:
    """What a bundle's LICENSE says: the weights' licence is the one the recipe stated."""
    licence = NOT_STATED if manifest.licence is None else manifest.licence
    if licence == "Apache-2.0":
        return licence_text()
    todo = "Ask whoever gave you these files, or set `licence:` in the recipe.\n"
    return f"Licence of the weights: {licence}.\n" + (todo if licence == NOT_STATED else "")


def licence_text() -> str:
    """The Apache licence, from the installed package or the checkout; its name and address otherwise."""
    checkout = Path(__file__).resolve().parents[2] / "LICENSE"
    found = [checkout] if checkout.is_file() else []
    try:
        packaged = importlib.metadata.files("tersor") or []
        found += [Path(str(f.locate())) for f in packaged if f.name == "LICENSE"]
    except importlib.metadata.PackageNotFoundError:
        pass
    texts = [path.read_text(encoding="utf-8") for path in found if path.is_file()]
    return next((text for text in texts if text.strip()), SPDX_LICENCE)


def _put(part: Path | bytes, target: Path) -> None:
    if isinstance(part, bytes):
        target.write_bytes(part)
    else:
        shutil.copyfile(part, target)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; what was there ends up under `new`'s name."""
    if not folder.exists():
        os.replace(new, folder)
        return
    if _exchange(new, folder):
        return
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders' names in one step (Linux's renameat2); False where that does not exist."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0
