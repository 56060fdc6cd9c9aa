"""Correlation matrices: the checks, and which kernel one belongs to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import equal_correlation, random_correlation, smooth_correlation
from hypothesis import given, settings
from hypothesis import strategies as st

from sylvinit.correlated import FilterCorrelation, check_correlation
from sylvinit.errors import CorrelationError, OptionError, OptionTypeError
from sylvinit.priors.matrix import check_kernel, kernel_of
from sylvinit.priors.strength import factor

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
@settings(derandomize=True)
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
