"""Any folder of images: one subfolder a class, or train/, test/, validation/ with such subfolders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tersor.errors import BadInput

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
"""More than 8 bits a pixel: Pillow would clip them to white, not scale them."""

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pieces:
    """Images uint8 (N, C, H, W) and labels int64 (N,) of each part the folder keeps apart.

    classes: the subfolder names, sorted.
    """

    classes: tuple[str, ...]
    train: Arrays
    validation: Arrays | None
    test: Arrays | None


@dataclass(frozen=True)
class _Shape:
    """What every image has to be; `resize` makes it so instead of refusing."""

    size: tuple[int, int]
    channels: int
    resize: bool


def read_image_folder(
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    resize: bool = False,
) -> Pieces:
    """Read every image below `path`, sorted by name. Hidden files and other suffixes are passed over.

    Args:
        path: a folder of class folders, or of train/ (and test/, validation/ or val/) of class folders.
        image_size: (height, width) in pixels; default: that of the first image.
        channels: 1 (grey) or 3 (RGB, transparency dropped); default: what the first image has.
        resize: scale (bilinear) to `image_size` and convert to `channels` instead of refusing.

    Raises:
        BadInput: nothing there, fewer than two classes, an empty class folder, an unreadable image,
            or an image of another shape.
    """
    if not path.is_dir():
        raise BadInput(
            "the image folder is not there",
            got="a file" if path.exists() else "no such folder",
            wanted="a folder with one subfolder of images a class, or train/ and test/ with such subfolders",
            where=path,
            todo="Pass it with DATA=path",
        )
    parts = _parts(path)
    classes = _classes(parts["train"])
    files = {part: _files(folder, classes) for part, folder in parts.items()}
    shape = _shape(files["train"][0][0], image_size, channels, resize)
    arrays = {part: _read(listed, shape) for part, listed in files.items()}
    return Pieces(classes, arrays["train"], arrays.get("validation"), arrays.get("test"))


def _parts(path: Path) -> dict[str, Path]:
    """Part -> folder; only `train` where the folder holds class folders right away."""
    named = {p.name.lower(): p for p in _subfolders(path)}
    # A class may be called "train", too: then it holds images, not folders.
    if "train" not in named or not _subfolders(named["train"]):
        return {"train": path}
    parts = {"train": named["train"]}
    for part, names in {"validation": ("validation", "val", "valid"), "test": ("test",)}.items():
        folders = [named[n] for n in names if n in named]
        if folders:
            parts[part] = folders[0]
    return parts


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(p.name for p in _subfolders(folder))
    if len(classes) < 2:
        raise BadInput(
            "an image folder needs at least two classes",
            got=f"{len(classes)} class folder(s)" + (f": {classes[0]}" if classes else ""),
            wanted="one subfolder of images a class",
            where=folder,
        )
    return classes


def _files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(image file, label), class by class, sorted by name."""
    listed: list[tuple[Path, int]] = []
    for sub in _subfolders(folder):
        if sub.name not in classes:
            raise BadInput(
                "a class folder has no counterpart in train/",
                got=sub.name,
                wanted=", ".join(classes),
                where=sub,
                todo="Rename or remove it",
            )
        images = [p for p in sorted(sub.rglob("*")) if _is_image(p, sub)]
        if not images:
            raise BadInput(
                "a class folder holds no image",
                wanted="files ending in " + ", ".join(SUFFIXES),
                where=sub,
                todo="Put images there, or remove the folder",
            )
        listed += [(p, classes.index(sub.name)) for p in images]
    if not listed:
        raise BadInput("the folder holds no class folders", wanted=", ".join(classes), where=folder)
    return listed


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()


def _shape(first: Path, image_size: tuple[int, int] | None, channels: int | None, resize: bool) -> _Shape:
    image = _open(first)
    return _Shape(image_size or (image.height, image.width), channels or _channels(image), resize)


def _read(listed: list[tuple[Path, int]], shape: _Shape) -> Arrays:
    images = np.empty((len(listed), shape.channels, *shape.size), np.uint8)
    for index, (file, _) in enumerate(listed):
        images[index] = _pixels(file, shape)
    return images, np.array([label for _, label in listed], np.int64)


def _pixels(file: Path, shape: _Shape) -> np.ndarray:
    """uint8 (C, H, W) of one file."""
    image = _open(file)
    got, asked = (image.height, image.width), shape.size
    if not shape.resize and got != asked:
        raise BadInput(
            "an image has another size than the others or than asked for",
            got=f"{got[0]}x{got[1]} pixels (height x width)",
            wanted=f"{asked[0]}x{asked[1]}",
            where=file,
            todo="Set `resize: true` to scale all images to `image_size`, or set `image_size`",
        )
    if not shape.resize and _channels(image) != shape.channels:
        raise BadInput(
            "an image has another channel count than the others or than asked for",
            got=f"{_channels(image)} channel(s), mode {image.mode}",
            wanted=f"{shape.channels}",
            where=file,
            todo="Set `channels` to 1 (grey) or 3 (RGB) and `resize: true` to convert all images",
        )
    image = image.convert("L" if shape.channels == 1 else "RGB")
    if got != asked:
        image = image.resize((asked[1], asked[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if shape.channels == 1 else pixels.transpose(2, 0, 1)


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in GREY_MODES else 3


def _open(file: Path) -> Image.Image:
    """The decoded picture, turned upright the way the camera noted it; the first frame of several."""
    try:
        with Image.open(file) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    # Pillow's decoders raise what they like on damaged files (struct.error, EOFError, SyntaxError).
    except Exception as error:
        raise BadInput(
            "an image cannot be read",
            got=f"{type(error).__name__}: {error}".replace(str(file), file.name),
            where=file,
            todo="Replace or remove the file",
        ) from error
    if upright.mode in DEEP_MODES:
        raise BadInput(
            "an image has more than 8 bits a pixel",
            got=f"mode {upright.mode}",
            wanted="8-bit grey or RGB",
            where=file,
            todo="Convert it to 8 bits",
        )
    return upright
