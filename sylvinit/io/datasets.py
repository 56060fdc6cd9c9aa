"""Small data sets for the demo, and tensors from files for the command line.

Nothing here runs code that a file brings along: pickles go through :mod:`sylvinit.io.safe_pickle`,
NumPy files through ``allow_pickle=False``, PyTorch files through ``weights_only=True``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import DataError, LabelError, OptionError
from sylvinit.io.safe_pickle import load_plain_dict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

_CIFAR10_FOLDER = "cifar-10-batches-py"
_CIFAR10_PIXELS = 3 * 32 * 32
_MAX_BATCH_BYTES = 256 * 2**20  # an official batch has 31 MB
_INPUT_KEYS = ("x", "inputs", "images")
_LABEL_KEYS = ("y", "labels")
_TENSOR_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")


class Samples(NamedTuple):
    """Inputs (N, ...) and their labels, int64 (N,), in the same order."""

    inputs: Tensor
    labels: Tensor


def load_cifar10(folder: str | PathLike[str], train: bool) -> Samples:
    """Read the Python version of CIFAR-10, whole or in part.

    Args:
        folder: ``cifar-10-batches-py`` or the folder that contains it.
        train: every ``data_batch_*`` there is (at least one), or else ``test_batch``.

    Returns:
        Images, uint8 (N, 3, 32, 32), and labels, int64 (N,).

    Raises:
        DataError: files are missing, damaged, of the wrong shape or hostile.
        LabelError: labels do not fit the images.
    """
    root = _cifar10_root(Path(folder))
    pattern = "data_batch_[0-9]*" if train else "test_batch"
    paths = sorted(path for path in root.glob(pattern) if path.is_file())
    if not paths:
        raise DataError(f"{root}: expected at least one file {pattern}, found none.")
    images, labels = zip(*map(_read_cifar10_batch, paths), strict=True)
    return Samples(torch.cat(images), torch.cat(labels))


def _cifar10_root(folder: Path) -> Path:
    for root in (folder, folder / _CIFAR10_FOLDER):
        if (root / "test_batch").is_file() or any(root.glob("data_batch_[0-9]*")):
            return root
    raise DataError(
        f"{folder}: expected the folder {_CIFAR10_FOLDER} or the one that contains it, but it has "
        "neither data_batch_* nor test_batch. Unpack the Python version of CIFAR-10 there."
    )


def _read_cifar10_batch(path: Path) -> Samples:
    size = path.stat().st_size
    if size > _MAX_BATCH_BYTES:
        raise DataError(f"{path}: expected at most {_MAX_BATCH_BYTES} bytes, it has {size}.")
    batch = load_plain_dict(path.read_bytes(), str(path))
    missing = {"data", "labels"} - batch.keys()
    if missing:
        raise DataError(
            f"{path}: expected the keys 'data' and 'labels', {sorted(missing)} missing; it has "
            f"{[key[:40] for key in sorted(batch)[:8]]}. Only CIFAR-10 is read, not CIFAR-100."
        )
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _CIFAR10_PIXELS:
        came = f"shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: expected 'data' as uint8 (N, {_CIFAR10_PIXELS}), got {came}.")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise LabelError(f"{path}: expected 'labels' as a list of integers.")
    if len(labels) != len(data):
        raise LabelError(f"{path}: expected {len(data)} labels, one an image, got {len(labels)}.")
    if not all(0 <= label < len(CIFAR10_CLASSES) for label in labels):
        raise LabelError(f"{path}: expected labels from 0 to {len(CIFAR10_CLASSES) - 1}.")
    images = torch.from_numpy(data.reshape(-1, 3, 32, 32).copy())
    return Samples(images, torch.tensor(labels, dtype=torch.int64))


def normalize_cifar10(images: Tensor) -> Tensor:
    """Center and scale uint8 images (N, 3, H, W) to float32, by the training set's channels.

    Raises:
        DataError: another dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(
            f"images: expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}."
        )
    mean = torch.tensor(CIFAR10_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(CIFAR10_STD, device=images.device).view(3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


def few_per_class(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose ``count`` samples of every class, at random but repeatably.

    The global random state is not touched.

    Returns:
        Ascending indices into ``labels``, int64 (classes * count,).

    Raises:
        OptionError: ``count`` is below 1.
        LabelError: a class has fewer than ``count`` samples, or labels are not integers (N,).
    """
    if count < 1:
        raise OptionError(f"count: expected at least 1, got {count}.")
    _check_labels("labels", labels)
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Tensor] = []
    for value in labels.unique().tolist():
        (members,) = torch.nonzero(labels == value, as_tuple=True)
        if len(members) < count:
            raise LabelError(
                f"labels: class {value} has {len(members)} samples, fewer than count={count}. "
                "Ask for fewer, or give more data."
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


class Digits(NamedTuple):
    """scikit-learn's 8x8 digits in a fixed split: 1,000 to train on, 797 to test."""

    train: Samples
    test: Samples


def load_digits() -> Digits:
    """scikit-learn's handwritten digits, bundled with it: nothing is downloaded.

    Returns:
        Images, float32 (N, 1, 8, 8) with zero mean and unit variance over the training part, and
        labels, int64 (N,), split once and for all with equal class shares.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    split: Any = train_test_split(images, labels, train_size=1000, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = split
    mean, std = train_x.mean(), train_x.std()

    def samples(x: Any, y: Any) -> Samples:
        inputs = torch.from_numpy(((x - mean) / std).astype(np.float32)).view(-1, 1, 8, 8)
        return Samples(inputs, torch.from_numpy(y.astype(np.int64)))

    return Digits(samples(train_x, train_y), samples(test_x, test_y))


def load_tensors(path: str | PathLike[str]) -> tuple[Tensor, Tensor | None]:
    """Read inputs, and labels where there are any, from a file or a CIFAR-10 folder.

    ======================  ==================================================================
    ``.npy``                one array: the inputs
    ``.npz, .safetensors``  ``x``, ``inputs`` or ``images``; labels under ``y`` or ``labels``
    ``.pt, .pth``           a tensor, a pair (inputs, labels), or a dictionary with those keys
    a folder                ``cifar-10-batches-py``: its training images, normalized
    ======================  ==================================================================

    uint8 inputs are taken as images and scaled to float32 in [0, 1]; other dtypes stay as they are.

    Returns:
        Inputs (N, ...) and labels or None: classes, int64 (N,); label maps, int64 (N, ...); or
        targets, floating (N, ...).

    Raises:
        DataError: no such file, an unknown or damaged format, keys that are missing or ambiguous.
        LabelError: labels that are no numbers, or not as many as inputs.
    """
    path = Path(path)
    if path.is_dir():
        images, labels = load_cifar10(path, train=True)
        return normalize_cifar10(images), labels
    if path.suffix not in _TENSOR_SUFFIXES:
        raise DataError(
            f"{path}: expected a file ending in {', '.join(_TENSOR_SUFFIXES)} or a folder "
            f"{_CIFAR10_FOLDER}."
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    inputs, labels = _named_tensors(path, _read(path))
    if inputs.ndim == 0:
        raise DataError(f"{path}: expected inputs (N, ...), got a single number.")
    if inputs.dtype == torch.uint8:
        inputs = inputs.float().div_(255)
    if labels is None:
        return inputs, None
    if labels.ndim == 0 or len(labels) != len(inputs) or labels.is_complex():
        raise LabelError(
            f"{path}: expected {len(inputs)} labels, classes or targets of each input, got "
            f"{labels.dtype} {tuple(labels.shape)}."
        )
    whole = labels.is_floating_point() or labels.dtype == torch.bool
    return inputs, labels if whole else labels.long()


def _read(path: Path) -> object:
    try:
        match path.suffix:
            case ".npy":
                # Mapped, not read: a header that promises more than the file holds is refused
                # before anything of that size is allocated.
                return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
            case ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    # Members nobody asked for are named in messages, and not read.
                    keys = _INPUT_KEYS + _LABEL_KEYS
                    return {key: archive[key] if key in keys else None for key in archive.files}
            case ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            case _:
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # parsers raise nearly anything on a damaged file
        raise DataError(
            f"{path}: it cannot be read as {path.suffix}: {type(error).__name__}: {error}. "
            "It must be complete and hold plain arrays or tensors only."
        ) from error


def _named_tensors(path: Path, content: object) -> tuple[Tensor, Tensor | None]:
    if isinstance(content, dict):
        inputs = _pick(path, content, _INPUT_KEYS)
        labels = _pick(path, content, _LABEL_KEYS)
        if inputs is None:
            raise DataError(
                f"{path}: expected inputs under one of the keys {_INPUT_KEYS}, it has "
                f"{[str(key)[:40] for key in content][:8]}."
            )
    elif isinstance(content, tuple | list):
        if len(content) != 2:
            raise DataError(f"{path}: expected a pair (inputs, labels), got {len(content)} items.")
        inputs, labels = content
    else:
        inputs, labels = content, None
    return _tensor(path, inputs), None if labels is None else _tensor(path, labels)


def _pick(path: Path, content: Mapping[Any, object], keys: tuple[str, ...]) -> object | None:
    found = [key for key in keys if key in content]
    if len(found) > 1:
        raise DataError(f"{path}: expected one of the keys {keys}, found {found}.")
    return content[found[0]] if found else None


def _tensor(path: Path, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise DataError(f"{path}: expected an array of numbers, got dtype {value.dtype}.")
        if value.dtype.kind == "u" and value.dtype.itemsize > 1:
            value = value.astype(np.int64)  # torch has hardly any operations for these
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor):
        raise DataError(f"{path}: expected tensors, got {type(value).__name__}.")
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise DataError(f"{path}: expected dense tensors with data, got {value.layout}.")
    return value.detach()


def _check_labels(where: str, labels: Tensor) -> None:
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not integral:
        raise LabelError(
            f"{where}: expected integer labels (N,), got {labels.dtype} {tuple(labels.shape)}."
        )
