"""Images in folders of their classes, ``DIR/CLASS/IMAGE``, as tensors."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import DataError, LabelError, OptionError
from sylvinit.io.datasets import Samples

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_TEST_FOLDERS = ("test", "val", "valid", "validation")
# Means and deviations of ImageNet's channels, as most image models expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolder(NamedTuple):
    """Two parts of the images, and the names of their classes in the order of the labels."""

    train: Samples
    test: Samples
    classes: tuple[str, ...]


def load_image_folder(
    folder: str | PathLike[str], size: int, *, train: int, test: int
) -> ImageFolder:
    """Read images of every class, cut to squares, scaled and normalized.

    With folders ``train`` and ``test`` (or ``val``) of class folders, each part comes from its own.
    Otherwise the images of every class are shared out, at random but repeatably, half to each part.

    Args:
        folder: has a folder of images for every class, or ``train`` and ``test`` which have them.
        size: of the images, in pixels.
        train, test: at most so many images of every class, drawn at random but repeatably.

    Returns:
        Images, float32 (N, 3, size, size), by the mean and deviation of ImageNet's channels, and
        labels, int64 (N,).

    Raises:
        DataError: no such folder, fewer than two classes, or a file that is no image.
        LabelError: a class has fewer than two images, or the two parts have not the same classes.
        OptionError: Pillow is not installed.
    """
    root = Path(folder)
    parts = {path.name: path for path in root.iterdir() if path.is_dir()} if root.is_dir() else {}
    ready = [parts[name] for name in _TEST_FOLDERS if name in parts]
    if "train" in parts and ready:
        first, second = _classes(parts["train"]), _classes(ready[0])
        if first.keys() != second.keys():
            odd = sorted(first.keys() ^ second.keys())[:8]
            raise LabelError(f"{root}: train and {ready[0].name} differ in the classes {odd}.")
        chosen = {name: (_some(first[name], train), _some(second[name], test)) for name in first}
    else:
        chosen = {}
        for name, paths in _classes(root).items():
            if len(paths) < 2:
                raise LabelError(
                    f"{root / name}: expected at least two images, one to train and one to test."
                )
            mixed, half = _some(paths, len(paths)), len(paths) // 2
            chosen[name] = mixed[: len(paths) - half][:train], mixed[len(paths) - half :][:test]
    train_samples, test_samples = (
        _samples([files[part] for files in chosen.values()], size) for part in (0, 1)
    )
    return ImageFolder(train_samples, test_samples, tuple(chosen))


def _classes(root: Path) -> dict[str, list[Path]]:
    """The images of every class, both in alphabetical order."""
    found = {
        path.name: sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        for path in (sorted(root.iterdir()) if root.is_dir() else ())
        if path.is_dir() and not path.name.startswith(".")
    }
    found = {name: paths for name, paths in found.items() if paths}
    if len(found) < 2:
        raise DataError(
            f"{root}: expected a folder with a folder of images ({', '.join(SUFFIXES)}) for each "
            f"of at least two classes, found {len(found)}."
        )
    return found


def _some(paths: list[Path], count: int) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(paths), generator=generator)[:count]
    return [paths[index] for index in order.tolist()]


def _samples(classes: list[list[Path]], size: int) -> Samples:
    images = torch.stack([_image(path, size) for paths in classes for path in paths])
    counts = torch.tensor([len(paths) for paths in classes])
    return Samples(images, torch.arange(len(classes)).repeat_interleave(counts))


def _image(path: Path, size: int) -> Tensor:
    """The largest square in the middle, float32 (3, size, size)."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise OptionError(
            "data: images are read by Pillow, which cannot be imported; run: pip install pillow"
        ) from error
    try:
        with Image.open(path) as file:
            image = ImageOps.fit(
                ImageOps.exif_transpose(file).convert("RGB"), (size, size), Image.Resampling.BICUBIC
            )
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise DataError(f"{path}: it cannot be read as an image: {error}") from error
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    return (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
