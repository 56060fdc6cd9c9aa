"""End to end on CIFAR-10, where SYLVINIT_DATA names the folder that holds cifar-10-batches-py.

ResNet-20 on 100 training images per class, and the accuracy before training on 2,500 test images,
on all 10,000 with --thorough. One seed; over five the mean is about 32 to 34 % with a standard
deviation of 1 to 1.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sylvinit
from sylvinit.demo.networks import resnet20
from sylvinit.demo.training import accuracy, calibrate_norm
from sylvinit.io.datasets import Samples, few_per_class, load_cifar10, normalize_cifar10


def channels_last(images: torch.Tensor) -> torch.Tensor:
    return normalize_cifar10(images.contiguous(memory_format=torch.channels_last))


@pytest.fixture(scope="module")
def samples(request: pytest.FixtureRequest, cifar10_folder: Path) -> tuple[Samples, Samples]:
    """1,000 training images, and test images."""
    images, labels = load_cifar10(cifar10_folder, train=True)
    chosen = few_per_class(labels, 100, seed=0)
    test_images, test_labels = load_cifar10(cifar10_folder, train=False)
    assert len(test_labels) == 10_000
    if not request.config.getoption("thorough"):
        test_images, test_labels = test_images[:2500], test_labels[:2500]
    train = Samples(channels_last(images[chosen]), labels[chosen])
    return train, Samples(channels_last(test_images), test_labels)


def he_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet20()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.to(memory_format=torch.channels_last)


def initialized_accuracy(samples: tuple[Samples, Samples], **options: Any) -> float:
    train, test = samples
    model = he_network()
    report = sylvinit.initialize_(model, train, **{"preset": "best", **options})
    assert len(report.solved) == 20
    assert len([layer for layer in report.layers if layer.status == "calibrated"]) == 19
    return accuracy(model, test)


@pytest.fixture(scope="module")
def default_accuracy(samples: tuple[Samples, Samples]) -> float:
    return initialized_accuracy(samples)


def test_accuracy_before_training(
    samples: tuple[Samples, Samples], default_accuracy: float
) -> None:
    train, test = samples
    assert torch.bincount(train.labels).tolist() == [100] * 10
    model = he_network()
    calibrate_norm(model, train.inputs)
    he = accuracy(model, test)
    sylvinit.initialize_head_(model, train)
    head_only = accuracy(model, test)
    assert he < 0.15  # chance is 10 %
    assert default_accuracy >= 0.31
    assert default_accuracy > head_only > he


def test_accuracy_hardly_depends_on_the_microbatch(
    samples: tuple[Samples, Samples], default_accuracy: float
) -> None:
    """Float32 weights of late layers differ, and with them the accuracy of one seed.

    Over five seeds the means of three ways (default, microbatches of 100, contiguous images in
    microbatches of 7) were 34.0, 33.8 and 33.7 % with rows not scaled; for single seeds they
    differed by up to 3 points.
    """
    train, test = samples
    contiguous = Samples(train.inputs.contiguous(), train.labels)
    other = initialized_accuracy((contiguous, test), microbatch=7)
    assert abs(other - default_accuracy) < 0.05
