"""The leading eigenpairs of positive semi-definite matrices, and equations that they solve.

One reduction to tridiagonal form, the wanted pairs of that, and shifted tridiagonal systems; see
csrc/solver/principal.h for the equations. Tensors are float64 on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.sylvester import lapack


class LeadingRows(NamedTuple):
    """What belongs to eigenpairs [first, first + count) of every matrix, zero behind the last."""

    values: Tensor  # (batch, rows), descending
    vectors: Tensor  # (batch, rows, n)
    solution: Tensor  # (batch, rows, n)
    along: Tensor  # (batch, rows), in the dual what belongs to m beside X^T solution
    variances: Tensor  # (batch, rows), of the rows of W


class TridiagonalForms:
    """Matrices (batch, n, n), contiguous and symmetric, as H T H^T."""

    def __init__(self, name: str, matrices: Tensor) -> None:
        """SolverError if they are too large for LAPACK."""
        self.batch, self.n, _ = matrices.shape
        self._reflectors, self._core = lapack.decompose(name, matrices, "tridiagonal")
        self._threads = lapack.threads_for(self.batch, self.n, self.n)

    def ranks(self, relative: float, absolute: Tensor) -> Tensor:
        """How many eigenvalues exceed relative * largest + absolute (batch,), int64 (batch,)."""
        return lapack.count_significant(self._core, relative, absolute.contiguous(), self._threads)

    def solve(
        self,
        vectors: Tensor,
        squares: Tensor,
        lam: float,
        copies: float,
        first: Tensor,
        counts: Tensor,
        *,
        dual: bool,
    ) -> LeadingRows | None:
        """Rows of copies * diag(a) W + lam W (S + m m^T) = (copies + lam) diag(a) Z.

        Z has the eigenvectors of the values a as rows. In the ``dual``, the matrices are X X^T, and
        the equation is that of S = X^T X. None if the iteration for a matrix fails.

        Args:
            vectors: m, or X m in the dual, (batch, n).
            squares: m.m, (batch,).
            first, counts: which pairs in descending order, int64 (batch,).
        """
        shape = self.batch, max(int(counts.max()), 1)
        zeros = [torch.zeros(shape, dtype=torch.float64, device="cpu") for _ in range(3)]
        wide = [torch.zeros((*shape, self.n), dtype=torch.float64, device="cpu") for _ in range(2)]
        out = LeadingRows(zeros[0], *wide, *zeros[1:])
        given = vectors.contiguous(), squares.contiguous(), first, counts
        operands = self._reflectors, self._core, *given, *out
        done = lapack.principal_rows(operands, lam, copies, dual, self._threads)
        return out if done else None
