from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sylvinit.diagnostics import effective_rank
from sylvinit.errors import DataError, OptionTypeError


def with_spectrum(values: list[float], n: int, d: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose columns have the mean zero and whose singular values are given."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((n, len(values)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(rng.standard_normal((d, len(values))))
    return torch.from_numpy(left * values @ right.T)


def entropy_rank(values: list[float]) -> float:
    shares = [value / math.fsum(values) for value in values if value > 0]
    return math.exp(-math.fsum(p * math.log(p) for p in shares))


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
    st.integers(7, 12),
    st.integers(6, 12),
    st.booleans(),
)
def test_rank_of_a_known_spectrum(values: list[float], n: int, d: int, center: bool) -> None:
    features = with_spectrum(values, n, d)
    # Singular values are exact to a few eps of the largest; the 6 others are rounding errors.
    found = effective_rank(features, center=center)
    assert found == pytest.approx(entropy_rank(values), rel=1e-9)


def test_centering_and_flattening() -> None:
    features = with_spectrum([1.0, 1.0, 1.0], 10, 6).reshape(10, 2, 3) + 5.0
    assert effective_rank(features) == pytest.approx(3, rel=1e-12)
    x = features.reshape(10, 6).numpy()
    expected = entropy_rank(np.linalg.svd(x, compute_uv=False).tolist())
    assert effective_rank(features, center=False) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e300, 1e-300, -7.3])
def test_constant_features_have_rank_zero_in_spite_of_rounding(value: float) -> None:
    features = torch.full((7, 3), value, dtype=torch.float64)
    assert effective_rank(features) == 0.0
    expected = 0.0 if value == 0 else 1.0
    assert effective_rank(features, center=False) == pytest.approx(expected, rel=1e-12)


def test_one_sample_and_one_feature() -> None:
    assert effective_rank(torch.randn(1, 5)) == 0.0
    assert effective_rank(torch.arange(5.0)) == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scale_does_not_matter(scale: float) -> None:
    features = with_spectrum([3.0, 2.0, 1.0], 8, 5)
    assert effective_rank(features * scale) == pytest.approx(effective_rank(features), rel=1e-12)


def test_low_precision_is_computed_in_float64() -> None:
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).half()
    assert effective_rank(features) == effective_rank(features.double())


def test_input_is_left_alone() -> None:
    features = torch.randn(4, 3, requires_grad=True)
    before = features.detach().clone()
    effective_rank(features)
    assert torch.equal(features.detach(), before)
    assert features.grad is None


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([[1.0]], OptionTypeError, "features must be a tensor, got list"),
        (torch.ones(2, 2).long(), DataError, r"floating dtype, got torch.int64"),
        (torch.ones(0, 2), DataError, r"at least one sample .*\(0, 2\)"),
        (torch.ones(2, 0), DataError, r"at least one sample and one feature"),
        (torch.tensor(1.0), DataError, r"the shape \(\)"),
        (torch.tensor([[1.0], [math.nan]]), DataError, "got NaN or Inf"),
        (torch.tensor([[1.0], [math.inf]]), DataError, "got NaN or Inf"),
    ],
)
def test_bad_input(features: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        effective_rank(features)  # type: ignore[arg-type]
