"""What ships: a folder of files with manifest, checksums, model card and licence, swapped in whole."""

import ctypes
import importlib.metadata
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor.errors import BadInput, Unavailable
from tersor.export.bundle.card import model_card
from tersor.export.timing.providers import TARGETS
from tersor.files import sha256_of

__all__ = ["file_entry", "model_card", "read_manifest", "recommend", "sha256_of", "write_bundle"]

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
REQUIRED = ("name", "baseline", "artifacts", "compression_ratio", "input", "parity")
"""Manifest keys without which nothing can be verified."""

NOT_STATED = "not stated"
SPDX_LICENCE = "SPDX-License-Identifier: Apache-2.0\nhttps://www.apache.org/licenses/LICENSE-2.0\n"


def write_bundle(folder: Path, files: Mapping[str, Path | bytes], manifest: Mapping[str, Any]) -> None:
    """Write `folder` whole: the files, manifest.json, LICENSE (of the weights, as the manifest says it),
    SHA256SUMS; or leave it as it was.

    Everything is put together in a hidden folder beside `folder`, which then takes its place in
    one step. What a killed run left there is cleared first.

    Args:
        folder: the bundle, such as `dist/digits`; an existing one is replaced.
        files: plain name -> file to copy, or its bytes. A `LICENSE` here replaces ours.
        manifest: written as given, keys in its order.

    Raises:
        BadInput: a name with a folder in it, or one that this function writes itself.
        Unavailable: the folder or disk does not take the files; an existing bundle is intact.
    """
    for name in files:
        if Path(name).name != name or name in ("", ".", "..", MANIFEST, SUMS):
            raise BadInput("no file of this name goes into a bundle", got=repr(name), wanted="a plain name")
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
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


def file_entry(path: Path, kind: str) -> dict[str, Any]:
    """The manifest's first keys for a file: `file` (its name), `kind`, `bytes`, `sha256`."""
    return {"file": path.name, "kind": kind, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle, its outline checked.

    Raises:
        BadInput: it is missing, no JSON, lacks keys, or names files outside the bundle.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            "there is no bundle here", got="no manifest.json", where=folder, todo="Run deploy first"
        ) from error
    except (OSError, ValueError) as error:
        raise BadInput("the manifest cannot be read", got=str(error), where=path) from error
    missing = [k for k in REQUIRED if not isinstance(manifest, dict) or k not in manifest]
    if missing:
        raise BadInput(
            "the manifest is incomplete",
            got=f"no {', '.join(missing)}",
            wanted="a tersor manifest",
            where=path,
        )
    try:
        entries = [manifest["baseline"], *manifest["artifacts"]]
        names = [*(str(e["file"]) for e in entries), str(manifest["parity"]["file"])]
        complete = all({"kind", "bytes", "sha256"} <= set(e) for e in entries)
    except (TypeError, KeyError) as error:
        raise BadInput("the manifest is damaged", got=repr(error), where=path) from error
    if not complete or any(Path(name).name != name or name in ("", "..") for name in names):
        raise BadInput(
            "the manifest is damaged",
            got=f"entries for {', '.join(names)}",
            wanted="plain file names, each with kind, bytes and sha256",
            where=path,
        )
    return manifest


def recommend(
    artifacts: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    *,
    default: str = "model.onnx",
    failed: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Which file to take per target: {target: {file, batch, speedup, why}}.

    The fastest at batch 1 (fewest threads measured) among files that are distinguishably faster
    than the baseline and passed their gates; of those whose intervals overlap with the fastest's,
    the closest to the network, then the smallest. Otherwise `default`.

    Args:
        artifacts: manifest entries with `latency` rows.
        targets: keys of `TARGETS`.
        default: the file of the baseline's precision.
        failed: names of files that broke a gate.
    """
    return {target: _recommended(artifacts, target, default, failed) for target in targets}


def licence_of(manifest: Mapping[str, Any]) -> str:
    """What a bundle's LICENSE says: the weights' licence is the one the recipe stated."""
    licence = str(manifest.get("licence", NOT_STATED))
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


def _recommended(
    artifacts: Sequence[Mapping[str, Any]], target: str, default: str, failed: Collection[str]
) -> dict[str, Any]:
    rows = [
        (artifact, row)
        for artifact in artifacts
        for row in artifact.get("latency", ())
        if row["provider"] == TARGETS[target] and row["batch"] == 1
    ]
    if not rows:
        why = f"nothing was measured on {target} at batch 1"
        return {"file": default, "batch": 1, "speedup": None, "why": why}
    threads = min(row["threads"] for _, row in rows)
    rows = [(a, r) for a, r in rows if r["threads"] == threads]
    faster = [
        (a, r) for a, r in rows if r["distinguishable"] and r["speedup"] > 1 and a["file"] not in failed
    ]
    if not faster:
        own = next((r["speedup"] for a, r in rows if a["file"] == default), None)
        why = "no file that passed its gates is distinguishably faster than the baseline"
        return {"file": default, "batch": 1, "speedup": own, "why": why}
    best = max((r for _, r in faster), key=lambda r: r["speedup"])
    close = [(a, r) for a, r in faster if r["speedup_high"] >= best["speedup_low"]]
    chosen, row = min(close, key=lambda pair: (pair[0]["max_abs_diff"], pair[0]["bytes"]))
    why = (
        f"fastest at batch 1, {threads} thread(s): {row['p50_ms']:.4g} ms, {row['speedup']:.2f}x the baseline"
    )
    if len(close) > 1:
        why += "; of the files as fast, the closest to the network, then the smallest"
    return {"file": chosen["file"], "batch": 1, "speedup": row["speedup"], "why": why}


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
