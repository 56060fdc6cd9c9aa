"""Statistics of batch normalization against sums in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sylvinit.errors import NonFiniteError
from sylvinit.model.batch_norm import Norm

# Of the variance, relative: 1.9e-6 is the worst seen, at an offset of 1.9 deviations, where the
# variance is the difference of two sums of five times its size. 6e-7 in 6,000 examples as below.
CLOSE = 5e-6
# Of the mean, relative to mean and deviation: the buffer is float32. The worst seen is 9e-8.
CLOSE_MEAN = 2e-7

MAPS = [(), (1,), (5,), (16,), (63,), (70,), (5000,), (4, 4), (7, 7), (3, 70), (32, 32), (60, 60)]
MAPS += [(64, 65), (3, 4, 5), (2, 1, 100)]


def images(shape: tuple[int, ...], offset: float, rectified: bool, seed: int = 0) -> Tensor:
    """Random maps; mean / deviation of the first channel is ``offset``, of the last one 0."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if rectified:
        x = x.relu() - 0.4
    if shape[1] > 1:
        x[:, 0] += offset
    return x


def calibrated(parts: list[Tensor]) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(parts[0].shape[1])
    norm = Norm(module, "bn")
    for part in parts:
        norm.collect(part)
    norm.finish()
    return module


def assert_statistics(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> None:
    rows = x.double().transpose(0, 1).flatten(1)
    mean, variance = rows.mean(dim=1), rows.var(dim=1)
    found_mean, found_variance = module.running_mean, module.running_var
    assert found_mean is not None
    assert found_variance is not None
    assert ((found_variance - variance).abs() <= CLOSE * variance).all()
    scale = mean.abs() + variance.sqrt()
    assert ((found_mean - mean).abs() <= CLOSE_MEAN * scale).all()


@settings(deadline=None)
@given(
    samples=st.integers(2, 9),
    channels=st.integers(1, 5),
    size=st.sampled_from(MAPS),
    offset=st.sampled_from([0.0, 0.5, 1.9, 3.0, 8.0, 30.0, 1000.0]),
    rectified=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels last", "every other sample"]),
    split=st.integers(1, 8),
)
def test_statistics_are_those_of_all_entries(
    samples: int,
    channels: int,
    size: tuple[int, ...],
    offset: float,
    rectified: bool,
    layout: str,
    split: int,
) -> None:
    x = images((samples, channels, *size), offset, rectified)
    if layout == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "every other sample":
        x = x.repeat_interleave(2, dim=0)[::2]
    assert_statistics(calibrated(list(x.split(split))), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_statistics_of_other_dtypes(dtype: torch.dtype) -> None:
    x = images((6, 3, 8, 9), 0.5, False).to(dtype)
    assert_statistics(calibrated([x[:4], x[4:]]), x)


@pytest.mark.parametrize("shape", [(70, 5, 32, 32), (3, 2, 700, 600), (100_000, 7)], ids=str)
def test_statistics_of_more_entries_than_are_taken_at_once(shape: tuple[int, ...]) -> None:
    x = images(shape, 0.5, True)
    x += torch.arange(len(x)).view(-1, *[1] * (len(shape) - 1)) / len(x)  # no part is like another
    assert_statistics(calibrated([x]), x)


def test_a_mean_whose_square_is_too_large() -> None:
    x = images((4, 2, 16, 16), 0.0, False) * 1e16 + 1e20
    assert_statistics(calibrated([x]), x)


def test_the_default_device_is_of_no_account() -> None:
    x = images((4, 2, 16, 16), 0.0, False)
    norm = Norm(nn.BatchNorm2d(2), "bn")
    with torch.device("meta"):
        norm.collect(x)
    norm.finish()
    assert_statistics(norm.module, x)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, 1e18])
def test_a_channel_of_one_value_has_no_variance(value: float) -> None:
    module = calibrated([torch.full((4, 2, 16, 16), value)] * 2)
    assert module.running_mean is not None
    assert module.running_var is not None
    torch.testing.assert_close(module.running_mean, torch.full((2,), value), rtol=1e-7, atol=0)
    # The mean is rounded to float32: at most 2^-24 of it, whose square is left.
    assert (module.running_var <= (value * 2.0**-24) ** 2 * 1.01).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found(bad: float) -> None:
    x = images((4, 2, 16, 16), 0.0, False)
    x[1, 1, 2, 3] = bad
    with pytest.raises(NonFiniteError, match="bn"):
        calibrated([x])


def test_maps_without_pixels_count_for_nothing() -> None:
    x = images((4, 2, 16, 16), 0.0, False)
    assert_statistics(calibrated([x[:2], x.new_zeros(3, 2, 4, 0), x[2:]]), x)
