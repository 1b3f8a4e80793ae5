"""Any folder of images loads the same way every time; what does not fit is named with a remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tersor.errors import BadInput
from tersor.pipeline.data.load import Data, load_data


def write_image(file: Path, *, size: tuple[int, int] = (6, 4), mode: str = "RGB", value: int = 0) -> None:
    """One flat image of (height, width) `size`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    color = (value,) * len(Image.new(mode, (1, 1)).getbands())
    Image.new(mode, (size[1], size[0]), color if len(color) > 1 else value).save(file)


def write_classes(folder: Path, counts: dict[str, int], **image: Any) -> Path:
    for name, count in counts.items():
        for index in range(count):
            write_image(folder / name / f"{index:03}.png", value=index, **image)
    return folder


def load(folder: Path, **settings: Any) -> Data:
    return load_data("folder", folder, **settings)


def test_class_folders_are_sorted_split_and_labelled(tmp_path: Path) -> None:
    data = load(write_classes(tmp_path, {"dog": 20, "cat": 20}))
    assert data.classes == ("cat", "dog")
    assert data.input_shape == (3, 6, 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 10)
    assert np.bincount(data.test.labels).tolist() == [5, 5]


def test_own_test_and_validation_folders_are_kept(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 4, "b": 3})
    write_classes(tmp_path / "val", {"a": 1, "b": 2})
    write_classes(tmp_path / "test", {"a": 2, "b": 2})
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 3, 4)
    assert sorted(data.validation.labels.tolist()) == [0, 1, 1]


def test_validation_is_cut_from_train_where_there_is_only_test(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    write_classes(tmp_path / "test", {"a": 2, "b": 2})
    data = load(tmp_path, validation_fraction=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 4)


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    assert load(write_classes(tmp_path, {"train": 5, "test": 5})).classes == ("test", "train")


def test_the_same_files_give_the_same_digest_wherever_they_lie(tmp_path: Path) -> None:
    one, two = (write_classes(tmp_path / place, {"a": 6, "b": 6}) for place in ("one", "two"))
    assert load(one).digest() == load(two).digest()


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp", "gif", "tiff"])
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        for index in range(3):
            write_image(tmp_path / name / f"{index}.{suffix}", value=200)
    data = load(tmp_path, channels=3)
    assert abs(int(data.train.images[0].mean()) - 200) < 3


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("LA", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_channels_are_those_of_the_first_image(tmp_path: Path, mode: str, channels: int) -> None:
    assert load(write_classes(tmp_path, {"a": 3, "b": 3}, mode=mode)).input_shape[0] == channels


def test_hidden_files_and_other_suffixes_are_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3, ".cache": 3})
    write_image(tmp_path / "a" / ".thumbs" / "x.png")
    write_image(tmp_path / "a" / "._000.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"\x00")
    data = load(tmp_path)
    assert len(data.train) + len(data.validation) + len(data.test) == 6


def test_an_image_of_another_size_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    write_image(tmp_path / "b" / "odd.png", size=(5, 9))
    message = "Got 5x9 pixels .height x width.. Wanted 6x4. Where: .*odd.png. Set `resize: true`"
    with pytest.raises(BadInput, match=message):
        load(tmp_path)
    assert load(tmp_path, resize=True).input_shape == (3, 6, 4)
    assert load(tmp_path, resize=True, image_size=(8, 7)).input_shape == (3, 8, 7)


def test_an_image_of_another_channel_count_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    write_image(tmp_path / "b" / "grey.png", mode="L", value=77)
    with pytest.raises(BadInput, match="Got 1 channel.*mode L. Wanted 3. Where: .*grey.png. Set `channels`"):
        load(tmp_path)
    assert load(tmp_path, channels=1, resize=True).input_shape == (1, 6, 4)


def test_a_size_other_than_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Got 6x4 pixels .*Wanted 28x28. Where: .*000.png"):
        load(write_classes(tmp_path, {"a": 3, "b": 3}), image_size=(28, 28))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>"])
def test_an_unreadable_image_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    file = tmp_path / "b" / "001.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadInput, match="an image cannot be read.*Where: .*001.png. Replace or remove"):
        load(tmp_path)


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3}, mode="I;16")
    with pytest.raises(BadInput, match="more than 8 bits a pixel. Got mode I;16. .*Convert it to 8 bits"):
        load(tmp_path)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(3):
            file = tmp_path / name / f"{index}.jpg"
            write_image(file, size=(4, 6))
            exif = Image.Exif()
            exif[0x0112] = 6  # the camera was held on its side
            Image.open(file).save(file, exif=exif)
    assert load(tmp_path).input_shape == (3, 6, 4)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "c").mkdir()
    with pytest.raises(BadInput, match="holds no image.*Where: .*c. Put images there, or remove the folder"):
        load(tmp_path)


@pytest.mark.parametrize(("counts", "got"), [({}, "0 class folder"), ({"cats": 3}, "1 class folder.*cats")])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, counts: dict[str, int], got: str) -> None:
    with pytest.raises(BadInput, match=f"at least two classes. Got {got}"):
        load(write_classes(tmp_path, counts))


def test_a_test_class_unknown_to_train_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 4, "b": 4})
    write_classes(tmp_path / "test", {"a": 1, "B": 1})
    with pytest.raises(BadInput, match="no counterpart in train/. Got B. Wanted a, b"):
        load(tmp_path)


def test_a_class_too_small_to_be_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="class 'b' has no image to train on.*at least 3 images a class"):
        load(write_classes(tmp_path, {"a": 20, "b": 1}))


def test_a_missing_folder_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Got no such folder. Wanted a folder with one subfolder.*DATA=path"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Got a file"):
        load(tmp_path / "file")
