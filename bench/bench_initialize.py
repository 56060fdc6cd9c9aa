"""initialize_ against one forward pass of the same data: pytest bench/bench_initialize.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import resnet20

SAMPLES = 1000
# The forward pass is fastest between 64 and 128 images a microbatch, see test_forward.
MICROBATCHES = (64, 128, 256)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return resnet20().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 3, 32, 32, generator=generator)
    return images.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(SAMPLES) % 10


def _forward(model: nn.Module, images: Tensor, microbatch: int) -> None:
    with torch.inference_mode():
        for part in images.split(microbatch):
            model(part)


@pytest.mark.benchmark(group="ResNet-20, 1000 images of 32 x 32")
@pytest.mark.parametrize("microbatch", [*MICROBATCHES, SAMPLES])
def test_forward(
    benchmark: BenchmarkFixture, model: nn.Module, images: Tensor, microbatch: int
) -> None:
    """The floor: what propagating the data costs."""
    benchmark(_forward, model, images, microbatch)


@pytest.mark.benchmark(group="ResNet-20, 1000 images of 32 x 32")
@pytest.mark.parametrize("microbatch", MICROBATCHES)
def test_initialize(
    benchmark: BenchmarkFixture, model: nn.Module, images: Tensor, labels: Tensor, microbatch: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        benchmark(sylvinit.initialize_, model, (images, labels), microbatch=microbatch)


@pytest.mark.benchmark(group="ResNet-20, 1000 images of 32 x 32, by code")
@pytest.mark.parametrize("code", ["pca", "lda", "kmeans", "ica"])
def test_codes(
    benchmark: BenchmarkFixture, model: nn.Module, images: Tensor, labels: Tensor, code: str
) -> None:
    def run() -> None:
        sylvinit.initialize_(model, (images, labels), code=code)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        _once_or_more(benchmark, run, expensive=code in ("kmeans", "ica"))


def _once_or_more(benchmark: BenchmarkFixture, run: Callable[[], None], *, expensive: bool) -> None:
    if expensive:
        benchmark.pedantic(run, rounds=1, iterations=1)
    else:
        benchmark(run)
