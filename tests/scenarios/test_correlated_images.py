"""On real images: how alike neighboring pixels are, and what that does to the output variance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sylvinit
from sylvinit.correlated import correlation_by_distance, output_variance
from sylvinit.io.datasets import load_cifar10, load_digits, normalize_cifar10

PRIOR = sylvinit.priors.load("resnet10-cifar10")


@pytest.fixture(scope="module")
def images(cifar10_folder: Path) -> Tensor:
    return normalize_cifar10(load_cifar10(cifar10_folder, train=True).inputs[:200])


def test_neighboring_pixels_are_alike(images: Tensor) -> None:
    """0.92 at distance 1 here, 0.52 across the diagonal; falling, but for the direction."""
    corr = sylvinit.input_correlation(nn.Conv2d(3, 4, 5), images, patches=40)[""]
    profile = correlation_by_distance(corr).correlation
    assert float(profile[0]) > 0.85
    assert bool((profile.diff() < 0.03).all())  # 0.011 at most here
    assert float(profile[-1]) < float(profile[0]) - 0.3


def test_eq_17_preserves_the_variance_of_images(images: Tensor) -> None:
    """E[y^2] / E[x^2] within 8 % of gain^2, and as output_variance says; Kaiming's is 2.7 times."""
    images = images[:50]
    patches = F.unfold(images, 3).double().unflatten(1, (3, 9)).permute(0, 3, 1, 2).reshape(-1, 9)
    second = patches.mT @ patches / len(patches)
    scale = second.diagonal().rsqrt()
    expected = output_variance(PRIOR, second * scale * scale[:, None])
    assert expected == pytest.approx(2, rel=0.08)
    weight = torch.empty(2000, 3, 3, 3)
    sylvinit.correlated_normal_(
        weight, "resnet10-cifar10", generator=torch.Generator().manual_seed(0)
    )
    found = F.conv2d(images, weight).square().mean() / images.square().mean()
    # One direction carries most of a patch's variance, so the square of an output has the relative
    # variance 2 at most: four standard errors of 2,000 units, and the images' border.
    assert float(found) == pytest.approx(expected, rel=4 * (2 / 2000) ** 0.5 + 0.02)
    sylvinit.correlated_normal_(weight, torch.eye(9), generator=torch.Generator().manual_seed(0))
    white = F.conv2d(images, weight).square().mean() / images.square().mean()
    assert float(white) == pytest.approx(2, rel=0.15)


def test_correlated_code_on_digits() -> None:
    """Filters as correlated as the pixels of digits, solved: right on 0.99 before training."""
    train, test = load_digits()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10),
    )  # fmt: skip
    report = sylvinit.initialize_(model, train, code="correlated", progress=False)
    assert [layer.code for layer in report.solved] == ["correlated", "correlated", "onehot"]
    right = model.eval()(test.inputs).argmax(1) == test.labels
    assert float(right.double().mean()) > 0.9  # 0.99 here; chance is 0.1
