"""Matrices of another strength, and their factors."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import equal_correlation, random_correlation, smooth_correlation
from hypothesis import given, settings
from hypothesis import strategies as st

from sylvinit import priors
from sylvinit.correlated import check_correlation, scale_correlation
from sylvinit.errors import CorrelationError, OptionError, OptionTypeError, SylvinitWarning
from sylvinit.priors.strength import factor

# Sums and eigendecompositions of at most 12 x 12 matrices in float64; the worst difference seen in
# these tests is 2e-15.
CLOSE = 1e-12
RANDOM = {"taps": st.integers(1, 12), "seed": st.integers(0, 10**6)}


@given(**RANDOM, strength=st.floats(0, 1))
@settings(derandomize=True)
def test_up_to_strength_one_only_the_entries_change(taps: int, seed: int, strength: float) -> None:
    corr = np.abs(random_correlation(taps, seed)) * 0.5 + 0.5 * np.eye(taps)
    corr = corr if np.linalg.eigvalsh(corr)[0] >= 0 else np.eye(taps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scale_correlation(corr, strength).numpy()
    expected = strength * corr + (1 - strength) * np.eye(taps)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)  # one rounding each
    np.testing.assert_array_equal(np.diag(found), 1)


def test_the_ends_are_exact() -> None:
    corr = random_correlation(9)
    assert torch.equal(scale_correlation(corr, 0), torch.eye(9).double())
    assert torch.equal(scale_correlation(corr, 1.0), torch.from_numpy(corr))
    assert torch.equal(scale_correlation(corr), torch.from_numpy(corr))


@pytest.mark.parametrize("strength", [1.8, 2.5, 4.0, 50.0])
@pytest.mark.parametrize("name", ["resnet10-cifar10", "smooth"])
def test_an_indefinite_matrix_is_clipped(name: str, strength: float) -> None:
    corr = smooth_correlation((3, 3)) if name == "smooth" else priors.load(name).numpy()
    scaled = strength * corr + (1 - strength) * np.eye(9)
    values, vectors = np.linalg.eigh(scaled)
    assert values[0] < -0.01
    clipped = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
    deviation = np.sqrt(np.diag(clipped))
    expected = clipped / deviation[:, None] / deviation
    with pytest.warns(SylvinitWarning, match=rf"strength {strength:g} \(smallest eigenvalue -"):
        found = scale_correlation(corr, strength)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(np.diag(found), 1)
    assert np.linalg.eigvalsh(found.numpy())[0] > -1e-14 * strength * 9
    assert torch.equal(check_correlation(found), found)


def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(SylvinitWarning) as caught:
        scale_correlation(smooth_correlation((3, 3)), 3.0)  # this line
    (warning,) = caught
    with open(__file__) as file:
        assert file.readlines()[warning.lineno - 1].endswith("# this line\n")
    assert warning.filename == __file__


def test_no_entry_ends_up_over_one() -> None:
    """The eigenvalue 1 - 1.0005 is within rounding, the entry 1.0005 is not."""
    corr = np.eye(9)
    corr[0, 1] = corr[1, 0] = 0.667
    with pytest.warns(SylvinitWarning, match="not positive definite at strength 1.5"):
        found = scale_correlation(corr, 1.5)
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-15)
    assert torch.equal(check_correlation(found), found)


@pytest.mark.parametrize("mean", [-0.12, -0.05, -0.01])
def test_the_largest_strength_that_keeps_the_sum_positive(mean: float) -> None:
    corr = equal_correlation(9, mean)
    limit = -1 / (8 * mean)  # 9 + 72 mean strength = 0
    with pytest.raises(CorrelationError, match=r"entries add up to .* \(eq\. 17\)") as caught:
        scale_correlation(corr, 1.5 * limit)
    said = float(re.findall(r"strength below ([0-9.e+-]+),", str(caught.value))[0])
    assert said == pytest.approx(limit, rel=5e-3)  # three digits
    with pytest.warns(SylvinitWarning, match="nearly cancel.* 100 times Kaiming's variance"):
        found = scale_correlation(corr, 0.99 * limit)
    assert float(found.sum()) == pytest.approx(0.09)
    with pytest.raises(CorrelationError):
        scale_correlation(corr, 1.01 * limit)


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf, -math.inf, 10**400])
def test_strengths_out_of_range(strength: float) -> None:
    with pytest.raises(OptionError, match="strength must be finite and at least 0"):
        scale_correlation(np.eye(9), strength)


@pytest.mark.parametrize("strength", ["1", None, True, 1j, [1.0]])
def test_strengths_of_the_wrong_type(strength: Any) -> None:
    with pytest.raises(OptionTypeError, match="strength must be a number"):
        scale_correlation(np.eye(9), strength)


# ------------------------------------------------------------------------------------------ factor


@given(**RANDOM, rank=st.integers(1, 24))
@settings(derandomize=True)
def test_the_factor_is_one(taps: int, seed: int, rank: int) -> None:
    corr = random_correlation(taps, seed, rank)
    found = factor(torch.from_numpy(corr)).numpy()
    np.testing.assert_allclose(found @ found.T, corr, rtol=0, atol=CLOSE)


def test_the_factor_of_a_definite_matrix_is_choleskys() -> None:
    corr = random_correlation(9)
    found = factor(torch.from_numpy(corr)).numpy()
    np.testing.assert_allclose(found, np.linalg.cholesky(corr), rtol=0, atol=CLOSE)


def test_all_ones() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = scale_correlation(np.ones((9, 9)), 1.0)
    found = factor(matrix)
    # sqrt of an eigenvalue that should be 0: rounding of 1e-16 becomes 1e-8 in a factor, but its
    # square is as small again in the product.
    torch.testing.assert_close(found @ found.mT, matrix, rtol=0, atol=CLOSE)
