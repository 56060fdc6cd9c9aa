"""assume_a="pos": pairs with a_i + b_j <= max(k, d) eps (a_max + b_max) are dropped."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sylvester_problems import (
    DTYPES,
    WIDE_DTYPES,
    eps_of,
    hermitian,
    ids,
    kronecker_system,
    normal,
    relative_error,
    solver,
    tensor,
    wide,
    with_and_without,
)

import sylvinit
from sylvinit.errors import AccuracyWarning, MatrixError

# Eigenvalues that repeat, cluster and vanish; none of their sums is near the threshold.
SPECTRUM = st.sampled_from([0.0, 0.0, 1e-3, 1.0, 1.0, 1.0 + 1e-3, 2.0])
SHAPES = [(3, 3), (4, 9), (9, 4), (1, 6), (6, 1)]


def minimum_norm(a: torch.Tensor, b: torch.Tensor, q: torch.Tensor) -> np.ndarray:
    """The pseudo-inverse of the Kronecker matrix, in double precision.

    Its threshold is that of the rule for a matrix of this size, k d: rounding in its zero
    eigenvalues has passed max(k, d) eps. No sum of eigenvalues here lies between the two.
    """
    system = torch.from_numpy(kronecker_system(wide(a), wide(b)))
    largest = sum(np.abs(np.linalg.eigvalsh(wide(x))).max() for x in (a, b))
    threshold = q.numel() * eps_of(q) * largest
    inverse = torch.linalg.pinv(system, hermitian=True, atol=threshold, rtol=0)
    return (inverse.numpy() @ wide(q).ravel()).reshape(q.shape)


def tolerance(q: torch.Tensor) -> float:
    """Rounding of the result; in double precision times |A| + |B| over the smallest pair kept.

    That ratio is 4e3 here; the worst measured is 2.3e-12 in double precision, of which the
    pseudo-inverse has a part, and 3e-8 in single.
    """
    return 4e3 * 20 * eps_of(q) if q.dtype in WIDE_DTYPES else 2 * eps_of(q)


def solve(a, b, q) -> torch.Tensor:
    """Without warnings: what is kept is well separated, in single precision too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        return sylvinit.solve_sylvester(a, b, q, assume_a="pos")


@with_and_without
@given(
    seed=st.integers(0, 2**32 - 1),
    values_a=st.lists(SPECTRUM, min_size=1, max_size=8),
    values_b=st.lists(SPECTRUM, min_size=1, max_size=8),
    dtype=st.sampled_from(DTYPES),
    scales=st.tuples(*[st.sampled_from([1.0, 1e-6, 1e9])] * 2),
    in_range=st.booleans(),
)
def test_equals_the_pseudo_inverse(
    compiled, seed, values_a, values_b, dtype, scales, in_range
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (
        tensor(scales[0] * hermitian(rng, np.array(v), dtype.is_complex), dtype)
        for v in (values_a, values_b)
    )
    q = tensor(normal(rng, len(a), len(b), complex_=dtype.is_complex), dtype)
    if in_range:
        q = a @ q + q @ b
    q = scales[1] * q
    expected = minimum_norm(a, b, q)
    with solver(compiled):
        x = solve(a, b, q)
    assert x.dtype == dtype
    size = max(np.linalg.norm(expected), float(q.norm()) / scales[0])
    assert np.linalg.norm(wide(x) - expected) <= tolerance(q) * size


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize(("k", "d"), SHAPES)
def test_low_rank_gram_matrices(compiled, dtype, k, d) -> None:
    """A = S S^H and B = X X^H as a layer has them: rounding makes zero eigenvalues +-1e-16."""
    rng = np.random.default_rng(k * d)
    for rank in (0, 1, 2, 5):
        s, t = (tensor(normal(rng, n, rank, complex_=dtype.is_complex), dtype) for n in (k, d))
        a, b = s @ s.mH, t @ t.mH
        q = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
        for right in (q, s @ s.mH @ q, a @ q + q @ b):
            expected = minimum_norm(a, b, right)
            with solver(compiled):
                x = solve(a, b, right)
            error = np.linalg.norm(wide(x) - expected)
            least = 1e-2 if dtype in WIDE_DTYPES else 1.0  # eigenvalues of a random Gram matrix
            assert error <= 50 / least * eps_of(q) * max(1.0, np.linalg.norm(expected))


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize(("k", "d"), SHAPES)
def test_one_matrix_zero(compiled, dtype, k, d) -> None:
    rng = np.random.default_rng(1)
    q = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
    definite_a, definite_b = (
        tensor(hermitian(rng, rng.uniform(1, 2, n), dtype.is_complex), dtype) for n in (k, d)
    )
    zero_a, zero_b = torch.zeros_like(definite_a), torch.zeros_like(definite_b)
    with solver(compiled):
        only_a = solve(definite_a, zero_b, q)
        only_b = solve(zero_a, definite_b, q)
        both = solve(zero_a, zero_b, q)
    bound = 8 * eps_of(q)  # the worst measured is 4.32 eps
    assert relative_error(only_a, np.linalg.solve(wide(definite_a), wide(q))) <= bound
    assert relative_error(only_b, wide(q) @ np.linalg.inv(wide(definite_b))) <= bound
    assert torch.equal(both, torch.zeros_like(both))


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_singular_matrix_beside_a_zero_one(compiled, dtype) -> None:
    rng = np.random.default_rng(2)
    for k, d in SHAPES:
        values = np.array([0.0, 0.0, 1.0, 1.0, 3.0, 0.0, 2.0, 2.0, 2.0])
        a = tensor(hermitian(rng, values[:k], dtype.is_complex), dtype)
        b = torch.zeros(d, d, dtype=dtype)
        q = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
        expected = minimum_norm(a, b, q)
        with solver(compiled):
            found, transposed = solve(a, b, q), solve(b, a, q.mH)
        # Twice the worst measured, 14.57 eps (on an AMD EPYC; below 10 on an Intel Xeon).
        bound = 30 * eps_of(q)
        assert relative_error(found, expected) <= bound
        assert relative_error(transposed, expected.conj().T) <= bound


@with_and_without
def test_threshold(compiled) -> None:
    """The rule itself: diagonal matrices with sums of 4/5 and 5/4 of the threshold.

    |A| and |B| may be taken from estimates that are off by a few percent.
    """
    k, d = 5, 7
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        # a_max + b_max is 4 and the threshold 7 eps 4.
        for share, dropped in ((0.8, True), (1.25, False)):
            small = share * d * eps * 4
            a = torch.diag(torch.tensor([small, 1, 2, 2.5, 3], dtype=dtype))
            b = torch.diag(torch.tensor([0, 0, 0.5, 1, 1, 1, 1], dtype=dtype))
            q = torch.ones(k, d, dtype=dtype)
            expected = 1 / (a.diagonal()[:, None] + b.diagonal())
            if dropped:
                expected[0, :2] = 0
            for left, right, want in ((a, b, expected), (b, a, expected.T)):
                with solver(compiled):
                    x = solve(left, right, torch.ones_like(want))
                torch.testing.assert_close(x, want, rtol=4 * eps, atol=0)
        assert q.shape == (k, d)


@with_and_without
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **ids)
def test_negative_rounding_is_accepted(compiled, dtype) -> None:
    """Eigenvalues a few times the threshold below zero, alone and beside zeros of the other."""
    rng = np.random.default_rng(3)
    eps = torch.finfo(dtype).eps
    k, d = 4, 6
    q = tensor(normal(rng, k, d), dtype)
    for factor in (0.3, 3.0, 8.0):
        low = -factor * d * eps
        a = torch.diag(torch.tensor([low, 0.5, 1, 1], dtype=dtype))
        for smallest in (0.0, 0.25):
            b = torch.diag(torch.linspace(smallest, 1, d, dtype=dtype))
            sums = wide(a).diagonal()[:, None] + wide(b).diagonal()
            threshold = d * eps * 2
            expected = np.where(sums > threshold, wide(q) / np.where(sums > 0, sums, 1), 0)
            with solver(compiled):
                assert relative_error(solve(a, b, q), expected) <= 50 * eps
                assert relative_error(solve(b, a, q.mT), expected.T) <= 50 * eps
        # The zero of B and the slightly negative eigenvalue of A: nothing to divide by.
        with solver(compiled):
            x = solve(a, torch.zeros(d, d, dtype=dtype), q)
        assert torch.equal(x[0], torch.zeros(d, dtype=dtype))


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("low", [-1.0, -1e-2])
def test_clearly_negative_eigenvalue(compiled, dtype, which, low) -> None:
    rng = np.random.default_rng(4)
    for k, d in ((3, 5), (5, 3)):
        values = {name: rng.uniform(0.5, 1, n) for name, n in (("a", k), ("b", d))}
        values[which][0] = low
        a, b = (tensor(hermitian(rng, values[x], dtype.is_complex), dtype) for x in "ab")
        q = torch.ones(k, d, dtype=dtype)
        for left, right, where in (
            (a, b, ""),
            (torch.stack((a @ a.mH, a)), torch.stack((b @ b.mH, b)), " (in batch entry (1,))"),
        ):
            left, right = (left + left.mH) / 2, (right + right.mH) / 2
            with solver(compiled), pytest.raises(MatrixError) as caught:
                solve(left, right, q)
            text = str(caught.value)
            assert text.startswith(f"{which} must be positive semi-definite with assume_a='pos'")
            assert "assume_a='sym'" in text
            named = float(text.split("eigenvalue ")[1].split(" ")[0].rstrip(";"))
            assert named == pytest.approx(low, rel=1e-4)
            assert where in text


@with_and_without
def test_negative_entry_named_is_the_one_that_failed(compiled) -> None:
    """Entry 0 has the more negative eigenvalue, but there it is rounding."""
    a = torch.stack(
        (
            torch.diag(torch.tensor([1e10, -1e-7], dtype=torch.float64)),
            torch.diag(torch.tensor([1.0, -1e-8], dtype=torch.float64)),
        )
    )
    b = torch.eye(3, dtype=torch.float64)
    q = torch.ones(2, 3, dtype=torch.float64)
    with solver(compiled):
        for left, right, name, right_side in ((a, b, "a", q), (b, a, "b", q.mT)):
            with pytest.raises(MatrixError, match=rf"^{name} must .* -1e-08 .*entry \(1,\)"):
                solve(left, right, right_side)


@with_and_without
def test_batch_of_zero_and_definite_entries(compiled) -> None:
    rng = np.random.default_rng(5)
    spectra = [np.zeros(4), np.ones(4), np.array([0, 0, 1, 2.0]), np.array([0, 1e-3, 1e-3, 1])]
    a = torch.from_numpy(np.stack([hermitian(rng, v) for v in spectra]))[:, None]
    b = torch.from_numpy(np.stack([hermitian(rng, np.append(v, 0.0)) for v in spectra]))
    q = torch.from_numpy(normal(rng, 4, 4, 4, 5))
    with solver(compiled):
        x = solve(a, b, q)
    for i, j in np.ndindex(4, 4):
        expected = minimum_norm(a[i, 0], b[j], q[i, j])
        assert relative_error(x[i, j], expected) <= tolerance(q)


@with_and_without
def test_minimum_norm_of_all_solutions(compiled) -> None:
    """X is orthogonal to the null space, and Q's part outside the range is left over."""
    rng = np.random.default_rng(6)
    values = np.array([0.0, 0.0, 1.0, 2.0])
    u, v = np.linalg.qr(normal(rng, 4, 4))[0], np.linalg.qr(normal(rng, 4, 4))[0]
    a, b = ((w * values) @ w.T for w in (u, v))
    a, b = (torch.from_numpy((x + x.T) / 2) for x in (a, b))
    q = torch.from_numpy(normal(rng, 4, 4))
    with solver(compiled):
        x = solve(a, b, q)
    coefficients = u.T @ wide(x) @ v
    np.testing.assert_allclose(coefficients[:2, :2], 0, atol=1e-14)
    left = u.T @ wide(a @ x + x @ b - q) @ v
    np.testing.assert_allclose(left[:2, :2], -(u.T @ wide(q) @ v)[:2, :2], atol=1e-13)
    left[:2, :2] = 0
    np.testing.assert_allclose(left, 0, atol=1e-13)


@with_and_without
def test_warning_counts_only_pairs_that_are_kept(compiled) -> None:
    rng = np.random.default_rng(7)
    for smallest, warned in ((0.0, False), (1e-11, True), (1e-5, False)):
        a = torch.from_numpy(hermitian(rng, np.array([0.0, smallest, 1.0, 2.0])))
        b = torch.from_numpy(hermitian(rng, np.array([0.0, 0.0, 1.0])))
        q = torch.from_numpy(normal(rng, 4, 3))
        for left, right, right_side in ((a, b, q), (b, a, q.mT)):
            with solver(compiled), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                sylvinit.solve_sylvester(left, right, right_side, assume_a="pos")
            assert [w.category for w in caught] == [AccuracyWarning] * warned


@with_and_without
def test_positive_definite_equals_sym(compiled) -> None:
    rng = np.random.default_rng(8)
    for dtype in DTYPES:
        for k, d in SHAPES:
            a, b = (
                tensor(hermitian(rng, rng.uniform(0.1, 3, n), dtype.is_complex), dtype)
                for n in (k, d)
            )
            q = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
            with solver(compiled):
                expected = sylvinit.solve_sylvester(a, b, q, assume_a="sym")
                assert relative_error(solve(a, b, q), wide(expected)) <= 100 * eps_of(q)
