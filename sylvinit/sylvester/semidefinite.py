"""A W + W B = Q for symmetric positive semi-definite A and B whose rounding is known: layers.

With A = U diag(a) U^T and B = V diag(b) V^T the solution is W = U [(U^T Q V)_ij / (a_i + b_j)] V^T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.backends import Backend
from sylvinit.backends.eigen import Thresholds
from sylvinit.sylvester.rounding import RESIDUAL_BOUND, frobenius_norm, refine, relative_residual


class Solution(NamedTuple):
    """W, the largest relative residual, and how many pairs (i, j) the zero rule set to zero."""

    w: Tensor  # float64 (batch, k, d)
    residual: float
    dropped: int


class RankOne(NamedTuple):
    """B = V diag(s) V^T + m m^T: float64 (batch, d), (batch, d, d) and (batch, d)."""

    values: Tensor
    vectors: Tensor
    vector: Tensor


class _Decomposed(NamedTuple):
    """A = U diag(values) U^T."""

    matrix: Tensor
    values: Tensor
    vectors: Tensor

    def product(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def coordinates(self, x: Tensor) -> Tensor:
        return self.vectors.mT @ x

    def combined(self, x: Tensor) -> Tensor:
        return self.vectors @ x

    def norm(self) -> Tensor:
        return frobenius_norm(self.matrix)


class _Diagonal(NamedTuple):
    """A = diag(values): no matrix is made, which for a head over a vocabulary would be huge."""

    values: Tensor

    def product(self, x: Tensor) -> Tensor:
        return self.values[..., None] * x

    def coordinates(self, x: Tensor) -> Tensor:
        return x

    def combined(self, x: Tensor) -> Tensor:
        return x

    def norm(self) -> Tensor:
        return frobenius_norm(self.values[..., None])


def solve_positive(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    thresholds: Thresholds,
    backend: Backend,
    notes: list[str] | None = None,
) -> Solution:
    """Minimum-norm solution of A W + W B = Q for positive semi-definite A and B.

    a, b and q are float64 (batch, k, k), (batch, d, d) and (batch, k, d); a diagonal A may be given
    by its entries, (batch, k). Pairs with a_i and b_j
    both below their thresholds are set to zero, and their part of the defect does not count.
    Negative eigenvalues that are rounding are taken as zero, and the residual is that of the
    equation so changed: with float32 moments of fewer rows than features they alone would give a
    residual of 1e-12. ``notes`` takes a sentence where they do.
    """
    if a.ndim == 2:
        left, (values_b, v) = _Diagonal(a), backend.eigh(b, notes)
    else:
        (values, u), (values_b, v) = backend.eigh_pair(a, b, notes)
        left = _Decomposed(a, values, u)
    values_a = left.values
    y, keep = backend.divide(left.coordinates(q) @ v, values_a, values_b, thresholds)
    w = left.combined(y) @ v.mT
    norms = left.norm() + frobenius_norm(b)
    defect = torch.where(keep, left.coordinates(q - left.product(w) - w @ b) @ v, 0.0)
    below_zero = (
        _rounded_below_zero(values_a, thresholds.a)[..., :, None]
        + _rounded_below_zero(values_b, thresholds.b)[..., None, :]
    )
    residual = float(relative_residual(defect + below_zero * y, norms, w, q).max())
    if notes is not None and bool(below_zero.any()):
        as_they_are = float(relative_residual(defect, norms, w, q).max())
        if as_they_are > RESIDUAL_BOUND:
            notes.append("eigenvalues below zero, which are rounding, were taken as zero")
    return Solution(w, residual, int((~keep).sum()))


def _rounded_below_zero(values: Tensor, threshold: Tensor) -> Tensor:
    """Eigenvalues (batch, n) from -threshold to 0, and 0 for the others."""
    return torch.where(values >= -threshold[:, None], values.clamp(max=0), 0.0)


def solve_rank_one(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    thresholds: Thresholds,
    factors: RankOne,
    backend: Backend,
    notes: list[str] | None = None,
) -> Solution | None:
    """The same for B = V diag(s) V^T + m m^T with V and s known, without decomposing B.

    In the eigenvectors u_i of A, row i solves (a_i I + V diag(s) V^T + m m^T) w = q, a diagonal
    matrix plus one of rank one (Sherman and Morrison 1950), followed by up to two steps of
    iterative refinement. None where some a_i is so small that the zero rule may apply.
    """
    left = _Diagonal(a) if a.ndim == 2 else _Decomposed(a, *backend.eigh(a, notes))
    values = left.values
    if bool((values <= thresholds.a[:, None]).any()):
        return None
    s, v = factors.values.clamp(min=0), factors.vectors
    m = (v.mT @ factors.vector[..., None]).mT
    diagonal = values[..., :, None] + s[..., None, :]
    scaled = m / diagonal
    pivot = 1 + (scaled * m).sum(dim=-1, keepdim=True)

    def solve(right: Tensor) -> Tensor:
        y = (left.coordinates(right) @ v) / diagonal
        y = y - scaled * ((m * y).sum(dim=-1, keepdim=True) / pivot)
        return left.combined(y) @ v.mT

    norms = left.norm() + frobenius_norm(b)
    w, residual = refine(q, solve, lambda w: q - left.product(w) - w @ b, norms, steps=2)
    return Solution(w, residual, 0)
