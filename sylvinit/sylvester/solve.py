"""solve_sylvester and sylvester_residual."""

from __future__ import annotations

import torch
from torch import Tensor

from sylvinit.checks import check_choice
from sylvinit.sylvester import matrices, operators
from sylvinit.sylvester.direct import solve_directly
from sylvinit.sylvester.rounding import frobenius_norm, relative_residual


def solve_sylvester(a: Tensor, b: Tensor, q: Tensor, *, assume_a: str = "auto") -> Tensor:
    """Solve A X + X B = Q for batches of dense matrices, with derivatives.

    The solution is unique if no eigenvalue of A is minus one of B. The work is done in float64 (or
    complex128) whatever the dtype of the arguments, followed by one step of iterative refinement
    where the residual asks for it.

    Args:
        a: (..., k, k), float32, float64, complex64 or complex128.
        b: (..., d, d), same precision and device; real matrices beside complex ones count as
            complex.
        q: (..., k, d). Leading dimensions of a, b and q broadcast; matrices shared by a batch are
            decomposed once.
        assume_a: what holds for both A and B (the name is that of scipy.linalg.solve).
            "gen": nothing; Schur forms (Bartels and Stewart 1972), on the host for tensors on
            other devices. "sym": Hermitian (symmetric if real); eigendecompositions. "pos":
            Hermitian positive semi-definite; pairs of eigenvalues with
            a_i + b_j <= max(k, d) eps (a_max + b_max), eps of the dtype, are dropped, which gives
            the minimum-norm solution of the projected equation. "auto": "sym" if both matrices are
            Hermitian to the bit, else "gen".

    Returns:
        X, (..., k, d), complex if one of the matrices is.

    Raises:
        OptionTypeError: not tensors, an integer dtype, or different precisions.
        OptionError: unknown ``assume_a``.
        MatrixError: shapes do not fit, NaN or Inf, different devices, a matrix that is not
            Hermitian beyond rounding, or "pos" with a clearly negative eigenvalue.
        SingularEquationError: the spectra of A and -B meet (never with "pos").
        SolverError: an eigenvalue iteration did not converge or numbers overflowed.
        BackendError: a device without float64, or a compiled graph under forward mode.

    Warns:
        AccuracyWarning: min |a_i + b_j| is below sqrt(eps) of |A| + |B|.

    Derivatives: reverse and forward mode at any order, torch.func transforms and torch.compile.
    Gradients for A and B are not symmetrized: with "sym" and "pos" they hold for any
    parametrization of Hermitian matrices.

    Example:
        >>> a, b = torch.tensor([[2.0]]), torch.tensor([[1.0]])
        >>> sylvinit.solve_sylvester(a, b, torch.tensor([[6.0]]))
        tensor([[2.]])
    """
    a, b = matrices.check_square("a", a), matrices.check_square("b", b)
    q = matrices.check_matrix("q", q)
    structure = check_choice("assume_a", assume_a, matrices.STRUCTURES)
    if structure != "gen":
        x = solve_directly(a, b, q, structure)
        if x is not None:
            return x
    a, b, q = matrices.promote(a=a, b=b, q=q)
    batch = matrices.broadcast(a=a.shape[:-2], b=b.shape[:-2])
    matrices.check_right_side(q, a.shape[-1], b.shape[-1], batch)
    return operators.solve(a, b, q, structure)


def sylvester_residual(a: Tensor, b: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """Relative residual |A X + X B - Q| / ((|A| + |B|) |X| + |Q|), Frobenius norms.

    Computed in float64 or complex128. Up to a few times the dtype's eps the solution is as good as
    rounding lets it be: it solves an equation with slightly different A, B and Q exactly.

    Args:
        a: (..., k, k).
        b: (..., d, d), same precision and device.
        q: (..., k, d).
        x: (..., k, d).

    Returns:
        float64 (...), zero where the denominator is.

    Raises:
        OptionTypeError: not tensors, an integer dtype, or different precisions.
        MatrixError: shapes do not fit, or different devices.
    """
    a, b = matrices.check_square("a", a), matrices.check_square("b", b)
    q, x = matrices.check_matrix("q", q), matrices.check_matrix("x", x)
    a, b, q, x = matrices.promote(a=a, b=b, q=q, x=x)
    batch = matrices.broadcast(a=a.shape[:-2], b=b.shape[:-2])
    matrices.check_right_side(q, a.shape[-1], b.shape[-1], batch)
    matrices.check_right_side(x, a.shape[-1], b.shape[-1], batch, name="x")
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    a, b, q, x = a.to(wide), b.to(wide), q.to(wide), x.to(wide)
    return relative_residual(a @ x + x @ b - q, frobenius_norm(a) + frobenius_norm(b), x, q)
