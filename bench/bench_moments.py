"""Patch moments against unfold + matmul, by layer size: pytest bench/bench_moments.py.

On a machine that is busy, in processor time: --benchmark-timer=time.process_time.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import sylvinit

IMAGES = 100
# (channels, size of the map): the three stages of ResNet-20, a small and a wide layer.
LAYERS = [(16, 32), (32, 16), (64, 8), (16, 8), (64, 32)]


def _input(channels: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, channels, size, size, generator=generator)
    return x.to(memory_format=torch.channels_last)


def _unfold(x: Tensor) -> Tensor:
    """What a user would write: all patches, their mean, and their Gram matrix."""
    rows = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    rows = rows - rows.mean(dim=0)
    return rows.T @ rows


def _gather(x: Tensor, per_image: int) -> Tensor:
    """The floor of sampling: the rows of an unfolded chunk, taken at random, and one product."""
    generator = torch.Generator().manual_seed(0)
    patches: list[Tensor] = []
    for part in x.split(10):
        rows = F.unfold(part, 3, padding=1).transpose(1, 2)
        index = torch.randint(rows.shape[1], (len(part), per_image), generator=generator)
        index = index[:, :, None].expand(-1, -1, rows.shape[2])
        patches.append(rows.gather(1, index).flatten(0, 1))
    rows = torch.cat(patches)
    return rows.T @ rows


@pytest.mark.parametrize(("channels", "size"), LAYERS)
@pytest.mark.parametrize("method", ["sylvinit", "unfold"])
def test_all_patches(benchmark: BenchmarkFixture, channels: int, size: int, method: str) -> None:
    benchmark.group = f"all 3 x 3 patches, {channels} channels, {size} x {size}"
    x = _input(channels, size)
    if method == "unfold":
        benchmark(_unfold, x)
    else:
        benchmark(lambda: sylvinit.patch_moments(x, 3, padding=1).covariance())


@pytest.mark.parametrize(("channels", "size"), LAYERS)
@pytest.mark.parametrize("method", ["sylvinit", "unfold"])
def test_sampled_patches(
    benchmark: BenchmarkFixture, channels: int, size: int, method: str
) -> None:
    benchmark.group = f"10 random 3 x 3 patches an image, {channels} channels, {size} x {size}"
    x = _input(channels, size)
    if method == "unfold":
        benchmark(_gather, x, 10)
    else:
        benchmark(lambda: sylvinit.patch_moments(x, 3, padding=1, patches=10).covariance())
