"""Spectra of A and -B that meet, nearly meet or stay apart, with "sym" and "gen"."""

from __future__ import annotations

import re
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from sylvester_problems import (
    DTYPES,
    eps_of,
    hermitian,
    ids,
    kronecker_solution,
    normal,
    real_schur,
    relative_error,
    rotated,
    solver,
    tensor,
    unitary,
    wide,
    with_and_without,
)

import sylvinit
from sylvinit.errors import AccuracyWarning, SingularEquationError, SolverError

NUMBER = r"([-+\w.]+)"
MESSAGE = re.compile(
    r"a and -b share an eigenvalue up to rounding(?: \(in batch entry \((.*)\)\))?: "
    rf"a_i = {NUMBER}, b_j = {NUMBER}, a_i \+ b_j = {NUMBER}\. "
)


def collision(a, b, assume, q=None) -> tuple[str | None, complex, complex]:
    """Where the error says that the spectra meet: batch entry, a_i and b_j."""
    if q is None:
        q = torch.ones(a.shape[-1], b.shape[-1], dtype=a.dtype)
    with pytest.raises(SingularEquationError) as caught:
        sylvinit.solve_sylvester(a, b, q, assume_a=assume)
    assert isinstance(caught.value, SolverError)
    assert isinstance(caught.value, torch.linalg.LinAlgError)
    found = MESSAGE.match(str(caught.value))
    assert found, str(caught.value)
    return found[1], complex(found[2]), complex(found[3])


def quiet(a, b, q, assume) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sylvinit.solve_sylvester(a, b, q, assume_a=assume)


# ------------------------------------------------------------------------------------- Hermitian


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize(("k", "d"), [(1, 1), (2, 5), (5, 2), (7, 7), (12, 40), (40, 12)])
def test_hermitian_collision_names_the_pair(compiled, dtype, k, d) -> None:
    rng = np.random.default_rng(k + d)
    for attempt in range(5):
        values_a, values_b = rng.uniform(1, 2, k), rng.uniform(2.5, 4, d)
        values_a[attempt % k], values_b[attempt % d] = 1.5, -1.5
        a = tensor(hermitian(rng, values_a, dtype.is_complex), dtype)
        b = tensor(hermitian(rng, values_b, dtype.is_complex), dtype)
        for assume in ("sym", "auto"):
            with solver(compiled):
                entry, found_a, found_b = collision(a, b, assume)
            assert entry is None
            assert found_a == pytest.approx(1.5, rel=1e-5)
            assert found_b == pytest.approx(-1.5, rel=1e-5)


@with_and_without
@pytest.mark.parametrize("assume", ["sym", "gen"])
def test_batch_entry_is_named(compiled, assume) -> None:
    rng = np.random.default_rng(1)

    def matrix(values: list[float]) -> torch.Tensor:
        if assume == "sym":
            return torch.from_numpy(hermitian(rng, np.array(values)))
        return torch.from_numpy(real_schur(rng, values))

    apart, meets = matrix([1.0, 2.0]), matrix([1.0, 5.0])
    for k, right in ((2, [3.0, 4.0, -5.0]), (2, [-5.0]), (2, [-5.0, 7.0])):
        b = matrix(right)
        a = torch.stack((apart, apart, apart, meets, apart, apart)).view(2, 3, k, k)
        with solver(compiled):
            entry, found_a, found_b = collision(a, b, assume)
            assert (entry, found_a, found_b) == ("1, 0", pytest.approx(5), pytest.approx(-5))
            entry, found_b, found_a = collision(b, a, assume)
            assert (entry, found_a, found_b) == ("1, 0", pytest.approx(5), pytest.approx(-5))
            same = b.expand(2, 3, len(b), len(b)).contiguous()
            q = torch.ones(2, 3, k, len(b), dtype=a.dtype)
            assert collision(a, same, assume, q)[0] == "1, 0"
            # Of several the first one.
            flipped = torch.stack((apart, meets, meets))
            assert collision(flipped, b, assume)[0] == "1,"


@with_and_without
@pytest.mark.parametrize("assume", ["sym", "gen"])
def test_zero_matrices_collide(compiled, assume) -> None:
    for k, d in ((1, 1), (2, 4), (4, 2)):
        for dtype in DTYPES:
            zero_a, zero_b = torch.zeros(k, k, dtype=dtype), torch.zeros(d, d, dtype=dtype)
            singular = torch.diag(torch.arange(d)).to(dtype)
            with solver(compiled):
                assert collision(zero_a, zero_b, assume)[1:] == (0, 0)
                assert collision(zero_a, singular, assume)[1:] == (0, pytest.approx(0, abs=1e-15))
                assert collision(singular, zero_a, assume)[1:] == (pytest.approx(0, abs=1e-15), 0)


@with_and_without
@pytest.mark.parametrize("assume", ["sym", "gen"])
def test_one_zero_matrix(compiled, assume) -> None:
    """B = 0: A X = Q."""
    rng = np.random.default_rng(2)
    for dtype in DTYPES:
        for k, d in ((1, 1), (3, 5), (5, 3)):
            values = rng.uniform(1, 2, k) * rng.choice([-1, 1], k)
            a = tensor(hermitian(rng, values, dtype.is_complex), dtype)
            zero = torch.zeros(d, d, dtype=dtype)
            q = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
            expected = np.linalg.solve(wide(a), wide(q))
            with solver(compiled):
                found, transposed = quiet(a, zero, q, assume), quiet(zero, a, q.mH, assume)
            # The worst measured is 4.83 eps.
            assert relative_error(found, expected) <= 10 * eps_of(q)
            assert relative_error(transposed, expected.conj().T) <= 10 * eps_of(q)


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("assume", ["sym", "gen"])
def test_warning_below_half_of_the_digits(compiled, dtype, assume) -> None:
    """Relative separations a factor of 4 around sqrt(eps): 1.5e-8, in single precision 3.5e-4."""
    rng = np.random.default_rng(3)
    for k, d in ((4, 6), (6, 4)):
        for share in (0.25, 4.0):
            values_a, values_b = np.linspace(1, 2, k), np.linspace(3, 4, d)
            # "sym" compares with spectral radii, "gen" with Frobenius norms.
            size = np.max if assume == "sym" else np.linalg.norm
            values_b[0] = -values_a[1]
            wanted = share * torch.finfo(dtype).eps ** 0.5
            values_b[0] += wanted * (size(values_a) + size(abs(values_b)))
            a = tensor(hermitian(rng, values_a, dtype.is_complex), dtype)
            b = tensor(hermitian(rng, values_b, dtype.is_complex), dtype)
            q = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
            with solver(compiled), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                x = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
            # Condition number 1 / wanted, for the data as they were rounded.
            assert relative_error(x, kronecker_solution(wide(a), wide(b), wide(q))) <= max(
                2 * eps_of(q), 1e2 * np.finfo(float).eps / wanted
            )
            assert [w.category for w in caught] == [AccuracyWarning] * (share < 1)
            if caught:
                assert caught[0].filename == __file__
                named = float(re.search(r"= ([\d.e-]+)\. ", str(caught[0].message))[1])
                assert named == pytest.approx(wanted, rel=0.1)


@with_and_without
def test_warning_names_the_entry_with_the_nearest_pair(compiled) -> None:
    a = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    b = torch.diag(torch.tensor([3.0, -1 + 1e-9, 5.0], dtype=torch.float64))
    far = torch.diag(torch.tensor([3.0, -1 + 1e-8, 5.0], dtype=torch.float64))
    q = torch.ones(2, 3, dtype=torch.float64)
    for assume in ("sym", "gen"):
        with solver(compiled):
            with pytest.warns(AccuracyWarning, match=r"entry \(2,\)"):
                sylvinit.solve_sylvester(a, torch.stack((far, far, b, far)), q, assume_a=assume)
            with pytest.warns(AccuracyWarning, match=r"nearly meet \(in batch entry \(1, 0\)\)"):
                sylvinit.solve_sylvester(
                    torch.stack((torch.eye(2).to(a), a))[:, None], b, q, assume_a=assume
                )


@with_and_without
def test_indefinite_with_spectra_interlaced(compiled) -> None:
    """Eigenvalues of -B between all those of A, 1e-3 to 1e-6 away."""
    rng = np.random.default_rng(4)
    for n in (5, 30, 60):
        for gap in (1e-3, 1e-6):
            values = np.sort(rng.uniform(-1, 1, n))
            a = torch.from_numpy(hermitian(rng, values))
            b = torch.from_numpy(hermitian(rng, -values - gap))
            x = normal(rng, n, n)
            q = torch.from_numpy(wide(a) @ x + x @ wide(b))
            with solver(compiled):
                found = quiet(a, b, q, "sym")
            assert relative_error(found, x) <= 1e-14 * n / gap
            assert sylvinit.sylvester_residual(a, b, q, found) <= 1e-15


@with_and_without
def test_definite_matrices_of_opposite_sign(compiled) -> None:
    rng = np.random.default_rng(5)
    for k, d in ((6, 9), (9, 6)):
        a = torch.from_numpy(hermitian(rng, -np.geomspace(1, 1e6, k)))
        b = torch.from_numpy(hermitian(rng, -np.geomspace(1, 1e6, d)))
        q = torch.from_numpy(normal(rng, k, d))
        with solver(compiled):
            found = quiet(a, b, q, "sym")
            positive = sylvinit.solve_sylvester(-a, -b, -q, assume_a="pos")
        assert sylvinit.sylvester_residual(a, b, q, found) <= 1e-15
        assert relative_error(found, wide(positive)) <= 1e-9  # condition number 1e6


# --------------------------------------------------------------------------------------- general


@with_and_without
@pytest.mark.parametrize(
    ("kind", "n"),
    [("real", 1), ("complex", 1), *product(("real", "pair", "complex"), (2, 3, 8, 40))],
)
def test_general_collision_names_the_pair(compiled, kind, n) -> None:
    """One simple eigenvalue in common, well-conditioned eigenvectors, any orthonormal basis."""
    rng = np.random.default_rng(n)
    shared = {"real": 2.0, "pair": 1 + 2j, "complex": 1 + 2j}[kind]
    rest = n - (2 if kind == "pair" else 1)
    for _ in range(15):
        parts = []
        for value in (shared, -np.conj(shared) if kind == "pair" else -shared):
            values = np.append(value, rng.uniform(3, 5, rest))
            if kind == "complex":
                t = np.diag(values) + np.triu(normal(rng, n, n, complex_=True), 1) * 0.3 / n**0.5
            else:
                t = real_schur(rng, values, 0.3 / n**0.5)
            parts.append(torch.from_numpy(rotated(rng, t)))
        with solver(compiled):
            entry, found_a, found_b = collision(*parts, "gen")
        assert entry is None
        assert found_a + found_b == pytest.approx(0, abs=1e-5)  # six digits are named
        assert abs(found_a.imag) == pytest.approx(np.imag(shared), abs=1e-5)
        assert found_a.real == pytest.approx(np.real(shared), abs=1e-5)


@with_and_without
def test_lyapunov_equation_with_pure_imaginary_pair(compiled) -> None:
    """A X + X A^T = Q is singular if A has i and -i."""
    a = torch.tensor([[0.0, 3.0], [-1.0 / 3, 0.0]], dtype=torch.float64)
    with solver(compiled):
        _, found_a, found_b = collision(a, a.mT, "gen")
    assert (found_a.real, abs(found_a.imag)) == (0, pytest.approx(1))
    assert found_a == -found_b


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_nilpotent_matrices(compiled, dtype) -> None:
    rng = np.random.default_rng(6)
    for k, d in ((2, 2), (3, 7), (7, 3), (40, 35)):
        strict_a, strict_b = (
            tensor(normal(rng, n, n, complex_=dtype.is_complex), dtype).triu(1) for n in (k, d)
        )
        with solver(compiled):
            for left, right in (
                (strict_a, strict_b),
                (strict_a.mT, strict_b.mT),
                (strict_a, strict_b.mT),
            ):
                assert collision(left, right, "gen")[1:] == (0, 0)
        # One eigenvalue 2, defective: X is a polynomial in both matrices.
        left, right = strict_a / k**0.5, 2 * torch.eye(d).to(dtype) + strict_b / d**0.5
        q = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
        with solver(compiled):
            x = quiet(left, right, q, "gen")
        assert sylvinit.sylvester_residual(left, right, q, x) <= 2 * eps_of(q)
        if k * d <= 50:
            expected = kronecker_solution(wide(left), wide(right), wide(q))
            assert relative_error(x, expected) <= max(2 * eps_of(q), 1e-12)


@with_and_without
def test_jordan_blocks(compiled) -> None:
    """Defective and nearly defective matrices in a well-posed equation."""
    rng = np.random.default_rng(7)
    for n in (3, 10, 34):
        jordan = np.eye(n) + np.eye(n, k=1)
        for t in (jordan, rotated(rng, jordan), jordan + 1e-8 * normal(rng, n, n)):
            a = torch.from_numpy(t)
            x = normal(rng, n, n)
            q = torch.from_numpy(t @ x + x @ t.T)
            with solver(compiled):
                found = quiet(a, a.mT, q, "gen")
            assert sylvinit.sylvester_residual(a, a.mT, q, found) <= 1e-15
            # The separation shrinks like 2^-n or so; here at most 2e4 for n = 3 and 10.
            if n <= 10:
                assert relative_error(found, x) <= 1e-10


@with_and_without
def test_normal_matrices_with_rotated_spectra(compiled) -> None:
    """Spectra on a circle, those of -B half a step beside those of A."""
    rng = np.random.default_rng(8)
    for n in (4, 33, 50):
        angles = 2 * np.pi * np.arange(n) / n
        u, v = unitary(rng, n, True), unitary(rng, n, True)
        a = (u * np.exp(1j * angles)) @ u.conj().T
        b = -(v * np.exp(1j * (angles + np.pi / n))) @ v.conj().T
        x = normal(rng, n, n, complex_=True)
        with solver(compiled):
            found = quiet(*(torch.from_numpy(y) for y in (a, b, a @ x + x @ b)), "gen")
        assert relative_error(found, x) <= 1e-14 * n
