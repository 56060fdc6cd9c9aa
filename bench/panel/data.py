"""The panel's data: three fixed pools of every set, and what a run draws from them.

A run trains on samples that its seed draws from the first pool. Rates are chosen on the second one,
and what is reported is measured on the third, so that nothing is chosen by what is tested.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from experiments.data import MissingDataError, channels_last
from experiments.data import load as load_images
from torch import Tensor

from sylvinit.io.datasets import Samples, few_per_class

IGNORED = -100
MEASURED = 1000  # samples at most that a network is measured on; a seed draws them
VALIDATION = 1000
_CLASSES_OF_CIFAR100 = range(0, 100, 10)


class Pools(NamedTuple):
    """Samples to train on, to choose rates by, and to test on.

    Labels are classes (N,), classes of pixels (N, H, W), -100 for none, or numbers (N, 1).
    """

    train: Samples
    validation: Samples
    test: Samples

    @property
    def outputs(self) -> int:
        """Of a network for these labels."""
        labels = self.train.labels
        return labels.shape[1] if labels.is_floating_point() else int(labels.max()) + 1


def draw(
    pools: Pools, shots: int | float, seed: int, split: str, size: int | None = None
) -> tuple[Samples, Samples]:
    """What a run trains on, and what it is measured on.

    Args:
        pools: from :func:`load`.
        shots: samples of each class; of label maps samples in all; a float: the share of the pool.
        seed: of the choice.
        split: "test" or "validation".
        size: of the images, None to leave them as they are.
    """
    labels = pools.train.labels
    generator = torch.Generator().manual_seed(seed)
    if isinstance(shots, int) and labels.ndim == 1:
        chosen = few_per_class(labels, shots, seed)
    else:
        count = shots if isinstance(shots, int) else round(shots * len(labels))
        chosen = torch.randperm(len(labels), generator=generator)[:count]
    measured = pools.test if split == "test" else pools.validation
    seen = torch.randperm(len(measured.labels), generator=generator)[:MEASURED]
    return _pick(pools.train, chosen, size), _pick(measured, seen, size)


@functools.lru_cache(maxsize=4)
def load(name: str) -> Pools:
    """The pools of the set ``name``, a key of ``SETS``.

    Raises:
        MissingDataError: it is not on this machine; the message says what is needed.
    """
    try:
        return SETS[name]()
    except (ImportError, OSError) as error:
        raise MissingDataError(f"data set {name!r}: {error}") from error


def divided(samples: Samples, *sizes: int) -> list[Samples]:
    """Parts of these sizes and what is left, drawn with a fixed seed."""
    order = torch.randperm(len(samples.labels), generator=torch.Generator().manual_seed(2026))
    parts = order.split([*sizes, len(order) - sum(sizes)])
    return [Samples(samples.inputs[part], samples.labels[part]) for part in parts]


def _pick(samples: Samples, chosen: Tensor, size: int | None) -> Samples:
    inputs = samples.inputs[chosen]
    if size is not None and inputs.shape[-1] != size:
        inputs = F.interpolate(inputs, size=size, mode="bilinear", antialias=True)
    if inputs.ndim == 4:
        inputs = channels_last(inputs)
    return Samples(inputs, samples.labels[chosen])


def _official(train: Samples, test: Samples) -> Pools:
    """A fifth of the training samples to validate on, and at most 1,000."""
    validation, rest = divided(train, min(len(train.labels) // 5, VALIDATION))
    return Pools(rest, validation, test)


def _of_all(samples: Samples) -> Pools:
    """Two fifths to train on, one to validate on, two to test on."""
    count = len(samples.labels)
    return Pools(*divided(samples, 2 * count // 5, count // 5))


def _images(name: str) -> Pools:
    whole = load_images(name)
    load_images.cache_clear()
    return _official(whole.train, whole.test)


def _ten_of_cifar100() -> Pools:
    whole = load_images("cifar100")
    load_images.cache_clear()

    def ten(samples: Samples) -> Samples:
        places = torch.full((100,), -1)
        places[list(_CLASSES_OF_CIFAR100)] = torch.arange(10)
        labels = places[samples.labels]
        return Samples(samples.inputs[labels >= 0], labels[labels >= 0])

    return _official(ten(whole.train), ten(whole.test))


def _digit_rows() -> Pools:
    """The rows of 8 x 8 digits as tokens: (N, features, length)."""
    pools = _images("digits")
    return Pools(*(Samples(part.inputs[:, 0].transpose(1, 2), part.labels) for part in pools))


def _folder() -> Path:
    folder = os.environ.get("SYLVINIT_DATA")
    if not folder:
        raise MissingDataError("SYLVINIT_DATA is not set")
    return Path(folder)


def _table(name: str) -> Pools:
    with np.load(_folder() / "uci_regression.npz") as content:
        x, y = content[f"{name}_x"], content[f"{name}_y"]
    numbers = torch.from_numpy(y.astype(np.float32)).view(-1, 1)
    pools = _of_all(Samples(torch.from_numpy(x.astype(np.float32)), numbers))
    return _standardized(pools, (0,), targets=True)


def _breast_cancer() -> Pools:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    samples = Samples(torch.from_numpy(x).float(), torch.from_numpy(y).long())
    return _standardized(_of_all(samples), (0,))


def _series(name: str, length: int | None = None, image: bool = False) -> Pools:
    """A set that aeon has in its package: (N, channels, time), as images of one channel if asked.

    Series that are shorter than the longest one end in zeros; ``length`` averages neighbors.
    """
    aeon: Any = importlib.import_module("aeon.datasets")
    x, y = aeon.load_classification(name)
    longest = max(len(series[0]) for series in x)
    rows = [np.pad(series, ((0, 0), (0, longest - series.shape[1]))) for series in x]
    inputs = torch.from_numpy(np.stack(rows).astype(np.float32))
    if length is not None:
        inputs = F.adaptive_avg_pool1d(inputs, length)
    classes = torch.from_numpy(np.unique(y, return_inverse=True)[1]).long()
    pools = _standardized(_of_all(Samples(inputs, classes)), (0, 2))
    if image:
        pools = Pools(*(Samples(part.inputs[:, None], part.labels) for part in pools))
    return pools


def _camvid() -> Pools:
    from targets_segmentation import VOID
    from targets_segmentation import load as load_camvid

    images, masks = load_camvid(_folder())
    samples = Samples(images, masks.masked_fill(masks == VOID, IGNORED))
    return Pools(*divided(samples, 268, 60))


def _standardized(pools: Pools, over: tuple[int, ...], targets: bool = False) -> Pools:
    """Features, and targets if asked, by mean and deviation of the pool that is trained on."""

    def scaled(parts: list[Tensor], over: tuple[int, ...]) -> list[Tensor]:
        mean = parts[0].mean(dim=over, keepdim=True)
        size = parts[0].std(dim=over, keepdim=True)
        return [(part - mean) / torch.where(size > 0, size, torch.inf) for part in parts]

    inputs = scaled([part.inputs for part in pools], over)
    labels = [part.labels for part in pools]
    if targets:
        labels = scaled(labels, (0,))
    return Pools(*(Samples(x, y) for x, y in zip(inputs, labels, strict=True)))


SETS: dict[str, Callable[[], Pools]] = {
    "cifar10": partial(_images, "cifar10"),
    "cifar100-10": _ten_of_cifar100,
    "mnist5k": partial(_images, "mnist5k"),
    "digits": partial(_images, "digits"),
    "digit rows": _digit_rows,
    "concrete": partial(_table, "concrete"),
    "energy": partial(_table, "energy"),
    "skillcraft": partial(_table, "skillcraft"),
    "airfoil": partial(_table, "airfoil"),
    "breast cancer": _breast_cancer,
    "camvid": _camvid,
    "japanese vowels": partial(_series, "JapaneseVowels"),
    "osu leaf": partial(_series, "OSULeaf", length=128),
    "japanese vowels, images": partial(_series, "JapaneseVowels", image=True),
}
