"""Sums over many rows: float32 products whose error does not grow with the number of rows.

The rows are rectified: many equal entries are rounded alike, and a plain float32 sum drifts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import assert_near
from torch import Tensor, nn

import sylvinit
from sylvinit.moments.collect import add_sample_means
from sylvinit.moments.patch_source import PatchSource
from sylvinit.moments.rows import Rows
from sylvinit.moments.streaming import PatchMoments
from sylvinit.moments.sums import row_products

ROWS = 200_000
# Relative to the largest entry. The worst seen is 2.9e-6, of products with 40 columns, which the
# library sums, and 4e-7 else; plain sums are up to 1.5e-3 off.
CLOSE = 6e-6


def rectified(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu() - 0.4


@pytest.mark.parametrize("groups", [(), (3,)], ids=["plain", "groups"])
@pytest.mark.parametrize("width", [1, 2, 3, 8, 9, 11, 12, 15, 16, 40])
def test_products_of_many_rows(width: int, groups: tuple[int, ...]) -> None:
    left, right = rectified(*groups, ROWS, width), rectified(*groups, ROWS + 1, width)[..., 1:, :]
    expected = left.double().mT @ right.double()
    found = row_products(left, right)
    assert found.dtype == torch.float64
    assert_near(found, expected.numpy(), CLOSE)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 128])
@pytest.mark.parametrize("widths", [(1, 1), (3, 20), (20, 3), (16, 16)])
def test_products_of_few_rows(rows: int, widths: tuple[int, int]) -> None:
    left, right = rectified(2, rows, widths[0]), rectified(2, rows, widths[1])
    expected = left.double().mT @ right.double()
    assert_near(row_products(left, right), expected.numpy(), CLOSE)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 9, 11, 13])
def test_moments_of_many_narrow_rows(d: int, offset: float) -> None:
    x = rectified(1, ROWS, d) + offset
    moments = PatchMoments(d)
    moments.update(x)
    centerd = (x - offset).double().numpy()[0]
    assert_near(moments.covariance()[0], np.atleast_2d(np.cov(centerd.T, bias=True)), CLOSE)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (4, 1), (8, 1), (16, 8), (4, 4)])
def test_moments_of_all_patches_of_many_pixels(channels: int, groups: int, padding: int) -> None:
    x = rectified(48, channels, 64, 64)
    expected = sylvinit.patch_moments(x.double(), 3, padding=padding, groups=groups)
    found = sylvinit.patch_moments(x, 3, padding=padding, groups=groups)
    for group in range(groups):
        assert_near(found.covariance()[group], expected.covariance()[group].numpy(), CLOSE)


def test_weights_do_not_depend_on_the_microbatch() -> None:
    """All patches of smooth images, whose smallest eigenvalues a plain sum loses."""
    x = torch.nn.functional.avg_pool2d(rectified(128, 3, 36, 36), 5, stride=1)

    def weight(microbatch: int, dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 16, 3).to(dtype)
        model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 900, 2).to(dtype))
        sylvinit.initialize_(
            model,
            x.to(dtype),
            patches="all",
            microbatch=microbatch,
            exclude="3",
            progress=False,
        )
        return layer.weight.detach().double()

    exact = weight(128, torch.float64)
    for microbatch in (1, 128):
        error = (weight(microbatch, torch.float32) - exact).norm() / exact.norm()
        assert error < 1e-4  # the worst seen is 1.5e-6; 1.9e-3 with plain sums


@pytest.mark.parametrize("widths", [(2, 8, 8, 2), (2, 11, 11, 2)])
def test_many_samples_of_few_features(widths: tuple[int, ...]) -> None:
    """Half of such networks were refused: the covariance had negative eigenvalues."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        angle = torch.rand(30_000, generator=generator) * torch.pi
        y = torch.arange(30_000) % 2
        x = torch.stack((angle.cos() + y, angle.sin() * (1 - 2 * y) + y / 2), dim=1)
        x += 0.1 * torch.randn(x.shape, generator=generator)
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        report = sylvinit.initialize_(
            nn.Sequential(*layers[:-1]), (x, y), preset="best", progress=False
        )
        assert len(report.solved) == len(widths) - 1


@pytest.mark.parametrize("equal", [True, False], ids=["equal lengths", "other lengths"])
def test_means_of_long_samples(equal: bool) -> None:
    """Means that differ by a tenth of the deviation, 30 deviations from 0."""
    samples, length, d = 16, 20_000, 4
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, length, d, generator=generator) + 30
    x += 0.1 * torch.randn(samples, 1, d, generator=generator)
    counts = np.full(samples, length)
    if not equal:
        counts[::2] -= 1000
        counts[1::2] += 1000
    rows = Rows(None, counts, 1)
    found, expected = PatchMoments(d), PatchMoments(d)
    for moments, dtype in ((found, torch.float32), (expected, torch.float64)):
        source = PatchSource(x.flatten(0, 1).to(dtype), None, 1, (), rows, None)
        add_sample_means(moments, source)
    # The means are float32: off by up to 1e-6 beside deviations of 0.1. The worst seen is 1.2e-5.
    assert_near(found.covariance()[0], expected.covariance()[0].numpy(), 5e-5)


def test_a_microbatch_of_padding_alone_has_no_means() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.model(x).mean(dim=1)

    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(40, 5, 4, generator=generator), torch.arange(40) % 2
    mask = torch.ones(40, 5, dtype=torch.bool)
    mask[8:16] = False  # the second microbatch
    data = {"x": x, "attention_mask": mask, "labels": labels}
    report = sylvinit.initialize_(
        Classifier(), data, preset="frozen", microbatch=8, head_code="onehot", progress=False
    )
    assert len(report.solved) == 2
    assert report.layers[0].rows == 32 * 5
