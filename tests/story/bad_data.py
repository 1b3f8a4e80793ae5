"""Data that are not there, damaged, or not what the recipe or the network expects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from story.cases import Case, Prepare, compress, deploy, train


def images(folder: Path, *, size: tuple[int, int] = (8, 8), mode: str = "L", classes: str = "ab") -> Path:
    """A folder of twelve random images a class; size is (width, height)."""
    rng = np.random.default_rng(0)
    depth = () if mode == "L" else (3,)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 256, (size[1], size[0], *depth), dtype=np.uint8)
            Image.fromarray(pixels, mode).save(folder / name / f"{index:02d}.png")
    return folder


def idx(path: Path, array: np.ndarray) -> None:
    """Write an array of bytes the way MNIST is stored."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def mnist(folder: Path, *, label: int = 9, shorten: int = 0) -> Path:
    """MNIST's four files with forty images each; `label` is the last label, `shorten` bytes are cut off."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = np.arange(40) % 10
        labels[-1] = label
        idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (40, 28, 28)))
        idx(raw / f"{part}-labels-idx1-ubyte", labels)
    cut = raw / "train-images-idx3-ubyte"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size - shorten])
    return folder


def with_images(change: Any = None, data: dict[str, Any] | None = None, **folder_options: Any) -> Prepare:
    """compress on a folder of images, after `change(folder)` damaged it."""

    def prepare(folder: Path) -> Sequence[object]:
        images(folder / "pics", **folder_options)
        if change:
            change(folder / "pics")
        settings = {"kind": "folder", "path": "pics", **(data or {})}
        return compress(data=settings, stages=train(), arguments={})(folder)

    return prepare


def with_mnist(**options: Any) -> Prepare:
    """compress on files in MNIST's form."""

    def prepare(folder: Path) -> Sequence[object]:
        mnist(folder / "sets", **options)
        return compress("--data", "sets", data={"kind": "mnist"}, stages=train(), arguments={})(folder)

    return prepare


def odd_one(size: tuple[int, int] = (8, 8), mode: str = "L") -> Any:
    """Put one image of another size or mode among the others."""
    return lambda pics: Image.new(mode, size).save(pics / "b" / "05.png")


def changed_after_the_run(folder: Path) -> Sequence[object]:
    """A finished run on images, one of which changes before deploy; returns the deploy."""
    (folder / "runs/tiny/metrics.json").write_text(
        (folder / "runs/tiny/metrics.json").read_text().replace('"data_sha256": "', '"data_sha256": "0')
    )
    return deploy()(folder)


CASES = [
    Case(
        "data folder not there",
        2,
        ("image folder is not there", "no such folder", "Where: nowhere", "DATA=path"),
        compress("--data", "nowhere"),
    ),
    Case(
        "data folder not given",
        2,
        ("the data is not there", "'mnist'", "DATA=path"),
        compress(data={"kind": "mnist"}),
    ),
    Case(
        "a file where the data folder should be",
        2,
        ("image folder is not there", "Got a file", "Where: tiny.yaml"),
        compress("--data", "tiny.yaml"),
    ),
    Case(
        "MNIST not there",
        2,
        ("MNIST files are not there", "no such folder", "Where: nowhere", "DATA=path"),
        compress("--data", "nowhere", data={"kind": "mnist"}),
    ),
    Case(
        "CIFAR-10 not there",
        2,
        ("CIFAR10 files are not there", "data_batch_1", "Where: runs", "DATA=path"),
        compress("--data", "runs", data={"kind": "cifar10"}),
    ),
    Case(
        "unknown kind of data",
        2,
        ("Got 'mnits'", "'mnist'", "data.kind"),
        compress(data={"kind": "mnits"}),
    ),
    Case(
        "an image of another size",
        2,
        ("another size", "9x7 pixels", "8x8", "pics/b/05.png", "`resize: true`"),
        with_images(odd_one(size=(7, 9))),
    ),
    Case(
        "image size other than asked for",
        2,
        ("another size", "Got 8x8", "Wanted 16x16", "pics/a/00.png", "`image_size`"),
        with_images(data={"image_size": [16, 16]}),
    ),
    Case(
        "an image of another channel count",
        2,
        ("another channel count", "3 channel(s)", "Wanted 1", "pics/b/05.png", "`channels`"),
        with_images(odd_one(mode="RGB")),
    ),
    Case(
        "channel count other than asked for",
        2,
        ("another channel count", "3 channel(s)", "Wanted 1", "pics/a/00.png", "`resize: true`"),
        with_images(data={"channels": 1}, mode="RGB"),
    ),
    Case(
        "channel count other than the set's",
        2,
        ("another shape than asked for", "1 channel(s)", "3 channel(s)", "digits", "`channels`"),
        compress(data={"kind": "digits", "channels": 3}),
    ),
    Case(
        "an image that cannot be read",
        2,
        ("an image cannot be read", "pics/b/05.png", "Replace or remove"),
        with_images(lambda pics: (pics / "b" / "05.png").write_bytes(b"no picture")),
    ),
    Case(
        "an image that is cut off",
        2,
        ("an image cannot be read", "pics/a/03.png", "Replace or remove"),
        with_images(lambda pics: (pics / "a/03.png").write_bytes((pics / "a/03.png").read_bytes()[:60])),
    ),
    Case(
        "one class only",
        2,
        ("at least two classes", "1 class folder(s): a", "Where: pics"),
        with_images(classes="a"),
    ),
    Case(
        "a class without images",
        2,
        ("holds no image", "pics/c", "remove the folder"),
        with_images(lambda pics: (pics / "c").mkdir()),
    ),
    Case(
        "images too small for the network",
        2,
        ("image is too small for this network", "2 pixels a side", "Where: conv1", "larger images"),
        with_images(size=(2, 2)),
    ),
    Case(
        "labels outside the class count",
        2,
        ("a label is outside the class count", "label 12 at image 39", "0 to 9 (10 classes)", "Where: sets"),
        with_mnist(label=12),
    ),
    Case(
        "data file cut off",
        2,
        ("the data file is damaged", "train-images-idx3-ubyte", "Fetch it again"),
        with_mnist(shorten=100),
    ),
    Case(
        "fewer training images than classes",
        2,
        ("limit is too small", "Got 5", "10"),
        compress(data={"kind": "digits", "limit": 5}),
    ),
    Case(
        "data changed between compress and deploy",
        2,
        ("the data have changed since the run", "SHA-256", "run `tersor compress` again"),
        changed_after_the_run,
    ),
]
