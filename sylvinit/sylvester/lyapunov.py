"""solve_lyapunov: the continuous and the discrete Lyapunov equation."""

from __future__ import annotations

import torch
from torch import Tensor

from sylvinit.checks import check_flag
from sylvinit.errors import MatrixError, SingularEquationError
from sylvinit.sylvester import matrices
from sylvinit.sylvester.solve import solve_sylvester


def solve_lyapunov(a: Tensor, q: Tensor, *, discrete: bool = False) -> Tensor:
    """Solve A X + X A^H = Q, or X - A X A^H = Q if ``discrete``, for batches, with derivatives.

    The signs are those of scipy.linalg.solve_continuous_lyapunov and solve_discrete_lyapunov. The
    solution is unique if no eigenvalue of A is minus the conjugate of one; discrete, if no product
    of one with the conjugate of one is 1. It is Hermitian up to rounding where Q is.

    The discrete equation is solved as a continuous one (the bilinear transformation): with
    M = (A + I)^-1 and B = M (A - I) it is B X + X B^H = -2 M Q M^H.

    Args:
        a: (..., n, n), float32, float64, complex64 or complex128.
        q: (..., n, n), same precision and device; a real matrix beside a complex one counts as
            complex. Leading dimensions broadcast.
        discrete: which equation.

    Returns:
        X, (..., n, n).

    Raises:
        OptionTypeError: not tensors, an integer dtype, different precisions; ``discrete`` is no
            bool.
        MatrixError: shapes do not fit, NaN or Inf, or different devices.
        SingularEquationError: there is no solution, or infinitely many.
        SolverError: an eigenvalue iteration did not converge or numbers overflowed.

    Warns:
        AccuracyWarning: the equation is nearly singular.

    Example:
        >>> a = torch.tensor([[-1.0, 1.0], [0.0, -2.0]])  # dx = A x dt + dw
        >>> sylvinit.solve_lyapunov(a, -torch.eye(2))  # its stationary covariance
        tensor([[0.5833, 0.0833],
                [0.0833, 0.2500]])
    """
    a, q = matrices.check_square("a", a), matrices.check_square("q", q)
    discrete = check_flag("discrete", discrete)
    a, q = matrices.promote(a=a, q=q)
    if a.shape[-1] != q.shape[-1]:
        raise MatrixError(f"a and q must be of one size, got {tuple(a.shape)} and {tuple(q.shape)}")
    matrices.broadcast(a=a.shape[:-2], q=q.shape[:-2])
    try:
        return _bilinear(a, q) if discrete else solve_sylvester(a, a.mH, q)
    except SingularEquationError as error:
        pair, equation, remedy = (
            ("x conj(y) = 1", "X - A X A^H = Q", "scale a")
            if discrete
            else ("x + conj(y) = 0", "A X + X A^H = Q", "shift a (a + c I)")
        )
        raise SingularEquationError(
            f"a has eigenvalues x and y with {pair} up to rounding, so {equation} has no solution "
            f"or infinitely many; {remedy}"
        ) from error


def _bilinear(a: Tensor, q: Tensor) -> Tensor:
    # In double precision, for what the transformation loses where eigenvalues are close to -1.
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    wide_a, wide_q = a.to(wide), q.to(wide)
    identity = torch.eye(a.shape[-1], dtype=wide, device=a.device)
    try:
        m = torch.linalg.inv(wide_a + identity)
    except torch.linalg.LinAlgError as error:
        raise SingularEquationError("a has the eigenvalue -1") from error
    b = m @ (wide_a - identity)
    return solve_sylvester(b, b.mH, -2 * (m @ wide_q @ m.mH)).to(a.dtype)
