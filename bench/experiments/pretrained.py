"""The pretrained network of the first paper's table 1 (c), and new heads for it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from architectures import to_channels_last
from config import Arm
from data import MissingDataError
from initialisers.table import BASELINES
from meaning import SYLVINIT_HEAD, arguments_from
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import CifarResNet, resnet20
from sylvinit.demo.tasks import he_init_
from sylvinit.io.datasets import Samples

NORMALISATION = "cifar100"  # of the images that it was trained on
_SOURCE_CLASSES = 100
_BATCH = 250


def find_checkpoint(name: str | None) -> Path:
    """The file of a pretrained network.

    Raises:
        MissingDataError: it is not there; the message says what is needed.
    """
    folder = os.environ.get("SYLVINIT_CHECKPOINTS")
    if not folder or not (Path(folder) / (name or "")).is_file():
        raise MissingDataError(f"expected {name} in the folder that SYLVINIT_CHECKPOINTS names")
    return Path(folder) / (name or "")


def pretrained_network(checkpoint: Path) -> CifarResNet:
    """The network as it was trained, in channels_last and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        model = resnet20(num_classes=_SOURCE_CLASSES)
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    to_channels_last(model).eval()
    return model


def without_head(model: CifarResNet, grid: int = 1) -> nn.Module:
    """What ``model``, which is changed, has before its last layer, of every image.

    Args:
        model: the network.
        grid: 1 for the mean of the last map; more for those of its grid x grid parts, channels
            first.
    """
    if grid > 1:
        first = (model.conv1, model.bn1, nn.ReLU(), model.blocks)
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(grid), nn.Flatten()).eval()
    model.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return model


@torch.no_grad()
def features(model: nn.Module, samples: Samples) -> Samples:
    """What ``model``, without its head, makes of the images: float32 (N, channels)."""
    parts: list[Tensor] = [model(part) for part in samples.inputs.split(_BATCH)]
    return Samples(torch.cat(parts), samples.labels)


def new_head(arm: Arm, size: int, classes: int, samples: Samples, seed: int) -> nn.Linear:
    """A linear layer, initialised as an arm says.

    Args:
        arm: "sylvinit-head", whose settings are those of ``initialize_head_``, or a name of
            ``initialisers.table.BASELINES``.
        size: number of features.
        classes: number of outputs.
        samples: features of the images, which random heads do not look at.
        seed: of everything random.

    Returns:
        The layer, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(size, classes)
    model = nn.Sequential(head)
    he_init_(model, seed)
    pair = (samples.inputs, samples.labels)
    with warnings.catch_warnings():
        # That there are few samples is the point of these experiments.
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        if is_solved(arm):
            sylvinit.initialize_head_(
                model, pair, seed=seed, progress=False, **arguments_from(arm.settings)
            )
        else:
            BASELINES[arm.initialiser](model, pair, seed)
    return head


def is_solved(arm: Arm) -> bool:
    """Whether a head of this arm depends on the images."""
    return arm.initialiser == SYLVINIT_HEAD
