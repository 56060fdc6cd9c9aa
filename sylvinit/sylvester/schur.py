"""Any square matrices, without the compiled module: SciPy's Schur forms and LAPACK's trsyl.

A = U R U^H, B = V S V^H, R Y + Y S = U^H Q V, X = U Y V^H (Bartels and Stewart 1972).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from sylvinit.errors import SolverError
from sylvinit.sylvester.matrices import adjoint_of
from sylvinit.sylvester.outcome import Mode, Outcome, Status, closest_pair
from sylvinit.sylvester.rounding import frobenius_norm, refine, zero_threshold


def decompose(a: Tensor) -> tuple[Tensor, Tensor]:
    """Schur vectors and Schur forms of CPU matrices (..., n, n), float64 or complex128."""
    vectors, forms = torch.empty_like(a), torch.empty_like(a)
    output = "complex" if a.dtype.is_complex else "real"
    for at in np.ndindex(*a.shape[:-2]):
        try:
            form, basis = scipy.linalg.schur(a[at].numpy(), output=output)
        except scipy.linalg.LinAlgError as error:
            raise SolverError(
                f"the Schur form of a matrix of size {a.shape[-1]} failed ({error}); scale the "
                "matrices to similar size"
            ) from error
        forms[at], vectors[at] = torch.from_numpy(form), torch.from_numpy(basis)
    return vectors, forms


def eigenvalues(t: Tensor) -> Tensor:
    """Of Schur forms (..., n, n), upper or lower triangular with 2 x 2 blocks if real."""
    diagonal = t.diagonal(dim1=-2, dim2=-1)
    if t.dtype.is_complex or t.shape[-1] < 2:
        return diagonal.to(torch.complex128)
    above, below = t.diagonal(1, dim1=-2, dim2=-1), t.diagonal(-1, dim1=-2, dim2=-1)
    # A block has entries of opposite sign on both sides; elsewhere one of them is zero.
    imaginary = above.abs().sqrt() * below.abs().sqrt()
    pad = torch.nn.functional.pad
    return torch.complex(diagonal, pad(imaginary, (0, 1)) - pad(imaginary, (1, 0)))


def solve(
    matrices: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    q: Tensor,
    mode: Mode,
) -> tuple[Tensor, Outcome]:
    """X, one equation at a time; arguments as for lapack.solve."""
    parts = (*matrices, *factors, q)
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    _, r, _, s = factors
    values_r, values_s = eigenvalues(r), eigenvalues(s)
    distances = (values_r[..., :, None] + values_s[..., None, :]).abs()
    size = frobenius_norm(r) + frobenius_norm(s)
    outcome = closest_pair(values_r, values_s, distances, size, batch)
    if mode.checked and outcome.separation <= zero_threshold(q, mode.eps):
        return q, outcome._replace(status=Status.SINGULAR)
    x = q.new_empty((*batch, *q.shape[-2:]))
    a, b, u, r, v, s, right = (part.expand(*batch, *part.shape[-2:]) for part in parts)
    residual = 0.0
    for problem, at in enumerate(np.ndindex(*batch)):
        x[at], error = _solve_one(a[at], b[at], u[at], r[at], v[at], s[at], right[at], mode.adjoint)
        if mode.checked and not bool(x[at].isfinite().all()):
            return q, outcome._replace(status=Status.OVERFLOW, problem=problem)
        residual = float(np.maximum(residual, error))
    return x, outcome._replace(residual=residual)


def _solve_one(
    a: Tensor, b: Tensor, u: Tensor, r: Tensor, v: Tensor, s: Tensor, q: Tensor, adjoint: bool
) -> tuple[Tensor, float]:
    if adjoint:
        a, b = adjoint_of(a), adjoint_of(b)
    trsyl = scipy.linalg.get_lapack_funcs("trsyl", (r.numpy(), s.numpy()))
    op = ("C" if r.is_complex() else "T") if adjoint else "N"
    u_adjoint, v_adjoint = adjoint_of(u), adjoint_of(v)

    def solve(right: Tensor) -> Tensor:
        inside = (u_adjoint @ right @ v).numpy()
        y, scale, info = trsyl(r.numpy(), s.numpy(), inside, trana=op, tranb=op)
        if info < 0 or scale != 1:  # it would overflow
            return torch.full_like(right, torch.nan)
        return u @ torch.from_numpy(y) @ v_adjoint

    norms = frobenius_norm(a) + frobenius_norm(b)
    return refine(q, solve, lambda x: q - a @ x - x @ b, norms, above=0.0)
