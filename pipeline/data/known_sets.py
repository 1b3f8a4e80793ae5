"""The published sets: scikit-learn's digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 as arrays."""

from collections.abc import Callable
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


def cifar(path: Path, name: str) -> Loaded:
    """The python batches of CIFAR. They are pickles: torchvision opens them only if each file's
    MD5 is the published one, so nothing else is ever unpickled.
    """
    from torchvision import datasets

    kind: Any = getattr(datasets, name)
    root = path.parent if path.name == kind.base_folder else path
    files = [entry[0] for entry in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
    missing = [f for f in files if not (root / kind.base_folder / f).is_file()]
    if missing:
        got = f"no {', '.join(missing)}" if path.exists() else "no such folder"
        wanted = f"{kind.base_folder}/ with {', '.join(files)}"
        todo = (
            f"Unpack {kind.filename} there and pass the folder that holds {kind.base_folder} with DATA=path"
        )
        raise BadInput(f"the {name} files are not there", got=got, wanted=wanted, where=path, todo=todo)
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
