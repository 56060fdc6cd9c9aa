"""Correlation matrices: the checks, the strength, the factor."""

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
from sylvinit.correlated import FilterCorrelation, check_correlation, scale_correlation
from sylvinit.errors import CorrelationError, OptionError, OptionTypeError, SylvinitWarning
from sylvinit.priors.matrix import check_kernel, kernel_of
from sylvinit.priors.strength import factor

# Sums and eigendecompositions of at most 12 x 12 matrices in float64; the worst difference seen in
# these tests is 2e-15.
CLOSE = 1e-12
RANDOM = {"taps": st.integers(1, 12), "seed": st.integers(0, 10**6)}


# ------------------------------------------------------------------------------------------ checks


def _with(row: int, column: int, value: float) -> np.ndarray:
    matrix = equal_correlation(9, 0.3)
    matrix[row, column] = value
    return matrix


def _pair(value: float) -> np.ndarray:
    matrix = _with(0, 1, value)
    matrix[1, 0] = value
    return matrix


@pytest.mark.parametrize(
    ("corr", "error", "message"),
    [
        (np.ones((2, 3)), CorrelationError, r"square matrix .* got shape \(2, 3\)"),
        (np.ones(9), CorrelationError, r"square matrix .* got shape \(9,\)"),
        (1.0, CorrelationError, r"square matrix .* got shape \(\)"),
        ([], CorrelationError, r"square matrix .* got shape \(0,\)"),
        (np.ones((0, 0)), CorrelationError, r"square matrix .* got shape \(0, 0\)"),
        (np.ones((2, 9, 9)), CorrelationError, r"square matrix .* got shape \(2, 9, 9\)"),
        (np.eye(25), CorrelationError, r"must be 9 x 9 for 9 taps, got 25 x 25"),
        (_with(0, 1, 0.31), CorrelationError, r"symmetric, .* differ by 0\.01"),
        (_with(4, 4, 1.001), CorrelationError, r"ones on the diagonal, got 1 to 1"),
        (4 * np.eye(9), CorrelationError, r"got 4 to 4; divide a covariance"),
        (np.zeros((9, 9)), CorrelationError, r"ones on the diagonal, got 0 to 0"),
        (_pair(1.5), CorrelationError, r"entries in \[-1, 1\], got 1\.5"),
        (_pair(-1.01), CorrelationError, r"entries in \[-1, 1\], got 1\.01"),
        (equal_correlation(9, -0.2), CorrelationError, r"smallest eigenvalue is -0\.6"),
        (_with(2, 3, math.nan), CorrelationError, "holds NaN or Inf"),
        (_with(2, 3, math.inf), CorrelationError, "holds NaN or Inf"),
        (np.eye(9) + 0j, OptionTypeError, r"real numbers, got torch\.complex128"),
        ([["1", "0"], ["0", "1"]], OptionTypeError, "real numbers, got list"),
        ("resnet10-cifar10", OptionTypeError, "real numbers, got str"),
        ([[1, 0], [1]], OptionTypeError, "real numbers, got list"),
        (None, OptionTypeError, "real numbers, got NoneType"),
        (np.array([[object()]]), OptionTypeError, "real numbers, got ndarray"),
        (torch.eye(9, device="meta"), OptionTypeError, "real numbers, got Tensor"),
    ],
)
def test_what_is_no_correlation_matrix(corr: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_correlation(corr, 9)


@pytest.mark.parametrize(
    "convert",
    [
        lambda r: r.tolist(),
        lambda r: tuple(map(tuple, r.tolist())),
        lambda r: r,
        lambda r: np.asfortranarray(r),
        lambda r: r[::-1, ::-1].copy()[::-1, ::-1],  # negative strides
        lambda r: r.astype(">f8"),
        lambda r: torch.from_numpy(r),
        lambda r: torch.from_numpy(r).to_sparse(),
        lambda r: torch.from_numpy(r).requires_grad_(),
        lambda r: torch.from_numpy(np.kron(r, np.ones((2, 2))))[::2, ::2],
    ],
)
def test_what_a_matrix_may_come_as(convert: Any) -> None:
    expected = random_correlation(9)
    found = check_correlation(convert(expected.copy()), 9)
    assert type(found) is torch.Tensor
    assert found.dtype == torch.float64
    assert not found.requires_grad
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_matrices(dtype: torch.dtype) -> None:
    given = torch.from_numpy(smooth_correlation((3, 3))).to(dtype)
    assert torch.equal(check_correlation(given), given.double())
    assert torch.equal(check_correlation(torch.eye(3, dtype=torch.int64)), torch.eye(3).double())


@given(**RANDOM, rank=st.integers(1, 12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_four_decimals_are_enough(taps: int, seed: int, rank: int) -> None:
    """Rounding makes a singular matrix indefinite; it is taken for what it was."""
    given = np.round(random_correlation(taps, seed, rank), 4)
    # One triangle off by another unit in the last place, and so is the diagonal.
    given += np.triu(np.full_like(given, 4e-5))
    before = given.copy()
    found = check_correlation(given, taps).numpy()
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 1)
    assert np.abs(found - given).max() <= 5e-5
    assert np.abs(found).max() <= 1
    lower = factor(torch.from_numpy(found)).numpy()
    # An eigenvalue of up to -1e-4 * taps is dropped, and rows are scaled back to length 1: that
    # moves an entry by at most twice as much.
    assert np.abs(lower @ lower.T - found).max() <= 2e-4 * taps


def test_the_bounds_of_rounding() -> None:
    edge = -1 / 8  # of equal correlations r, whose smallest eigenvalue is 1 + 8 r
    for accepted, refused in (
        (np.eye(9) + 0.9e-4, np.eye(9) + 1.1e-4),
        (equal_correlation(9, edge - 1.1e-4), equal_correlation(9, edge - 1.2e-4)),
    ):
        check_correlation(accepted)
        with pytest.raises(CorrelationError):
            check_correlation(refused)


@pytest.mark.parametrize(
    ("kernel", "expected"), [(3, (3, 3)), ((3,), (3,)), ([1, 3], (1, 3)), (np.int64(5), (5, 5))]
)
def test_kernel_sizes(kernel: Any, expected: tuple[int, ...]) -> None:
    assert check_kernel(kernel) == expected


@pytest.mark.parametrize("kernel", [True, 3.0, "3", (3, 3.0), (True, 3), None, np.ones(2), {3}])
def test_kernel_sizes_of_the_wrong_type(kernel: Any) -> None:
    with pytest.raises(OptionTypeError, match="kernel_size must be an integer"):
        check_kernel(kernel)


@pytest.mark.parametrize("kernel", [0, (), (3, 0), (-1,), (3, 3, 3, 3)])
def test_kernel_sizes_out_of_range(kernel: Any) -> None:
    with pytest.raises(OptionError, match="one to three numbers of at least 1"):
        check_kernel(kernel)


def test_the_kernel_of_a_matrix() -> None:
    plain = torch.eye(9)
    named = FilterCorrelation.of(plain.double(), (1, 9))
    assert kernel_of(plain) == (3, 3)
    assert kernel_of(plain, (9,)) == (9,)
    assert kernel_of(named) == (1, 9)
    with pytest.raises(CorrelationError, match=r"8 taps belongs to no square .*\(8,\)"):
        kernel_of(torch.eye(8))
    with pytest.raises(CorrelationError, match="expected 6 x 6 for a kernel of 2 x 3, got 9 x 9"):
        kernel_of(plain, (2, 3))
    # Of a layer: its own where the square one is out of the question.
    assert kernel_of(plain, wanted=(9,)) == kernel_of(plain.tolist(), wanted=(9,)) == (9,)
    assert kernel_of(torch.eye(64), wanted=(4, 4, 4)) == (4, 4, 4)
    assert kernel_of(torch.eye(3), wanted=(1, 3)) == (1, 3)
    assert kernel_of(plain, wanted=(1, 9)) == kernel_of(plain, wanted=(5,)) == (3, 3)
    assert kernel_of(named, wanted=(9,)) == (1, 9)


# ---------------------------------------------------------------------------------------- strength


@given(**RANDOM, strength=st.floats(0, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
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
@settings(max_examples=60, deadline=None, derandomize=True)
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
