"""Rows of unit output variance: what is damped, bounded, and left as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sylvinit
from sylvinit.backends import choose
from sylvinit.moments.statistics import LayerStatistics, layer_statistics
from sylvinit.solve.scaling import DAMPING, GROWTH, output_std, scale_rows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(x: Tensor) -> LayerStatistics:
    """Of rows (groups, n, d)."""
    moments = sylvinit.PatchMoments(x.shape[2], groups=len(x), precision=torch.float64)
    moments.update(x)
    return layer_statistics(moments, choose("auto", torch.device("cpu")))


@pytest.mark.parametrize(("n", "d"), [(50, 7), (6, 20)])  # the latter in the span of its rows
def test_outputs_have_zero_mean_and_unit_variance(n: int, d: int) -> None:
    x, weight = normal(2, n, d) * 3 + 1, normal(2, 4, d, seed=1)
    stats = statistics(x)
    outputs = x @ weight.mT
    # Sums of at most 50 products of either kind, in float64.
    torch.testing.assert_close(output_std(weight, stats), outputs.std(dim=1, correction=0))
    scaled = scale_rows(weight, stats, torch.float64, weight)
    assert (scaled.rounding, scaled.bounded) == (0, 0)
    found = x @ scaled.weight.mT + scaled.bias[:, None]
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(2, 4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.std(dim=1, correction=0), torch.ones(2, 4).double())
    torch.testing.assert_close(
        scaled.weight / weight,
        (1 / outputs.std(dim=1, correction=0)).unsqueeze(2).expand(-1, -1, d),
    )


def differences(n: int, noise: float) -> tuple[Tensor, Tensor]:
    """Pairs of features (1, n, 4) that are alike up to noise, and their sums and differences."""
    x = normal(1, n, 2).repeat_interleave(2, dim=2) + noise * normal(1, n, 4, seed=1)
    return x, torch.tensor([[[1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 1], [0, 0, 1, -1.0]]]).double()


@pytest.mark.parametrize("n", [300, 3])  # the latter in the span of its rows
def test_where_features_cancel_the_scaling_is_damped(n: int) -> None:
    """As smooth images make them; undamped, rows of differences would be a million long."""
    x, weight = differences(n, 1e-6)
    scaled = scale_rows(weight, statistics(x), torch.float64, weight)
    assert (scaled.rounding, scaled.bounded) == (0, 0)
    variances = x.var(dim=1, correction=0)
    uncorrelated = (weight.square() * variances).sum(dim=2)
    rows = scaled.weight[0].norm(dim=1)
    torch.testing.assert_close(rows[1::2], (2 / (DAMPING * uncorrelated[0, 1::2])).sqrt())
    assert rows.max() < 3 / DAMPING**0.5
    outputs = x @ scaled.weight.mT
    torch.testing.assert_close(outputs.std(dim=1, correction=0)[0, ::2], torch.ones(2).double())


@pytest.mark.parametrize("noise", [1e-6, 1.0])  # damped, and not
@pytest.mark.parametrize("c", [1e-9, 1 / 255, 2.0**20])
def test_features_in_other_units_give_the_same_outputs(c: float, noise: float) -> None:
    """All of them, or one by one: the weights are those of the first units divided by the new."""
    x, weight = differences(300, noise)
    start = 1e12 * weight
    one = scale_rows(weight, statistics(x), torch.float64, start)
    for units in (torch.full((4,), c), torch.tensor([1, 1, c, c])):
        units = units.double()
        other = scale_rows(weight / units, statistics(units * x), torch.float64, start)
        # Differences of 1e-6 of what they are taken from: 1e-16 / 1e-12 of the variance.
        torch.testing.assert_close(units * other.weight, one.weight, rtol=1e-3, atol=0)
        torch.testing.assert_close(other.bias, one.bias, rtol=1e-3, atol=1e-9)


def test_the_length_of_the_solution_does_not_matter() -> None:
    x, weight = differences(300, 1e-6)
    lengths = torch.tensor([1e-3, 1, 1e3, 1e5]).double()[:, None]
    one = scale_rows(weight, statistics(x), torch.float64, weight)
    other = scale_rows(lengths * weight, statistics(x), torch.float64, weight)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=0)


@pytest.mark.parametrize("own", [0.01, 1.0, 7.0])
def test_inputs_that_hardly_vary_do_not_make_rows_long(own: float) -> None:
    """At most GROWTH times the longest row of the start, or 1, and in the same direction."""
    x, weight = 1e-7 * normal(1, 30, 3), normal(1, 3, 3, seed=1)
    start = torch.zeros(1, 3, 3, dtype=torch.float64)
    start[0, 1, 2], start[0, 0, 0] = own, own / 2
    scaled = scale_rows(weight, statistics(x), torch.float64, start)
    assert (scaled.rounding, scaled.bounded) == (0, 3)
    expected = torch.full((3,), max(1.0, GROWTH * own)).double()
    torch.testing.assert_close(scaled.weight[0].norm(dim=1), expected)
    cosines = torch.cosine_similarity(scaled.weight[0], weight[0])
    torch.testing.assert_close(cosines, torch.ones(3).double())


def test_only_rows_that_would_become_too_long_are_bounded() -> None:
    x = normal(1, 300, 3) * torch.tensor([1, 1e-3, 1e-5])
    weight = torch.eye(3).double()[None]
    scaled = scale_rows(weight, statistics(x), torch.float64, 100 * weight)
    assert scaled.bounded == 1
    found = scaled.weight[0].diagonal()
    expected = 1 / x[0].std(dim=0, correction=0)
    expected[2] = 100 * GROWTH
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("start", [0.0, math.nan, math.inf])
def test_a_start_that_says_nothing_bounds_by_a_number(start: float) -> None:
    """Layers that begin at zero, and memory that nothing was written to."""
    x, weight = 1e-7 * normal(1, 30, 3), torch.eye(3).double()[None]
    scaled = scale_rows(weight, statistics(x), torch.float64, torch.full_like(weight, start))
    torch.testing.assert_close(scaled.weight, GROWTH * weight)


def test_rows_fit_into_the_type_of_the_layer() -> None:
    """A start near the largest float16 would allow rows that it cannot hold."""
    x, start = 1e-7 * normal(1, 30, 3), torch.full((1, 3, 3), 6e4, dtype=torch.float16)
    scaled = scale_rows(torch.eye(3).double()[None], statistics(x), torch.float32, start)
    assert scaled.bounded == 3
    largest = torch.finfo(torch.float16).max
    torch.testing.assert_close(scaled.weight[0], largest * torch.eye(3).double())
    assert bool(scaled.weight.half().isfinite().all())


def test_rows_whose_output_never_varies_are_left() -> None:
    x = normal(1, 30, 4)
    x[..., 3] = 0
    weight = torch.eye(4, dtype=torch.float64)[None]
    scaled = scale_rows(weight, statistics(x), torch.float64, weight)
    assert torch.equal(scaled.weight[0, 3], weight[0, 3])
    assert (scaled.rounding, scaled.bounded) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_may_be_rounding_is_left(dtype: torch.dtype) -> None:
    """The last feature deviates by half of eps of the root mean square, the third by twice that."""
    x, eps = normal(1, 400, 4), torch.finfo(dtype).eps
    x = (x - x.mean(dim=1)) / x.std(dim=1, correction=0)
    x *= torch.tensor([1, 1, 2 * eps, eps / 2])
    weight = torch.eye(4).double()[None]
    scaled = scale_rows(weight, statistics(x), dtype, 1e9 * weight)
    assert (scaled.rounding, scaled.bounded) == (1, 0)
    expected = torch.tensor([1, 1, 1 / (2 * eps), 1]).double()
    # Moments in float64 of a feature eps^2 of the others: 1e-16 / eps^2 is 1e-2 for float32.
    torch.testing.assert_close(scaled.weight[0].diagonal(), expected, rtol=0.02, atol=0)


def test_bias_is_that_of_the_weight_as_it_is_held() -> None:
    x = 5 + 0.1 * normal(1, 200, 16)
    start = normal(1, 8, 16, seed=2).bfloat16()
    scaled = scale_rows(normal(1, 8, 16, seed=1), statistics(x), torch.float64, start)
    held = scaled.weight.bfloat16().double()
    means = (x @ held.mT).mean(dim=1) + scaled.bias
    assert means.abs().max() < 1e-12
    unrounded = (x @ scaled.weight.mT).mean(dim=1)
    assert (unrounded + scaled.bias).abs().max() > 1e-3  # it does matter


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """40 samples of rank 20: the other components are what rounding left of them."""
    x = (normal(40, 20) @ normal(20, 100, seed=1)).to(dtype)
    model = nn.Sequential(nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 4)).to(dtype)
    report = sylvinit.initialize_(model, (x, torch.arange(40) % 4), preset="best", patches="all")
    assert report["0"].notes[-1] == (
        "19 rows not scaled: their output may be rounding of the inputs"
    )
    outputs = x.double() @ model[0].weight.double().T
    scaled = outputs.std(dim=0, correction=0)[:20]
    # Weights of 8 or 11 bits; the worst deviation measured, over five seeds, is 0.07 %.
    assert (scaled - 1).abs().max() < 0.005
    assert model[0].weight.abs().max() < 1
