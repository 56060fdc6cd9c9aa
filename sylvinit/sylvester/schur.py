"""Any square matrices, without the compiled module: SciPy's Schur forms and LAPACK's trsyl.

A = U R U^H, B = V S V^H, R Y + Y S = U^H Q V, X = U Y V^H (Bartels and Stewart 1972).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from sylvinit.errors import SolverError
from sylvinit.sylvester.outcome import Outcome, Status


def decompose(a: Tensor) -> tuple[Tensor, Tensor]:
    """Schur vectors and Schur forms of CPU matrices (..., n, n), float64 or complex128."""
    vectors, forms = torch.empty_like(a), torch.empty_like(a)
    output = "complex" if a.dtype.is_complex else "real"
    flat = zip(_matrices(a), _matrices(vectors), _matrices(forms), strict=True)
    for matrix, basis, core in flat:
        try:
            core[...], basis[...] = scipy.linalg.schur(matrix, output=output)
        except scipy.linalg.LinAlgError as error:
            raise SolverError(f"the Schur form of size {a.shape[-1]} failed: {error}") from error
    return vectors, forms


def solve(
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    indices: tuple[Tensor | None, Tensor | None, Tensor | None],
    matrices: tuple[Tensor, Tensor],
    q: Tensor,
    x: Tensor,
    *,
    eps: float,
    examine: bool,
    adjoint: bool,
) -> Outcome:
    """X, one equation at a time; arguments as for lapack.solve."""
    a, b = (_matrices(matrix) for matrix in matrices)
    u, r, v, s = (_matrices(factor) for factor in factors)
    right, solutions = _matrices(q), _matrices(x)
    picks = [range(len(x)) if index is None else index.tolist() for index in indices]
    worst = Outcome.empty()
    residual = 0.0
    for i, (ia, ib, iq) in enumerate(zip(*picks, strict=True)):
        outcome = _separation(r[ia], s[ib], i)
        if examine and outcome.separation <= max(x.shape[-2:]) * eps:
            return outcome
        if outcome.separation < worst.separation:
            worst = outcome
        y = _apply(u[ia], r[ia], v[ib], s[ib], right[iq], adjoint)
        if y is None:
            if examine:
                return replace(outcome, status=Status.OVERFLOW)
            solutions[i] = np.nan
            continue
        defect, size = _defect(a[ia], b[ib], right[iq], y, adjoint)
        correction = _apply(u[ia], r[ia], v[ib], s[ib], defect, adjoint)
        if correction is not None:
            after, _ = _defect(a[ia], b[ib], right[iq], y + correction, adjoint)
            if _norm(after) < _norm(defect):
                y, defect = y + correction, after
        solutions[i] = y
        error = _norm(defect)
        residual = float(np.maximum(residual, error / size if error != 0 else 0.0))
    return Outcome(Status.OK, worst.problem, residual, worst.separation, worst.a, worst.b, 0)


def _matrices(x: Tensor) -> NDArray[np.generic]:
    """A batch as a NumPy view (count, rows, columns)."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]).numpy()


def _apply(u: Any, r: Any, v: Any, s: Any, q: Any, adjoint: bool) -> Any:
    trsyl = scipy.linalg.get_lapack_funcs("trsyl", (r, s))
    op = ("C" if np.iscomplexobj(r) else "T") if adjoint else "N"
    y, scale, info = trsyl(r, s, u.conj().T @ q @ v, trana=op, tranb=op)
    if info < 0 or scale != 1:
        return None
    return u @ y @ v.conj().T


def _defect(a: Any, b: Any, q: Any, x: Any, adjoint: bool) -> tuple[Any, float]:
    if adjoint:
        a, b = a.conj().T, b.conj().T
    return q - a @ x - x @ b, (_norm(a) + _norm(b)) * _norm(x) + _norm(q)


def _norm(x: Any) -> float:
    """Frobenius norm without squares that over- or underflow."""
    scale = float(np.abs(x).max(initial=0.0))
    return float(np.linalg.norm(x / scale)) * scale if 0 < scale < np.inf else scale


def _separation(r: NDArray[np.generic], s: NDArray[np.generic], problem: int) -> Outcome:
    """The pair of eigenvalues with the smallest sum, as a singular one."""
    values_r, values_s = (_eigenvalues(matrix) for matrix in (r, s))
    sums = np.abs(values_r[:, None] + values_s)
    i, j = np.unravel_index(sums.argmin(), sums.shape)
    size = _norm(r) + _norm(s)
    relative = float(sums[i, j]) / size if size else 0.0
    return Outcome(
        Status.SINGULAR, problem, 0.0, relative, complex(values_r[i]), complex(values_s[j]), 0
    )


def _eigenvalues(t: NDArray[np.generic]) -> NDArray[np.complex128]:
    """Of a (quasi-)triangular matrix."""
    values = np.diag(t).astype(np.complex128)
    if not np.iscomplexobj(t):
        below, above = np.diag(t, -1), np.diag(t, 1)
        for i in np.flatnonzero(below):  # LAPACK makes the diagonal of a 2 x 2 block constant
            imaginary = 1j * np.sqrt(abs(below[i])) * np.sqrt(abs(above[i]))
            values[i] += imaginary
            values[i + 1] -= imaginary
    return values
