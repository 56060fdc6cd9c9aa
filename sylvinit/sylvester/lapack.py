"""LAPACK on the CPU through the compiled module: the tridiagonal and the Schur route.

Tensors here are contiguous float64 or complex128 on the CPU, in C++ seen as column-major: what it
calls the left matrix is B^T, the right one A^T (csrc/solver/problem.h).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sylvinit.sylvester.outcome import Outcome, Status
from sylvinit.sylvester.threads import blas_for

_lapack: Any
try:
    from sylvinit import _lapack  # type: ignore[attr-defined,no-redef]

    AVAILABLE, REASON = True, ""
except ImportError as error:
    _lapack = None
    AVAILABLE, REASON = False, str(error)


# The workspace of LAPACK's dsyevd, 1 + 6 n + 2 n^2, must fit into 32 bits.
LARGEST = 32000


def inspect(x: Tensor) -> tuple[float, float]:
    """Largest |x_ij|, and for square matrices largest |x_ij - conj(x_ji)|, over a batch."""
    rows, columns = x.shape[-2:]
    return _lapack.inspect(x.data_ptr(), _count(x.shape[:-2]), rows, columns, x.dtype.is_complex)


def decompose(a: Tensor, form: str, threads: int) -> tuple[Tensor, Tensor, int]:
    """Basis and core of matrices (..., n, n) in the form of csrc/solver, opaque to others.

    Args:
        a: the matrices.
        form: "spectral", "tridiagonal" or "schur".
        threads: over the batch.

    Returns:
        basis (..., n, n), core ((..., n), (..., 3 or 4, n) or (..., n, n)), and the flat index of a
        matrix for which the iteration did not converge, or -1.
    """
    n, batch = a.shape[-1], a.shape[:-2]
    basis = torch.empty_like(a)
    core = torch.zeros(  # the off-diagonals fill their rows but for one entry
        (*batch, *core_shape(form, n, a.dtype)), dtype=core_dtype(form, a.dtype), device="cpu"
    )
    which = {
        "spectral": _lapack.SPECTRAL,
        "tridiagonal": _lapack.TRIDIAGONAL,
        "schur": _lapack.SCHUR,
    }[form]
    with blas_for(threads):
        failed = _lapack.decompose(
            which,
            a.data_ptr(),
            _count(batch),
            n,
            basis.data_ptr(),
            core.data_ptr(),
            a.dtype.is_complex,
            threads,
        )
    return basis, core, failed


def core_shape(form: str, n: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Shape of the core of one matrix of size n."""
    if form == "spectral":
        return (n,)
    return (n, n) if form == "schur" else (4 if dtype.is_complex else 3, n)


def core_dtype(form: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the core; those of Hermitian matrices are real."""
    return dtype if form == "schur" else torch.float64


def solve_hermitian_direct(
    a: Tensor, b: Tensor, q: Tensor, x: Tensor, eps: float, positive: bool, threads: int
) -> Outcome | None:
    """Everything for one a, b and q each per equation, k <= d, in one call.

    Returns:
        None, with x untouched, if an entry is not finite or a matrix not Hermitian to the bit.
    """
    k, d = q.shape[-2:]
    with blas_for(threads):
        found = _lapack.solve_hermitian_direct(
            a.data_ptr(),
            b.data_ptr(),
            q.data_ptr(),
            x.data_ptr(),
            _count(q.shape[:-2]),
            k,
            d,
            q.dtype.is_complex,
            eps,
            positive,
            threads,
        )
    return None if found is None else Outcome(Status(found[0]), *found[1:])


def solve(
    matrices: tuple[Tensor, Tensor],
    factors: Sequence[Tensor],
    indices: Sequence[Tensor | None],
    q: Tensor,
    x: Tensor,
    *,
    eps: float,
    threads: int,
    examine: bool,
    positive: bool = False,
    adjoint: bool = False,
) -> Outcome:
    """Solve from the forms of :func:`decompose`.

    Args:
        matrices: a (na, k, k) and b (nb, d, d).
        factors: basis and core of a, then of b; a spectral and b tridiagonal (needs k <= d), or
            both Schur forms.
        indices: int64 (count,) each for a, b and q: which matrix problem i has; None: its own.
        q: (nq, k, d).
        x: (count, k, d), overwritten.
        eps: of the caller's dtype.
        threads: over the batch.
        examine: look for colliding and negative eigenvalues first.
        positive: the zero rule ("pos").
        adjoint: solve A^H X + X B^H = Q (Schur forms only).
    """
    a, b = matrices
    basis_a, core_a, basis_b, core_b = factors
    count, k, d = x.shape
    operands = _lapack.Operands(
        b.data_ptr(),
        basis_b.data_ptr(),
        core_b.data_ptr(),
        a.data_ptr(),
        basis_a.data_ptr(),
        core_a.data_ptr(),
        q.data_ptr(),
        x.data_ptr(),
        *(0 if index is None else index.data_ptr() for index in (indices[1], *indices[::2])),
    )
    with blas_for(threads):
        if core_a.ndim == 3:
            found = _lapack.solve_general(
                operands, count, d, k, x.dtype.is_complex, eps, adjoint, examine, threads
            )
        else:
            found = _lapack.solve_hermitian(
                operands, count, d, k, x.dtype.is_complex, eps, positive, examine, threads
            )
    return _outcome(found)


def _outcome(found: tuple[int, int, float, float, complex, complex, int]) -> Outcome:
    return Outcome(Status(found[0]), *found[1:])


def _count(batch: Sequence[int]) -> int:
    return math.prod(batch)
