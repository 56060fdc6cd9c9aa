"""Residuals and errors beside SciPy's, on random problems and on examples from the literature."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from sylvester_problems import (
    hermitian,
    kronecker_system,
    normal,
    real_schur,
    relative_error,
    residual,
    rotated,
    solver,
    with_and_without,
)

import sylvinit
from sylvinit.errors import AccuracyWarning

EPS = np.finfo(np.float64).eps


def solve(a, b, q, assume: str = "auto", dtype=None) -> np.ndarray:
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in (a, b, q)]
    if dtype is not None:
        tensors = [x.to(dtype) for x in tensors]
    return sylvinit.solve_sylvester(*tensors, assume_a=assume).numpy()


# ------------------------------------------------------------------------------- random problems

# Spectra of n positive numbers with condition number c.
SPECTRA = {
    "graded": lambda rng, n, c: np.geomspace(1, 1 / c, n),
    "uniform": lambda rng, n, c: rng.uniform(1 / c, 1, n),
    "one small": lambda rng, n, c: np.append(np.ones(n - 1), 1 / c),
    "one large": lambda rng, n, c: np.append(np.full(n - 1, 1 / c), 1.0),
    "clustered": lambda rng, n, c: (
        np.geomspace(1, 1 / c, n)[np.arange(n) // 4 * 4] * (1 + 1e-9 * rng.standard_normal(n))
    ),
    "repeated": lambda rng, n, c: np.geomspace(1, 1 / c, n)[np.arange(n) // 5 * 5],
}
CONDITIONS = (1e0, 1e4, 1e8, 1e12)
SIZES = ((4, 7), (25, 10), (40, 40))


def problems(structure: str, complex_: bool):
    """72 problems: spectra, condition numbers and sizes; scales differ by up to 1e3."""
    rng = np.random.default_rng(11)
    for name, spectrum in SPECTRA.items():
        for condition in CONDITIONS:
            for k, d in SIZES:
                pair = []
                for n in (k, d):
                    values = spectrum(rng, n, condition) * 10.0 ** rng.uniform(-1.5, 1.5)
                    if structure == "sym":
                        # Signs at random: -B has no eigenvalue of A but may have close ones.
                        values = values * rng.choice([-1, 1], n)
                    if structure != "gen":
                        pair.append(hermitian(rng, values, complex_))
                        continue
                    if complex_:
                        phases = np.exp(1j * rng.uniform(-1.2, 1.2, n))
                        t = np.diag(values * phases)
                        t += np.triu(values[:, None] * normal(rng, n, n, complex_=True), 1) / n
                    else:
                        pairs = values[: n // 2] * np.exp(1j * rng.uniform(0.2, 1.2, n // 2))
                        t = real_schur(rng, np.append(pairs, values[n - n % 2 :]), 0)
                        t += np.triu(values[:, None] * normal(rng, n, n), 2) / n
                    pair.append(rotated(rng, t))
                q = normal(rng, k, d, complex_=complex_)
                if name == "uniform":  # a right side whose solution is of moderate size
                    q = pair[0] @ q + q @ pair[1]
                yield *pair, q


@with_and_without
@pytest.mark.parametrize("structure", ["pos", "sym", "gen"])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_residuals_are_at_most_twice_those_of_scipy(compiled, structure, complex_) -> None:
    ours, theirs = [], []
    for a, b, q in problems(structure, complex_):
        with solver(compiled):
            # The zero rule of "pos" may drop a pair at 1e12; "sym" is the same equation.
            x = solve(a, b, q, "sym" if structure == "pos" else structure)
        ours.append(residual(a, b, q, x))
        theirs.append(residual(a, b, q, scipy.linalg.solve_sylvester(a, b, q)))
    assert len(ours) == 72
    # Measured worst: medians of 3.1e-16 (SciPy 3.1e-16), maxima of 6.5e-16 (SciPy 6.0e-16).
    assert np.median(ours) <= 2 * np.median(theirs)
    assert np.max(ours) <= 2 * np.max(theirs)
    assert np.max(ours) <= 10 * EPS


@with_and_without
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_residuals_of_the_definite_solver(compiled, complex_) -> None:
    ours, theirs = [], []
    for a, b, q in problems("pos", complex_):
        if np.linalg.cond(a) > 1e10:
            continue
        with solver(compiled):
            ours.append(residual(a, b, q, solve(a, b, q, "pos")))
        theirs.append(residual(a, b, q, scipy.linalg.solve_sylvester(a, b, q)))
    assert len(ours) >= 40
    assert np.median(ours) <= 2 * np.median(theirs)
    assert np.max(ours) <= 2 * np.max(theirs)
    assert np.max(ours) <= 10 * EPS


@with_and_without
@pytest.mark.parametrize("structure", ["pos", "gen"])
def test_single_precision_on_well_conditioned_problems(compiled, structure) -> None:
    """Errors at most 1e-5; measured 3e-8, the rounding of the result."""
    rng = np.random.default_rng(12)
    worst = 0.0
    for k, d in (*SIZES, (70, 33)):
        for complex_ in (False, True):
            a, b = (
                hermitian(rng, rng.uniform(0.2, 2, n), complex_)
                if structure == "pos"
                else rotated(
                    rng,
                    np.diag(rng.uniform(0.2, 2, n) * np.exp(1j * rng.uniform(-1, 1, n)))
                    if complex_
                    else real_schur(rng, rng.uniform(0.2, 2, n), 0.3 / n**0.5),
                )
                for n in (k, d)
            )
            single = np.complex64 if complex_ else np.float32
            a, b, q = (x.astype(single) for x in (a, b, normal(rng, k, d, complex_=complex_)))
            with solver(compiled):
                x = solve(a, b, q, "auto" if structure == "gen" else structure)
            wide = np.complex128 if complex_ else np.float64
            a, b, q = (y.astype(wide) for y in (a, b, q))
            expected = scipy.linalg.solve_sylvester(a, b, q)
            worst = max(worst, relative_error(x, expected))
            assert residual(a, b, q, x.astype(wide)) <= np.finfo(np.float32).eps
    assert worst <= 1e-5
    assert worst <= 2e-7


@with_and_without
def test_forward_error_follows_the_condition_number(compiled) -> None:
    """Known X: errors of a few eps times |A| + |B| over the smallest sum of eigenvalues."""
    rng = np.random.default_rng(13)
    for name, spectrum in SPECTRA.items():
        for condition in CONDITIONS[:3]:
            for k, d in SIZES:
                a, b = (hermitian(rng, spectrum(rng, n, condition)) for n in (k, d))
                x = normal(rng, k, d)
                with solver(compiled):
                    found = solve(a, b, a @ x + x @ b, "pos")
                # Measured: 0.5 of eps times condition times size.
                bound = 10 * EPS * condition * max(k, d)
                assert relative_error(found, x) <= bound, (name, condition)


# ------------------------------------------------------------- examples from the literature


def reflector(direction: np.ndarray) -> np.ndarray:
    return np.eye(len(direction)) - 2 / len(direction) * np.outer(direction, direction)


def ctlex_4_1(n: int, r: float, s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T X + X A = -B^T B with known X; r spreads the spectrum, s makes the basis skew.

    D. Kressner, V. Mehrmann and T. Penzl, "CTLEX - a collection of benchmark examples for
    continuous-time Lyapunov equations", SLICOT Working Note 1999-6, Example 4.1.
    """
    index = np.arange(1, n + 1)
    rates, scales = r ** (index - 1.0), s ** (index - 1.0)
    first, second = reflector(np.ones(n)), reflector((-1.0) ** index)
    left, right = second * scales @ first, first / scales @ second  # inverse to each other
    a = -left * rates @ right
    core = np.outer(index, index) / (rates[:, None] + rates)
    x = right.T @ core @ right
    b = index @ right
    return a, -np.outer(b, b), x


def ctlex_4_3(n: int, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T X E + E^T X A = Y with X = 1; for large t the equation is nearly singular. As above."""
    small = 2.0**-t
    e = np.eye(n) + small * np.tri(n, k=-1)
    a = np.diag(np.arange(n) + small) + np.tri(n, k=-1).T
    x = np.ones((n, n))
    return e, a, x


def allowed_error(a: np.ndarray, b: np.ndarray, theirs: np.ndarray, x: np.ndarray) -> float:
    """Ten times SciPy's error, or what a backward error of eps makes of small systems.

    That is eps times the condition number, of 1e12 for one; which of two solvers is nearer to x
    by chance depends on the libraries and the processor.
    """
    allowed = 10 * relative_error(theirs, x) + 10 * EPS
    if len(a) <= 15:
        least = np.linalg.svd(kronecker_system(a, b), compute_uv=False)[-1]
        allowed = max(allowed, EPS * (np.linalg.norm(a) + np.linalg.norm(b)) / least)
    return allowed


@with_and_without
@pytest.mark.parametrize(
    ("n", "r", "s"),
    [
        (10, 1.5, 1.5),
        (5, 1.1, 1.1),
        (30, 1.1, 1.05),
        (60, 1.2, 1.02),
        (10, 4.0, 1.2),
        (15, 1.5, 2.0),
    ],
)
def test_ctlex_4_1(compiled, n, r, s) -> None:
    a, y, x = ctlex_4_1(n, r, s)
    np.testing.assert_allclose(residual(a.T, a, y, x), 0, atol=10 * EPS)  # the construction
    with solver(compiled):
        found = solve(a.T, a, y, "gen")
        symmetric = solve(a.T, a, (y + y.T) / 2)
    theirs = scipy.linalg.solve_sylvester(a.T, a, y)
    assert residual(a.T, a, y, found) <= max(2 * residual(a.T, a, y, theirs), 2 * EPS)
    allowed = allowed_error(a.T, a, theirs, x)
    assert relative_error(found, x) <= allowed
    assert relative_error(symmetric, x) <= allowed


@with_and_without
@pytest.mark.parametrize(("n", "t"), [(10, 0), (10, 5), (20, 10), (40, 20), (10, 24)])
def test_ctlex_4_3(compiled, n, t) -> None:
    """As A' X + X B' = Q with A' = E^-T A^T, B' = A E^-1 and Q = E^-T Y E^-1."""
    e, a, x = ctlex_4_3(n, t)
    left, right = np.linalg.solve(e.T, a.T), a @ np.linalg.inv(e)
    q = left @ x + x @ right
    with solver(compiled):
        found = solve(left, right, q, "gen")
    theirs = scipy.linalg.solve_sylvester(left, right, q)
    assert residual(left, right, q, found) <= max(2 * residual(left, right, q, theirs), 2 * EPS)
    assert relative_error(found, x) <= allowed_error(left, right, theirs, x)


@with_and_without
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [10, 34, 65])
def test_golub_nash_van_loan(compiled, n, alpha) -> None:
    """Triangular matrices, alpha away from diagonal ones, with X of ones.

    After the test matrices of G. H. Golub, S. Nash and C. Van Loan, "A Hessenberg-Schur method for
    the problem AX + XB = C" (1979), section 5: A = diag(1, 2, ...) + alpha N^T and
    B = 2^-t I + diag(n, n - 1, ...) + alpha N, N strictly upper triangular with ones.
    """
    lower = alpha * np.tri(n, k=-1)
    for t in (0, 10):
        a = np.diag(np.arange(1.0, n + 1)) + lower
        b = 2.0**-t * np.eye(n) + np.diag(np.arange(n, 0.0, -1)) + lower.T
        x = np.ones((n, n))
        q = a @ x + x @ b
        with solver(compiled):
            found = solve(a, b, q, "gen")
        theirs = scipy.linalg.solve_sylvester(a, b, q)
        assert residual(a, b, q, found) <= max(2 * residual(a, b, q, theirs), 2 * EPS)
        assert relative_error(found, x) <= 10 * relative_error(theirs, x) + 10 * EPS


@with_and_without
@pytest.mark.parametrize("n", [8, 33, 60])
def test_finite_differences(compiled, n) -> None:
    """Poisson's equation on a square and an upwind convection term: eigenvalues are known.

    The five-point Laplacian is A = B = tridiag(-1, 2, -1), with eigenvectors sin(i j pi / (n + 1)).
    """
    a = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    index = np.arange(1, n + 1)
    vectors = np.sin(np.outer(index, index) * np.pi / (n + 1)) * (2 / (n + 1)) ** 0.5
    values = 2 - 2 * np.cos(index * np.pi / (n + 1))
    q = np.ones((n, n))
    expected = vectors @ ((vectors @ q @ vectors) / (values[:, None] + values)) @ vectors
    for assume in ("auto", "sym", "pos", "gen"):
        with solver(compiled):
            assert relative_error(solve(a, a, q, assume), expected) <= 1e-12
    upwind = a + 0.7 * (np.eye(n) - np.eye(n, k=-1))
    x = np.sin(np.outer(index, index))
    with solver(compiled):
        found = solve(upwind, a, upwind @ x + x @ a)
    assert relative_error(found, x) <= 1e-12


@with_and_without
def test_hilbert_matrices(compiled) -> None:
    """Condition numbers up to 1e17: the residual stays small, the zero rule takes the rest."""
    for n in (3, 6, 12):
        a, b = scipy.linalg.hilbert(n), scipy.linalg.hilbert(n + 2)
        x = np.ones((n, n + 2))
        q = a @ x + x @ b
        with solver(compiled), warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)
            found = solve(a, b, q, "pos")
        assert residual(a, b, q, found) <= 100 * EPS
        if n == 3:
            assert relative_error(found, x) <= 1e-9
