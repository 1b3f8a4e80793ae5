"""Data sets are split fixed by seed, checked, and missing or damaged files say what to do."""

import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import BadInput
from tersor.pipeline.data import known_sets
from tersor.pipeline.data.load import Data, Split, checked_split, load_data, stratified_order
from tersor.pipeline.data.pixel_statistics import statistics


def write_idx(file: Path, array: np.ndarray) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(folder: Path, *, train: int = 200, test: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 5, 4)))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return folder


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits")


def test_digits_have_the_sizes_the_fractions_ask_for(digits: Data) -> None:
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1213, 135, 449)
    assert digits.input_shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int64
    assert digits.train.images.max() == digits.preprocessing.divisor == 16


def test_digits_need_no_torch() -> None:
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
from tersor.pipeline.data.load import load_data
print(len(load_data("digits").train))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1213"


def test_preprocessing_makes_the_training_pixels_standard_normal(digits: Data) -> None:
    pixels = digits.preprocessing.apply(digits.train.images)
    assert abs(float(pixels.mean())) < 1e-3
    assert float(pixels.std()) == pytest.approx(1, abs=1e-3)
    assert all(round(v, 4) == v for v in digits.preprocessing.mean + digits.preprocessing.std)


def test_statistics_of_a_constant_channel_divide_by_one() -> None:
    images = np.zeros((4, 2, 3, 3), np.uint8)
    images[:, 1] = 51
    assert statistics(images, 255).mean == (0.0, 0.2)
    assert statistics(images, 255).std == (1.0, 1.0)


def test_same_seed_same_digest_and_another_seed_another(digits: Data) -> None:
    assert load_data("digits").digest() == digits.digest()
    assert load_data("digits", seed=1).digest() != digits.digest()


def test_the_digest_sees_one_pixel_one_label_and_the_split(digits: Data) -> None:
    images, labels = digits.train.images.copy(), digits.train.labels.copy()
    images[0, 0, 0, 0] ^= 1
    labels[0] = (labels[0] + 1) % 10
    others = [
        replace(digits, train=replace(digits.train, images=images)),
        replace(digits, train=replace(digits.train, labels=labels)),
        replace(digits, validation=digits.test, test=digits.validation),
        replace(digits, classes=digits.classes[::-1]),
    ]
    assert len({d.digest() for d in [digits, *others]}) == 5


def _pixels(parts: list[Split]) -> list[bytes]:
    return sorted(image.tobytes() for part in parts for image in part.images)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), validation=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4))
def test_splits_share_no_image_lose_none_and_hold_every_class(
    seed: int, validation: float, test: float
) -> None:
    data = load_data("digits", seed=seed, validation_fraction=validation, test_fraction=test)
    parts = [data.train, data.validation, data.test]
    source = load_data("digits")
    assert _pixels(parts) == _pixels([source.train, source.validation, source.test])
    assert len(data.test) == round(1797 * test)
    assert len(data.validation) == round((1797 - len(data.test)) * validation)
    assert all(set(p.labels) == set(range(10)) for p in parts)


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
)
def test_every_prefix_of_the_order_is_stratified(counts: list[int], seed: int, share: float) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = stratified_order(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    length = max(round(share * len(labels)), len(counts))
    taken = np.bincount(labels[order[:length]], minlength=len(counts))
    assert (taken >= 1).all()
    # The first of every class is forced, and each class rounds by half an image.
    assert (np.abs(taken - np.array(counts) * length / len(labels)) <= 1 + len(counts)).all()


def test_balanced_classes_are_cut_to_the_image() -> None:
    labels = np.tile(np.arange(4), 25)
    order = stratified_order(labels, np.random.default_rng(3))
    assert np.bincount(labels[order[:40]]).tolist() == [10, 10, 10, 10]


def test_limit_caps_training_images_and_keeps_every_class(digits: Data) -> None:
    data = load_data("digits", limit=50)
    counts = np.bincount(data.train.labels)
    assert len(data.train) == 50
    assert counts.min() >= 4
    assert np.array_equal(data.test.images, digits.test.images)
    with pytest.raises(BadInput, match="limit is too small. Got 5. Wanted at least one image a class, 10"):
        load_data("digits", limit=5)


@pytest.mark.parametrize("given", [".", "MNIST", "MNIST/raw"])
def test_mnist_is_found_from_the_root_or_either_folder_below(tmp_path: Path, given: str) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    data = load_data("mnist", tmp_path / given)
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 20)
    assert data.input_shape == (1, 5, 4)
    assert data.classes == tuple("0123456789")


def test_fashion_mnist_never_reads_mnists_files(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    with pytest.raises(BadInput, match="the FashionMNIST files are not there"):
        load_data("fashion_mnist", tmp_path / "MNIST")
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    assert load_data("fashion_mnist", tmp_path).classes[9] == "Ankle boot"


def test_missing_mnist_says_which_files_and_what_to_do(tmp_path: Path) -> None:
    wanted = "Wanted MNIST/raw/ with train-images-idx3-ubyte, .*Where: .*DATA=path"
    with pytest.raises(BadInput, match="Got a folder without them. " + wanted):
        load_data("mnist", tmp_path)
    with pytest.raises(BadInput, match="Got no such folder. " + wanted) as caught:
        load_data("mnist", tmp_path / "nowhere")
    assert caught.value.exit_code == 2


def test_compressed_idx_files_are_named_as_the_cause(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"")
    with pytest.raises(BadInput, match=r"Got only the compressed files \(\.gz\).*gunzip"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:3],
        lambda raw: b"",
        lambda raw: b"\x00\x00\x0d\x03" + raw[4:],
        lambda raw: b"<html>not here</html>",
        lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:],
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    folder = write_mnist(tmp_path)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    message = "the data file is damaged.*Where: .*train-images-idx3-ubyte. Fetch it again"
    with pytest.raises(BadInput, match=message):
        load_data("mnist", tmp_path)


def test_a_label_outside_the_class_count_is_located(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    labels = np.arange(200) % 10
    labels[17] = 12
    write_idx(folder / "train-labels-idx1-ubyte", labels)
    with pytest.raises(BadInput, match=r"Got label 12 at image 17. Wanted 0 to 9 \(10 classes\)"):
        load_data("mnist", tmp_path)


def test_images_and_labels_have_to_pair_up(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(199) % 10)
    with pytest.raises(BadInput, match="Got 200 images and 199 labels"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "not a number"), (256.0, "out of range"), (-1.0, "out of range"), (0.5, "out of range")],
)
def test_pixels_that_are_no_bytes_are_refused(value: float, message: str) -> None:
    images = np.zeros((2, 1, 2, 2))
    images[1, 0, 0, 1] = value
    with pytest.raises(BadInput, match=message):
        checked_split(images, np.array([0, 1]), classes=("a", "b"), where="here")


def test_a_foreign_pickle_in_cifars_place_is_never_opened(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (tmp_path / "opened",)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(BadInput, match="not the published ones, so they were not opened"):
        load_data("cifar10", tmp_path)
    assert not (tmp_path / "opened").exists()


def binary_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-100's binary version in small, 60 and 20 images of three classes, taken for the published one;
    returns the training part's pixels and classes.
    """
    rng = np.random.default_rng(0)
    (folder / "cifar-100-binary").mkdir()
    parts = {}
    for name, count in (("train.bin", 60), ("test.bin", 20)):
        records = rng.integers(0, 256, (count, 3074), dtype=np.uint8)
        records[:, 1] = np.arange(count) % 3  # the coarse label before it may be anything
        (folder / "cifar-100-binary" / name).write_bytes(records.tobytes())
        parts[name] = records, (count, hashlib.sha1(records.tobytes()).hexdigest())
    (folder / "cifar-100-binary/fine_label_names.txt").write_text("apple\nbear\ncan\n")
    files = {name: published for name, (_, published) in parts.items()}
    small = replace(
        known_sets.CIFAR_BINARY["CIFAR100"],
        train={"train.bin": files["train.bin"]},
        test={"test.bin": files["test.bin"]},
        classes=3,
    )
    monkeypatch.setitem(known_sets.CIFAR_BINARY, "CIFAR100", small)
    records = parts["train.bin"][0]
    return records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1]


@pytest.mark.parametrize("place", [".", "cifar-100-binary"])
def test_cifar_is_read_from_its_binary_version(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = binary_cifar(tmp_path, monkeypatch)
    data = load_data("cifar100", tmp_path / place)
    assert data.classes == ("apple", "bear", "can")
    assert (len(data.train) + len(data.validation), len(data.test)) == (60, 20)
    read = {image.tobytes(): int(label) for image, label in zip(data.train.images, data.train.labels)}
    true = {image.tobytes(): int(label) for image, label in zip(pixels, labels)}
    assert read.items() <= true.items()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "train.bin",
            lambda old: old[:-1],
            "is damaged. Got 184,439 bytes. Wanted 184,440",
        ),
        ("test.bin", lambda old: old[:-1] + bytes([old[-1] ^ 1]), "is not the published one. Got SHA-1"),
        ("test.bin", lambda _: None, "is not whole. Got no test.bin"),
        ("fine_label_names.txt", lambda _: b"apple\nbear\n", "names are damaged. Got 2 names"),
    ],
)
def test_other_binary_files_than_the_published_are_refused(
    file: str, content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary_cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-100-binary" / file
    new = content(path.read_bytes())
    path.unlink() if new is None else path.write_bytes(new)
    with pytest.raises(BadInput, match=f"{said}.*cifar-100-binary.*Fetch cifar-100-binary.tar.gz again"):
        load_data("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("kind", "files"),
    [("cifar10", "cifar-10-batches-py/ with data_batch_1"), ("cifar100", "cifar-100-python/ with train")],
)
def test_missing_cifar_says_which_files(tmp_path: Path, kind: str, files: str) -> None:
    with pytest.raises(BadInput, match=f"{files}.*DATA=path"):
        load_data(kind, tmp_path)


def test_an_unknown_kind_gets_a_suggestion() -> None:
    with pytest.raises(BadInput, match="unknown kind of data. Got 'minst'.*Did you mean 'mnist'"):
        load_data("minst")


def test_a_kind_that_needs_a_folder_asks_for_it() -> None:
    with pytest.raises(BadInput, match="Wanted the folder that holds 'mnist'. Pass it with DATA=path"):
        load_data("mnist")


@pytest.mark.parametrize("name", ["validation_fraction", "test_fraction"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(name: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"{name} is out of range"):
        load_data("digits", **{name: value})


def test_another_size_or_channel_count_than_asked_is_refused() -> None:
    with pytest.raises(BadInput, match="1 channel.*8x8 pixels. Wanted 1 channel.*28x28 pixels"):
        load_data("digits", image_size=(28, 28))
    with pytest.raises(BadInput, match="Wanted 3 channel.*8x8 pixels"):
        load_data("digits", channels=3)
    with pytest.raises(BadInput, match=r"channels is out of range. Got 2. Wanted 1 \(grey\) or 3 \(RGB\)"):
        load_data("digits", channels=2)


def image_folder(folder: Path, count: int = 40) -> Path:
    """Two classes: black and white images."""
    from PIL import Image

    for shade, name in ((0, "black"), (255, "white")):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (4, 4), shade).save(folder / name / f"{index}.png")
    return folder


def test_the_first_images_of_a_folder_are_of_all_classes(tmp_path: Path) -> None:
    """They calibrate ranges and give gradients; files come class by class."""
    data = load_data("folder", image_folder(tmp_path))
    for split in (data.train, data.validation, data.test):
        assert 0 < split.labels[: len(split) // 2].mean() < 1
        assert [int(image.max()) for image in split.images] == (255 * split.labels).tolist()
    assert data.digest() == load_data("folder", tmp_path).digest()


def test_mean_and_std_that_weights_were_trained_with_are_taken(tmp_path: Path) -> None:
    own = load_data("digits", mean=[0.25], std=[0.5])
    assert (own.preprocessing.mean, own.preprocessing.std) == ((0.25,), (0.5,))
    assert own.digest() != load_data("digits").digest()


@pytest.mark.parametrize(("mean", "std"), [([0.5], None), (None, [0.5]), ([0.5] * 3, [0.5] * 3)])
def test_half_or_too_many_statistics_are_refused(mean: list[float] | None, std: list[float] | None) -> None:
    with pytest.raises(BadInput, match=r"do not fit the images.*both, with 1 number"):
        load_data("digits", mean=mean, std=std)
