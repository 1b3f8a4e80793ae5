"""The published sets: scikit-learn's digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 as arrays."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.errors import BadInput

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, C, H, W) and labels (N,)."""


@dataclass(frozen=True)
class Loaded:
    """What a loader gives: pieces that the set itself keeps apart; `train` is always there."""

    classes: tuple[str, ...]
    train: Arrays
    validation: Arrays | None = None
    test: Arrays | None = None
    divisor: float = 255.0


def digits() -> Loaded:
    """1,797 scanned digits of 8x8 pixels in 17 grey levels, from scikit-learn's own files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = tuple(str(name) for name in digits.target_names)
    return Loaded(names, (digits.images[:, None], digits.target), divisor=16.0)


def idx_files(path: Path, name: str) -> Loaded:
    """MNIST's four idx files, below `path` the way torchvision keeps them, or right there."""
    from torchvision import datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file

    def part_files(part: str) -> list[str]:
        """The two files of a part, train or t10k."""
        return [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]

    files = part_files("train") + part_files("t10k")
    places = [path / name / "raw"]
    # The files of both sets have the same names: never read one set as the other.
    other = {"MNIST": "FashionMNIST", "FashionMNIST": "MNIST"}[name]
    if other not in (path.name, path.parent.name):
        places += [path / "raw", path]
    folder = next((p for p in places if all((p / f).is_file() for f in files)), None)
    if folder is None:
        raise BadInput(
            f"the {name} files are not there",
            got=_folder_content(files, places, path),
            wanted=f"{name}/raw/ with {', '.join(files)}, not compressed",
            where=path,
            todo="Put them there (gunzip them if they end in .gz) and pass the folder with DATA=path",
        )

    def read(part: str) -> Arrays:
        """Images (N, 1, H, W) and labels (N,) of a part."""
        images, labels = (folder / f for f in part_files(part))
        return (
            _parsed(images, lambda: read_image_file(str(images)).numpy()[:, None]),
            _parsed(labels, lambda: read_label_file(str(labels)).numpy()),
        )

    # torchvision names MNIST's classes "0 - zero"; the digit alone reads better in a table.
    classes = tuple(c.split(" - ")[0] for c in getattr(datasets, name).classes)
    return Loaded(classes, read("train"), test=read("t10k"))


def _folder_content(files: list[str], places: list[Path], path: Path) -> str:
    if not path.exists():
        return "no such folder"
    packed = any((p / f"{f}.gz").is_file() for p in places for f in files)
    return "only the compressed files (.gz)" if packed else "a folder without them"


def _parsed(file: Path, read: Callable[[], np.ndarray]) -> np.ndarray:
    """torchvision answers a damaged idx file with whichever error comes first."""
    try:
        return read()
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError, IndexError, OSError) as error:
        raise BadInput(
            "the data file is damaged",
            got=f"{type(error).__name__}: {error}".rstrip(": "),
            wanted="an idx file with as many bytes as its header says",
            where=file,
            todo="Fetch it again",
        ) from error


@dataclass(frozen=True)
class Binary:
    """The official binary version of a CIFAR: records of label bytes and 3,072 pixels (R, G, B planes).

    train, test: file -> records in it, and the SHA-1 of the published one.
    labels: bytes before the pixels; the last is the class.
    """

    folder: str
    archive: str
    train: Mapping[str, tuple[int, str]]
    test: Mapping[str, tuple[int, str]]
    names: str
    classes: int
    labels: int


CIFAR_BINARY: dict[str, Binary] = {
    "CIFAR10": Binary(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        {
            "data_batch_1.bin": (10_000, "aadd24acce27caa71bf4b10992e9e7b2d74c2540"),
            "data_batch_2.bin": (10_000, "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795"),
            "data_batch_3.bin": (10_000, "1dd00a74ab1d17a6e7d73e185b69dbf31242f295"),
            "data_batch_4.bin": (10_000, "aab85764eb3584312d3c7f65fd2fd016e36a258e"),
            "data_batch_5.bin": (10_000, "26e2849e66a845b7f1e4614ae70f4889ae604628"),
        },
        {"test_batch.bin": (10_000, "67eb016db431130d61cd03c7ad570b013799c88c")},
        "batches.meta.txt",
        10,
        1,
    ),
    "CIFAR100": Binary(
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        {"train.bin": (50_000, "e207cd2e05b73b1393c74c7f5e7bea451d63e08e")},
        {"test.bin": (10_000, "8fb6623e830365ff53cf14adec797474f5478006")},
        "fine_label_names.txt",
        100,
        2,
    ),
}


def cifar(path: Path, name: str) -> Loaded:
    """CIFAR from its binary version where that is there, else from the python batches: the same images in
    the same order.

    The python batches are pickles: torchvision opens them only if each file's MD5 is the published one, so
    nothing else is ever unpickled.
    """
    from torchvision import datasets

    binary = CIFAR_BINARY[name]
    for folder in (path / binary.folder, path):
        if folder.name == binary.folder and folder.is_dir():
            return _cifar_binary(folder, binary)
    kind: Any = getattr(datasets, name)
    root = path.parent if path.name == kind.base_folder else path
    files = [entry[0] for entry in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
    missing = [f for f in files if not (root / kind.base_folder / f).is_file()]
    if missing:
        got = f"no {', '.join(missing)}" if path.exists() else "no such folder"
        raise BadInput(
            f"the {name} files are not there",
            got=got,
            wanted=f"{kind.base_folder}/ with {', '.join(files)}, or {binary.folder}/ (the binary version)",
            where=path,
            todo=f"Unpack {kind.filename} or {binary.archive} there and pass the folder that holds "
            f"{kind.base_folder} or {binary.folder} with DATA=path",
        )
    try:
        train, test = (kind(root, train=flag, download=False) for flag in (True, False))
    except RuntimeError as error:
        raise BadInput(
            f"the {name} files are not the published ones, so they were not opened",
            got="another MD5 than torchvision lists",
            where=root / kind.base_folder,
            todo=f"Fetch {kind.filename} again and unpack it there",
        ) from error

    def arrays(part: Any) -> Arrays:
        """torchvision's part as images (N, C, H, W) and labels (N,)."""
        return np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets)

    return Loaded(tuple(train.classes), arrays(train), test=arrays(test))


def _cifar_binary(folder: Path, binary: Binary) -> Loaded:
    """The binary version in `folder`; every file must be the published one."""
    todo = f"Fetch {binary.archive} again and unpack it there"
    files = {**binary.train, **binary.test}
    missing = [name for name in (*files, binary.names) if not (folder / name).is_file()]
    if missing:
        wanted = ", ".join((*files, binary.names))
        raise BadInput(
            "the binary version of CIFAR is not whole",
            got=f"no {', '.join(missing)}",
            wanted=wanted,
            where=folder,
            todo=todo,
        )
    names = (folder / binary.names).read_text("utf-8", errors="replace").split()
    if len(names) != binary.classes:
        raise BadInput(
            "the class names are damaged",
            got=f"{len(names)} names",
            wanted="one a class and line",
            where=folder / binary.names,
            todo=todo,
        )
    train, test = (
        [_records(folder / name, *published, binary.labels, todo) for name, published in part.items()]
        for part in (binary.train, binary.test)
    )
    return Loaded(tuple(names), _joined(train), test=_joined(test))


def _records(file: Path, count: int, sha1: str, labels: int, todo: str) -> Arrays:
    """Images (N, 3, 32, 32) and classes (N,) of one file, which is read only if it is the published one."""
    width = labels + 3072
    size, wanted = file.stat().st_size, count * width
    if size != wanted:
        raise BadInput(
            "the data file is damaged",
            got=f"{size:,} bytes",
            wanted=f"{wanted:,} bytes: {count:,} records of {width:,}",
            where=file,
            todo=todo,
        )
    content = file.read_bytes()
    found = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if found != sha1:
        raise BadInput(
            "the data file is not the published one",
            got=f"SHA-1 {found}",
            wanted=sha1,
            where=file,
            todo=todo,
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, width)
    return records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1]


def _joined(parts: list[Arrays]) -> Arrays:
    """The files' records one after another, as arrays of their own."""
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return images, labels.astype(np.int64)
