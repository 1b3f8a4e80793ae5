"""Data sets in memory: train, validation and test images as uint8 arrays, split by seed.

Only numpy is imported here; scikit-learn, torchvision and Pillow wait until a kind needs them,
so that digits work on a machine without torch.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.errors import BadInput
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.data import known_sets
from tersor.pipeline.data.arrays import pairs_of, pixels_of
from tersor.pipeline.data.known_sets import Arrays, Loaded
from tersor.pipeline.data.pixel_statistics import preprocessing_of

if TYPE_CHECKING:
    from tersor.pipeline.recipe.recipe import Recipe

KINDS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder")
HANDED_OVER = "arrays"
"""The kind of data that were handed over in Python: no file tells where they are."""


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (N, C, H, W), pixels as stored; labels: int64 (N,), 0 to classes - 1."""

    images: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def first(self, count: int) -> "Split":
        """The first `count` images, or all where there are fewer."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, split; nothing in it is augmented or normalised. Compare two by `digest()`.

    name: the kind it was loaded as.
    classes: the class names, in the order of the labels.
    preprocessing: mean and standard deviation are those of the training pixels, per channel,
        rounded to 4 decimals so that a manifest can print them without loss; or what was asked for.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    validation: Split
    test: Split

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @classmethod
    def of(
        cls,
        train: Any,
        test: Any,
        validation: Any = None,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> "Data":
        """Data that are handed over in Python.

        Args:
            train, test, validation: each (images, labels) as numpy or torch arrays, a dataset of (image,
                label), or a loader of such batches. Images are whole numbers 0 to 255, or these / 255, or
                these normalised by `mean` and `std`; (N, C, H, W), (N, H, W, C) or (N, H, W).
            classes: names in the order of the labels; default: the dataset's own `classes`, or numbers.
            mean, std: of the preprocessing, per channel, of pixels / 255; default: of the training pixels.
            validation_fraction: of the training images become validation, where that is not given.
            seed: of that split.

        Raises:
            BadInput: images or labels that cannot be read, do not pair up, or do not fit each other.
        """
        sources = {"train": train, "validation": validation, "test": test}
        pairs = {name: pairs_of(part, name) for name, part in sources.items() if part is not None}
        arrays = {n: (pixels_of(x, mean, std, n), np.asarray(y).reshape(-1)) for n, (x, y) in pairs.items()}
        names = classes if classes is not None else getattr(train, "classes", None)
        count = 1 + max(int(labels.max(initial=0)) for _, labels in arrays.values())
        class_names = tuple(map(str, names if names is not None else range(count)))
        splits = {n: checked_split(*pair, classes=class_names, where=n) for n, pair in arrays.items()}
        if validation is None:
            rng = np.random.default_rng(seed)
            splits["train"], splits["validation"] = _cut(splits["train"], validation_fraction, rng)
        parts = (splits["train"], splits["validation"], splits["test"])
        _check_every_class(class_names, *parts, "train")
        pre = preprocessing_of(splits["train"].images, 255.0, mean, std, "train")
        data = cls(HANDED_OVER, class_names, pre, *parts)
        _check_shapes(data, None, None, "train, validation, test")
        return data

    def digest(self) -> str:
        """Hex SHA-256 over classes, preprocessing, pixels, labels and who is in which split."""
        head = {"name": self.name, "classes": self.classes, "preprocessing": asdict(self.preprocessing)}
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            sha.update(f"{name}:{split.images.shape}".encode())
            sha.update(np.ascontiguousarray(split.images).data)
            sha.update(np.ascontiguousarray(split.labels).data)
        return sha.hexdigest()


def load_data(
    kind: str,
    path: Path | None = None,
    *,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.25,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    limit: int | None = None,
    resize: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """Load a data set and split it, the same way for the same seed.

    Args:
        kind: one of `KINDS`.
        path: the folder with the data; not needed for digits.
        seed: of the stratified split.
        validation_fraction: share of the images outside the test split that become validation;
            not used where the set brings its own.
        test_fraction: share of all images that become test; not used where the set brings its own.
        image_size: (height, width) in pixels that the images must have; default: what they have.
        channels: 1 (grey) or 3 (RGB) that the images must have; default: what they have.
        limit: keep at most so many training images, every class in its share.
        resize: (folder only) scale to `image_size` and convert to `channels` instead of refusing.
        mean, std: of the preprocessing, per channel; default: those of the training pixels.

    Raises:
        BadInput: unknown kind, data missing, damaged, of another shape, or too small to be split.
    """
    _check_arguments(kind, path, validation_fraction, test_fraction, channels)
    loaded = _load(kind, path, image_size, channels, resize, seed)
    where = path or kind
    train = checked_split(*loaded.train, classes=loaded.classes, where=where)
    rng = np.random.default_rng(seed)
    if loaded.test is None:
        train, test = _cut(train, test_fraction, rng)
    else:
        test = checked_split(*loaded.test, classes=loaded.classes, where=where)
    if loaded.validation is None:
        train, validation = _cut(train, validation_fraction, rng)
    else:
        validation = checked_split(*loaded.validation, classes=loaded.classes, where=where)
    _check_every_class(loaded.classes, train, validation, test, where)
    if limit is not None:
        train = _limited(train, limit, len(loaded.classes), rng)
    pre = preprocessing_of(train.images, loaded.divisor, mean, std, where)
    data = Data(kind, loaded.classes, pre, train, validation, test)
    _check_shapes(data, image_size, channels, where)
    return data


def data_of(recipe: "Recipe") -> Data:
    """The data of a recipe, split by its seed.

    Raises:
        BadInput: as `load_data`.
    """
    return load_data(**recipe.data.model_dump(), seed=recipe.seed)


def data_as_told(told: Mapping[str, Any], path: Path | None) -> Data | None:
    """The data that a manifest or a kept result tells of; None when a path is needed and none is given.

    Args:
        told: `settings`, of the recipe's data without their path, and `seed`.
        path: where they lie.

    Raises:
        BadInput: as `load_data`. KeyError, TypeError: `told` is damaged.
    """
    if path is None and told["settings"]["kind"] != "digits":
        return None
    return load_data(**told["settings"], path=path, seed=told["seed"])


def checked_split(
    images: np.ndarray, labels: np.ndarray, *, classes: tuple[str, ...], where: object
) -> Split:
    """A Split of arrays of any numeric dtype whose values are whole numbers from 0 to 255.

    Raises:
        BadInput: NaN, values that uint8 cannot hold, labels outside the class count, no images,
            or more of one than of the other.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise BadInput(
            "images and labels do not pair up",
            got=f"{len(images)} images and {len(labels)} labels",
            wanted="as many of one as of the other, and at least one",
            where=where,
        )
    if images.dtype != np.uint8:
        if not np.isfinite(images).all():
            raise BadInput("a pixel is not a number", got="NaN or infinity", where=where)
        if images.min() < 0 or images.max() > 255 or (images != np.floor(images)).any():
            span = f"values from {images.min()} to {images.max()}"
            raise BadInput("pixels are out of range", got=span, wanted="whole numbers, 0 to 255", where=where)
    outside = (labels < 0) | (labels >= len(classes)) | (labels != np.floor(labels))
    if outside.any():
        index = int(np.argmax(outside))
        raise BadInput(
            "a label is outside the class count",
            got=f"label {labels[index]} at image {index}",
            wanted=f"0 to {len(classes) - 1} ({len(classes)} classes)",
            where=where,
        )
    return Split(images.astype(np.uint8, copy=False), labels.astype(np.int64))


def stratified_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shuffled order, int64 (N,), whose every prefix holds each class in about its share.

    The first of every class come before all others, so a prefix as long as there are classes
    already holds each of them.
    """
    shuffled = rng.permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        rank[members[0]] = 0.0
    return shuffled[np.argsort(rank, kind="stable")]


def _cut(split: Split, fraction: float, rng: np.random.Generator) -> tuple[Split, Split]:
    """(what stays, what was cut off), each in the order of the source."""
    order = stratified_order(split.labels, rng)
    count = max(round(len(split) * fraction), len(np.unique(split.labels)))
    return _take(split, order[count:]), _take(split, order[:count])


def _take(split: Split, indices: np.ndarray) -> Split:
    indices = np.sort(indices)
    return Split(split.images[indices], split.labels[indices])


def _limited(train: Split, limit: int, classes: int, rng: np.random.Generator) -> Split:
    if limit < classes:
        raise BadInput("limit is too small", got=limit, wanted=f"at least one image a class, {classes}")
    return _take(train, stratified_order(train.labels, rng)[:limit])


def _load(
    kind: str,
    path: Path | None,
    image_size: tuple[int, int] | None,
    channels: int | None,
    resize: bool,
    seed: int,
) -> Loaded:
    if kind == "digits":
        return known_sets.digits()
    assert path is not None  # _check_arguments saw to it
    if kind == "folder":
        from tersor.pipeline.data.image_folder import read_image_folder

        pieces = read_image_folder(path, image_size=image_size, channels=channels, resize=resize)
        return Loaded(
            pieces.classes, *(_mixed(p, seed) for p in (pieces.train, pieces.validation, pieces.test))
        )
    if kind in ("mnist", "fashion_mnist"):
        return known_sets.idx_files(path, {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[kind])
    return known_sets.cifar(path, kind.upper())


def _mixed(part: Arrays | None, seed: int) -> Any:
    """A part of an image folder, which comes class by class, in mixed order: the first so many images serve
    for calibration and for gradients, and must be of all classes.
    """
    if part is None:
        return None
    order = np.random.default_rng(seed).permutation(len(part[1]))
    return part[0][order], part[1][order]


def _check_arguments(
    kind: str, path: Path | None, validation_fraction: float, test_fraction: float, channels: int | None
) -> None:
    if kind == HANDED_OVER:
        raise BadInput(
            "the data were handed over in Python and lie in no file",
            where="data",
            todo="Hand them over again: data=tersor.Data.of(...)",
        )
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1, 0.4)
        todo = f"Did you mean {near[0]!r}" if near else None
        raise BadInput("unknown kind of data", got=repr(kind), wanted=", ".join(KINDS), todo=todo)
    if path is None and kind != "digits":
        raise BadInput(
            "the data is not there",
            got="no folder",
            wanted=f"the folder that holds {kind!r}",
            todo="Pass it with DATA=path",
        )
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    for name, value in fractions.items():
        if not 0 < value < 1:
            raise BadInput(f"{name} is out of range", got=value, wanted="more than 0, less than 1")
    if channels not in (None, 1, 3):
        raise BadInput("channels is out of range", got=channels, wanted="1 (grey) or 3 (RGB)")


def _check_every_class(
    classes: tuple[str, ...], train: Split, validation: Split, test: Split, where: object
) -> None:
    counts = {
        name: np.bincount(split.labels, minlength=len(classes))
        for name, split in (("train", train), ("validation", validation), ("test", test))
    }
    for label, name in enumerate(classes):
        if counts["train"][label] == 0:
            raise BadInput(
                f"class {name!r} has no image to train on",
                got=", ".join(f"{c[label]} in {part}" for part, c in counts.items()),
                wanted="at least 3 images a class where the split is ours to make",
                where=where,
            )


def _check_shapes(
    data: Data, image_size: tuple[int, int] | None, channels: int | None, where: object
) -> None:
    shapes = {s.images.shape[1:] for s in (data.train, data.validation, data.test)}
    if len(shapes) > 1:
        raise BadInput("the splits have images of different shapes", got=sorted(shapes), where=where)
    shape = data.input_shape
    asked = (channels or shape[0], *(image_size or shape[1:]))
    if shape != asked:
        raise BadInput(
            "the images have another shape than asked for",
            got=f"{shape[0]} channel(s), {shape[1]}x{shape[2]} pixels",
            wanted=f"{asked[0]} channel(s), {asked[1]}x{asked[2]} pixels",
            where=where,
            todo="Change `image_size` and `channels`, or leave them out",
        )
