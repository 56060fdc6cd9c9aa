"""Drawn filters: their correlation, their variance, and what convolutions make of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from correlation_problems import correlated_filters, random_correlation, smooth_correlation
from driver_helpers import bits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sylvinit import correlated_normal_, priors
from sylvinit.correlated import FilterCorrelation, output_variance, resample_correlation
from sylvinit.errors import CorrelationError, ModelError, OptionError, OptionTypeError

PRIOR = priors.load("resnet10-cifar10")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, corr: Any = None, seed: int = 0, **options: Any) -> Tensor:
    corr = np.eye(math.prod(shape[2:])) if corr is None else corr
    weight = torch.empty(shape, dtype=torch.float64)
    return correlated_normal_(weight, corr, generator=generator(seed), **options)


# -------------------------------------------------------------------------------- the distribution


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_100000_filters_have_the_correlation_they_should(kernel: int) -> None:
    corr = resample_correlation(PRIOR, kernel)
    weight = drawn(1000, 100, kernel, kernel, corr=corr, seed=kernel)
    filters = weight.reshape(100_000, -1).numpy()
    expected = corr.numpy()
    pairs = np.triu_indices(kernel**2, 1)
    errors = (1 - expected**2) / math.sqrt(len(filters))
    deviations = ((np.corrcoef(filters, rowvar=False) - expected) / np.maximum(errors, 1e-12))[
        pairs
    ]
    assert np.abs(deviations).max() < 4
    # And they are errors: not all of them are small.
    assert deviations.std() == pytest.approx(1, abs=0.25)
    # Zero mean, and the variance of eq. 17, 2 / (100 channels * sum of R).
    variance = 2 / (100 * expected.sum())
    assert np.abs(filters.mean(axis=0)).max() < 4 * math.sqrt(variance / len(filters))
    relative = filters.var(axis=0) / variance - 1
    assert np.abs(relative).max() < 4 * math.sqrt(2 / len(filters))


def test_filters_are_independent_of_each_other() -> None:
    weight = drawn(400, 5, 3, 3, corr=smooth_correlation((3, 3))).reshape(400, 45).numpy()
    between = np.corrcoef(weight, rowvar=False).reshape(5, 9, 5, 9)
    for c in range(5):
        between[c, :, c] = 0
    assert np.abs(between).max() < 5 / math.sqrt(400)  # 810 pairs, 5 standard errors


@given(
    units=st.integers(1, 4),
    channels=st.integers(1, 4),
    kernel=st.sampled_from([(3,), (1, 3), (2, 2), (3, 3), (2, 2, 2)]),
    rank=st.integers(1, 9),
    gain=st.floats(1e-3, 3),
    mode=st.sampled_from(["fan_in", "fan_out"]),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True)
def test_the_formula(
    units: int,
    channels: int,
    kernel: tuple[int, ...],
    rank: int,
    gain: float,
    mode: str,
    seed: int,
) -> None:
    """C z, tap by tap, with C C^T = R: the same white numbers through NumPy's factor."""
    taps = math.prod(kernel)
    corr = random_correlation(taps, seed, rank)
    corr = corr if corr.sum() > 0.1 else np.eye(taps)
    weight = drawn(units, channels, *kernel, corr=corr, seed=seed, gain=gain, mode=mode)
    white = torch.randn(units * channels, taps, generator=generator(seed), dtype=torch.float64)
    fan = channels if mode == "fan_in" else units
    scaled = weight.numpy().reshape(-1, taps) * math.sqrt(fan * corr.sum())
    if np.linalg.eigvalsh(corr)[0] > 1e-4:
        expected = gain * white.numpy() @ np.linalg.cholesky(corr).T
        # A condition of up to 1e5; the worst difference seen is 1e-15.
        np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-11)
        return
    # Singular: any root of R will do, so look at what lies outside its range, where rounding of
    # 1e-16 in R is 1e-8 in a root.
    outside = np.linalg.svd(corr)[0][:, min(rank, taps) :]
    assert np.abs(scaled @ outside).max(initial=0) < 1e-6


SHAPES = [(300, 40, 5), (200, 10, 3, 3), (300, 1, 5, 5), (60, 8, 3, 3, 3), (128, 4, 1, 3)]


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gain", [math.sqrt(2), 1.0])
def test_the_identity_is_kaimings_distribution(
    shape: tuple[int, ...], mode: str, gain: float
) -> None:
    """Depthwise and grouped layers are those whose weight has few channels."""
    found = drawn(*shape, mode=mode, gain=gain).flatten().numpy()
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    deviation = gain / math.sqrt(fan_in if mode == "fan_in" else fan_out)
    assert kstest(found / deviation, "norm").pvalue > 0.01
    assert found.std() / deviation == pytest.approx(1, abs=4 / math.sqrt(2 * found.size))
    torchs = torch.empty(shape, dtype=torch.float64)
    nonlinearity = "relu" if gain > 1 else "linear"
    nn.init.kaiming_normal_(torchs, mode=mode, nonlinearity=nonlinearity, generator=generator(1))
    assert kstest(found, torchs.flatten().numpy()).pvalue > 0.01


# ------------------------------------------------------------------------------ variance of outputs

PARTLY = smooth_correlation((3, 3), length=2.0)
INPUTS = {"white": np.eye(9), "equal": np.ones((9, 9)), "partly": PARTLY}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("strength", ["prior", "all ones", "identity"])
def test_the_variance_of_a_convolution(kind: str, strength: str) -> None:
    """E[y^2] / E[x^2] over 2000 units and 2000 patches of 4 channels.

    The standard error of the mean over both is that over units and that over patches together.
    """
    corr = {"prior": PRIOR.numpy(), "all ones": np.ones((9, 9)), "identity": np.eye(9)}[strength]
    expected = output_variance(corr, INPUTS[kind], gain=1.3)
    x = 0.7 * correlated_filters(INPUTS[kind], 8000, 5).view(2000, 4, 3, 3)
    weight = drawn(2000, 4, 3, 3, corr=corr, gain=1.3)
    squares = F.conv2d(x.float(), weight.float())[:, :, 0, 0].double().square() / 0.49
    by_unit, by_patch = squares.mean(dim=0), squares.mean(dim=1)
    error = math.sqrt(float(by_unit.var() / len(by_unit) + by_patch.var() / len(by_patch)))
    assert error < 0.035 * expected
    assert float(squares.mean()) == pytest.approx(expected, abs=4 * error)


def test_output_variance_in_closed_form() -> None:
    corr, inputs = random_correlation(9, 1), random_correlation(9, 2)
    trace = sum(corr[i, j] * inputs[j, i] for i in range(9) for j in range(9))
    assert output_variance(corr, inputs, gain=0.5) == pytest.approx(0.25 * trace / corr.sum())
    assert output_variance(corr) == pytest.approx(2 * 9 / corr.sum())
    assert output_variance(corr, np.eye(9)) == pytest.approx(output_variance(corr), rel=1e-14)
    assert output_variance(corr, np.ones((9, 9)), gain=3) == pytest.approx(9)
    # What the docstring says of the built-in matrix.
    assert output_variance(PRIOR, gain=1) == pytest.approx(0.35, abs=5e-3)
    for bad in (np.eye(25), np.zeros((9, 9)), 2 * np.eye(9)):
        with pytest.raises(CorrelationError, match="inputs must be"):
            output_variance(corr, bad)
    with pytest.raises(OptionError, match="gain"):
        output_variance(corr, gain=-1)


def test_step_4_as_it_is_printed() -> None:
    """The sum of the drawn S is negative for half of all filters, and has no root then.

    For the others, on equal inputs, y = sum(S) / sqrt(sum(S)) and E[y^2] = E[sum(S) | > 0] =
    sqrt(2 sum(R) / pi), not 1.
    """
    corr, count = PRIOR.numpy(), 200_000
    filters = correlated_filters(corr, count, 8).numpy()
    sums = filters.sum(axis=1)
    assert (sums < 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(count))
    with np.errstate(invalid="ignore"):
        literal = (filters / np.sqrt(sums)[:, None]).sum(axis=1)
    kept = literal[~np.isnan(literal)] ** 2
    assert len(kept) == (sums > 0).sum()
    error = kept.std() / math.sqrt(len(kept))
    assert kept.mean() == pytest.approx(math.sqrt(2 * corr.sum() / math.pi), abs=4 * error)
    assert kept.mean() > 3
    # With the expected variance, eq. 17: 1 for all of them.
    ours = drawn(count, 1, 3, 3, corr=corr, gain=1).sum(dim=(1, 2, 3)).square()
    assert float(ours.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / count))


# -------------------------------------------------------------------------- tensors and generators


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_precision_gets_the_same_numbers(dtype: torch.dtype) -> None:
    weight = torch.empty(6, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    strides = weight.stride()
    assert correlated_normal_(weight, PRIOR, generator=generator()) is weight
    assert weight.stride() == strides
    assert torch.equal(weight, drawn(6, 4, 3, 3, corr=PRIOR).to(dtype))


def test_parameters_views_and_inference_tensors() -> None:
    expected = drawn(4, 3, 3, 3, corr=PRIOR).float()
    parameter = nn.Parameter(torch.zeros(4, 3, 3, 3))
    assert correlated_normal_(parameter, PRIOR, generator=generator()) is parameter
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter._version == 1
    whole = torch.zeros(8, 3, 3, 3)
    correlated_normal_(whole[::2], PRIOR, generator=generator())
    with torch.inference_mode():
        frozen = torch.zeros(4, 3, 3, 3)
        inside = correlated_normal_(torch.zeros(4, 3, 3, 3), PRIOR, generator=generator())
    correlated_normal_(frozen, PRIOR, generator=generator())
    for found in (parameter, whole[::2], frozen, inside):
        assert torch.equal(found, expected)
    assert not whole[1::2].any()
    with torch.device("meta"):
        on_cpu = torch.zeros(4, 3, 3, 3, device="cpu")
        assert correlated_normal_(torch.zeros(4, 3, 3, 3), PRIOR.tolist()).is_meta
        correlated_normal_(on_cpu, priors.load("resnet10-cifar10"), generator=generator())
    assert torch.equal(on_cpu, expected)
    assert correlated_normal_(torch.zeros(0, 3, 3, 3), PRIOR).shape == (0, 3, 3, 3)


def test_generators() -> None:
    first = drawn(4, 3, 3, 3, corr=PRIOR, seed=1)
    assert torch.equal(first, drawn(4, 3, 3, 3, corr=PRIOR, seed=1))
    assert not torch.equal(first, drawn(4, 3, 3, 3, corr=PRIOR, seed=2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        drawn(4, 3, 3, 3, corr=PRIOR)
        assert torch.equal(torch.get_rng_state(), before)
        found = correlated_normal_(torch.zeros(4, 3, 3, 3).double(), PRIOR)
        assert torch.equal(found, first)
        assert not torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(correlated_normal_(torch.zeros(4, 3, 3, 3).double(), PRIOR), first)


# ---------------------------------------------------------------------------------------- bad input

CONV = torch.zeros(4, 3, 3, 3)
NEGATIVE = np.eye(9) * 1.125 - 0.125


@pytest.mark.parametrize(
    ("tensor", "corr", "options", "error", "message"),
    [
        (CONV, np.eye(25), {}, CorrelationError, "9 x 9 for 9 taps, got 25 x 25"),
        (CONV, NEGATIVE, {}, CorrelationError, r"add up to .* \(eq\. 17\)"),
        (CONV, np.full((9, 9), math.nan), {}, CorrelationError, "NaN"),
        (CONV, "no-such-prior", {}, OptionError, "corr: expected one of"),
        (
            torch.zeros(4, 3, 9),
            PRIOR,
            {},
            CorrelationError,
            "of 3 x 3, and tensor has filters of 9",
        ),
        (torch.zeros(4, 3, 1, 9), PRIOR, {}, CorrelationError, "tensor has filters of 1 x 9"),
        (CONV.int(), PRIOR, {}, OptionTypeError, "got torch.int32"),
        (CONV.bool(), PRIOR, {}, OptionTypeError, "got torch.bool"),
        (CONV.cfloat(), PRIOR, {}, OptionTypeError, "got torch.complex64"),
        (CONV.numpy(), PRIOR, {}, OptionTypeError, "must be a torch.Tensor, got ndarray"),
        (torch.zeros(9, 9), np.eye(1), {}, OptionError, r"one to three spatial axes, got \(9, 9\)"),
        (torch.zeros(2, 2, 1, 1, 1, 1), np.eye(1), {}, OptionError, "one to three spatial axes"),
        (torch.zeros(()), np.eye(1), {}, OptionError, "one to three spatial axes"),
        (nn.LazyConv2d(4, 3).weight, PRIOR, {}, ModelError, "lazy"),
        (CONV, PRIOR, {"gain": -1.0}, OptionError, "gain must be finite and positive"),
        (CONV, PRIOR, {"gain": math.nan}, OptionError, "gain must be finite"),
        (CONV, PRIOR, {"gain": "relu"}, OptionTypeError, "gain must be a number"),
        (CONV, PRIOR, {"gain": True}, OptionTypeError, "gain must be a number"),
        (CONV, PRIOR, {"mode": "fan_avg"}, OptionError, "mode must be one of"),
        (CONV, PRIOR, {"mode": None}, OptionError, "mode must be one of"),
        (CONV, PRIOR, {"generator": 3}, OptionTypeError, "generator must be a torch.Generator"),
        (
            CONV[:1, :1, :1, :1].expand(4, 3, 3, 3),
            PRIOR,
            {},
            RuntimeError,
            "single memory location",
        ),
    ],
)
def test_a_call_that_fails_changes_nothing(
    tensor: Any, corr: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = torch.get_rng_state()
    values = bits(tensor) if isinstance(tensor, Tensor) and not is_lazy(tensor) else b""
    with pytest.raises(error, match=message):
        correlated_normal_(tensor, corr, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert not values or bits(tensor) == values


def test_a_matrix_that_says_another_kernel() -> None:
    named = FilterCorrelation.of(torch.eye(6).double(), (2, 3))
    correlated_normal_(torch.zeros(2, 2, 2, 3), named)
    with pytest.raises(CorrelationError, match="belongs to filters of 2 x 3"):
        correlated_normal_(torch.zeros(2, 2, 3, 2), named)
