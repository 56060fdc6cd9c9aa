"""solve_lyapunov against SciPy and the Kronecker system, with SciPy's signs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch
from sylvester_problems import DTYPES, ids, normal, relative_error, tensor, wide, with_and_without
from sylvester_problems import solver as module_of
from torch.autograd import gradcheck, gradgradcheck

import sylvinit
from sylvinit.errors import MatrixError, OptionTypeError, SingularEquationError

F64, C128 = torch.float64, torch.complex128
both = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
# Relative to the largest entry: a rounding of single precision (measured 5.4e-8), and for random
# matrices a hundred of double precision (measured 4.4e-14).
TOLERANCE = {
    torch.float32: 1.2e-7,
    torch.complex64: 1.2e-7,
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
}


def scipy_lyapunov(a: np.ndarray, q: np.ndarray, discrete: bool) -> np.ndarray:
    """SciPy's; the discrete equation from the Kronecker system ("direct")."""
    if discrete:
        return scipy.linalg.solve_discrete_lyapunov(a, q, method="direct")
    return scipy.linalg.solve_continuous_lyapunov(a, q)


@with_and_without
@both
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("scale", [0.2, 1.0, 50.0])
def test_against_scipy(compiled: bool, discrete: bool, dtype: torch.dtype, scale: float) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        a, q = (tensor(normal(rng, n, n, complex_=True), C128) for _ in range(2))
        a, q = (x if dtype.is_complex else x.real.contiguous() for x in (scale * a, q))
        a, q = a.to(dtype), q.to(dtype)
        with module_of(compiled):
            x = sylvinit.solve_lyapunov(a, q, discrete=discrete)
        assert x.dtype == dtype
        expected = scipy_lyapunov(wide(a), wide(q), discrete)
        assert relative_error(x, expected) <= TOLERANCE[dtype]


@both
def test_batches_broadcast(discrete: bool) -> None:
    rng = np.random.default_rng(1)
    a, q = normal(rng, 2, 1, 3, 3), normal(rng, 4, 3, 3)
    x = sylvinit.solve_lyapunov(tensor(a, F64), tensor(q, F64), discrete=discrete)
    assert x.shape == (2, 4, 3, 3)
    for i, j in product(range(2), range(4)):
        expected = scipy_lyapunov(a[i, 0], q[j], discrete)
        assert relative_error(x[i, j], expected) <= TOLERANCE[F64]


def test_stationary_covariances() -> None:
    """Of dx = A x dt + dw and of x' = A x + w, from sums of their definition."""
    a = torch.tensor([[-1.0, 1.0], [0.0, -2.0]], dtype=F64)
    steps = torch.arange(0.0, 30.0, 0.005, dtype=F64) + 0.0025  # midpoints: an error of 1e-5
    flow = torch.matrix_exp(steps[:, None, None] * a)
    continuous = (flow @ flow.mT).sum(dim=0) * 0.005
    identity = torch.eye(2, dtype=F64)
    torch.testing.assert_close(sylvinit.solve_lyapunov(a, -identity), continuous, rtol=0, atol=1e-4)
    a = a.abs() / 4
    powers = [torch.linalg.matrix_power(a, k) for k in range(60)]  # 2^-60: below rounding
    discrete = sum(p @ p.mT for p in powers)
    found = sylvinit.solve_lyapunov(a, identity, discrete=True)
    torch.testing.assert_close(found, discrete, rtol=0, atol=1e-14)


def test_eigenvalues_close_to_the_pole_of_the_transformation() -> None:
    """At -1 + 1e-4, where it is of size 1e4, and at 1 - 1e-4, where it is of size 1e-4."""
    a = torch.diag(torch.tensor([-0.9999, 0.5, 0.2], dtype=F64))
    a[0, 2] = 1.0
    q = tensor(normal(np.random.default_rng(2), 3, 3), F64)
    for signed in (a, -a):
        x = sylvinit.solve_lyapunov(signed, q, discrete=True)
        # The condition number of the equation is about 5e3; measured 2.5e-13.
        assert relative_error(x, scipy_lyapunov(wide(signed), wide(q), True)) <= 5e-12


@both
@pytest.mark.parametrize("q_dtype", [F64, C128], **ids)
def test_derivatives(discrete: bool, q_dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    a = tensor(0.3 * normal(rng, 3, 3), F64).requires_grad_()
    q = tensor(normal(rng, 3, 3), q_dtype).requires_grad_()

    def solve(a: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return sylvinit.solve_lyapunov(a, q, discrete=discrete)

    assert gradcheck(solve, (a, q))
    assert gradgradcheck(solve, (a, q))


@both
def test_a_complex_matrix_beside_a_real_one(discrete: bool) -> None:
    rng = np.random.default_rng(4)
    real, other = normal(rng, 4, 4), normal(rng, 4, 4, complex_=True)
    for a, q in ((real, other), (other, real)):
        given = (torch.from_numpy(x) for x in (a, q))
        x = sylvinit.solve_lyapunov(*given, discrete=discrete)
        assert x.dtype == C128
        # SciPy takes the real Schur form of a real matrix for a complex triangular one.
        expected = scipy_lyapunov(a.astype(complex), q.astype(complex), discrete)
        assert relative_error(x, expected) <= TOLERANCE[C128]


@pytest.mark.parametrize(
    ("diagonal", "discrete", "message"),
    [
        ((1.0, -1.0, 3.0), False, r"x \+ conj\(y\) = 0 .*A X \+ X A\^H = Q .*shift a"),
        ((0.0, 1.0, 3.0), False, r"x \+ conj\(y\) = 0"),
        ((0.5, 2.0, 0.1), True, r"x conj\(y\) = 1 .*X - A X A\^H = Q .*scale a"),
        ((1.0, 0.5, 0.1), True, r"x conj\(y\) = 1"),
        ((-1.0, 0.5, 0.1), True, r"x conj\(y\) = 1"),
    ],
)
def test_singular_equations(diagonal: tuple[float, ...], discrete: bool, message: str) -> None:
    a = torch.diag(torch.tensor(diagonal, dtype=F64))
    with pytest.raises(SingularEquationError, match=message):
        sylvinit.solve_lyapunov(a, torch.eye(3, dtype=F64), discrete=discrete)


A = torch.eye(3, dtype=F64) / 2


@pytest.mark.parametrize(
    ("a", "q", "options", "error", "message"),
    [
        (A, A[:2, :2], {}, MatrixError, r"a and q must be of one size, got \(3, 3\) and \(2, 2\)"),
        (A[:2], A, {}, MatrixError, "a must be square"),
        (A, A[:2], {}, MatrixError, "q must be square"),
        (A.expand(2, 3, 3), A.expand(4, 3, 3), {}, MatrixError, "do not broadcast"),
        (A, A.float(), {}, OptionTypeError, "a and q must have one dtype"),
        (A, A.to(torch.complex64), {}, OptionTypeError, "a and q must have one dtype"),
        (A.long(), A, {}, OptionTypeError, "a must be float32"),
        (A, None, {}, OptionTypeError, "q must be a torch.Tensor"),
        (A, A, {"discrete": "yes"}, OptionTypeError, "discrete must be True or False"),
        (A * torch.nan, A, {"discrete": True}, MatrixError, "a must be finite"),
        (A, A * torch.nan, {"discrete": True}, MatrixError, "q must be finite"),
        (A, A * torch.inf, {}, MatrixError, "q must be finite"),
    ],
)
def test_bad_arguments(
    a: torch.Tensor,
    q: torch.Tensor,
    options: dict[str, bool],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        sylvinit.solve_lyapunov(a, q, **options)
