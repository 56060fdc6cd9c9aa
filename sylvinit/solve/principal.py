"""Layers whose code is principal components: only the leading eigenpairs are computed.

With s = P (x - mu), A = diag(a) holds the leading eigenvalues of Sigma and Q = (1 + lam) A P, so
that row i of A W + W B = Q is a shifted system with one right side for all rows,

    w_i = p_i - [lam (p_i . mu) / (1 + lam mu^T K_i^-1 mu)] K_i^-1 mu,    K_i = a_i I + lam Sigma,

solved on the tridiagonal form of Sigma, or with fewer rows than features on that of their n x n
Gram matrix. Nothing of size d x d is diagonalized, and in the dual nothing is made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.codes.code import Code, signs_of
from sylvinit.codes.components import PCA
from sylvinit.codes.pairs import SignPairs
from sylvinit.moments.statistics import LayerStatistics
from sylvinit.moments.sums import gram
from sylvinit.sylvester import lapack
from sylvinit.sylvester.leading import TridiagonalForms
from sylvinit.sylvester.rounding import RESIDUAL_BOUND, frobenius_norm

# Vectors on which the equation is checked: the defect is known to a few tens of percent.
_PROBES = 8
# P P^T - I up to which components of float64 rows are handed out; for others, in units of their
# round-off. In the dual components are X^T u / sigma, which are off by eps times the ratio of the
# largest variance to their own.
_ORTHONORMAL, _ORTHONORMAL_ROUNDINGS = 1e-9, 10


class PrincipalRows(NamedTuple):
    """Solved rows, packed to the front of every group and zero behind."""

    weight: Tensor  # float64 (groups, rows, d_in)
    deviation: Tensor  # standard deviation of their outputs, (groups, rows)
    component: Tensor  # int64 (groups, rows), their numbers
    solved: Tensor  # bool (groups, rows)
    rank: int  # the largest over groups
    residual: float  # relative, the largest over groups
    shares: Tensor | None  # of the variance, descending, (groups, rows); None but for the first


def is_principal(code: Code) -> bool:
    """Whether the code is centered principal components, or pairs of them."""
    base = code.code if isinstance(code, SignPairs) else code
    return type(base) is PCA and base.center


def solve_principal(
    stats: LayerStatistics, k: int, lam: float, *, skip: int = 0, copies: int = 1
) -> PrincipalRows | None:
    """The components from ``skip`` on, ``k`` of every group, or all where there are fewer.

    ``copies`` entries stand for each, as in :mod:`sylvinit.solve.equation`. None where this way is
    not open (other devices, no compiled module) or not accurate enough.
    """
    if stats.backend.name != "cpu" or not lapack.AVAILABLE or stats.d > lapack.LARGEST:
        return None
    found = None
    if stats.centered is not None:
        found = _solve(stats, stats.centered, k, lam, skip, copies)
    # Where X^T u / sigma is too inaccurate, in an orthonormal basis of the rows' span.
    return found or _solve(stats, None, k, lam, skip, copies)


def _solve(
    stats: LayerStatistics, rows: Tensor | None, k: int, lam: float, skip: int, copies: int
) -> PrincipalRows | None:
    """In the dual with the centered rows, else in the coordinates of the statistics."""
    mean = stats.mean if rows is None else stats.input_mean
    matrix = stats.covariance if rows is None else gram(rows.mT) / stats.n
    # In units in which the largest variance is about 1; the solution does not change.
    unit = matrix.diagonal(dim1=1, dim2=2).amax(dim=1)
    unit = torch.where(unit > 0, unit, 1.0)
    matrix = matrix / unit[:, None, None]
    mean = mean / unit.sqrt()[:, None]
    dual, factor = rows is not None, (stats.n * unit).rsqrt()[:, None, None]

    def to_dual(x: Tensor) -> Tensor:  # columns (groups, d_in, c)
        return x if rows is None else (rows @ x) * factor

    def from_dual(x: Tensor) -> Tensor:  # rows (groups, r, n)
        return x if rows is None else (x * factor) @ rows

    forms = TridiagonalForms("the covariance", matrix)
    ranks = forms.ranks(stats.tolerance, stats.rounding_of_rows() / unit)
    first = torch.where(skip + k <= ranks, skip, 0)
    counts = torch.where(first > 0, k, ranks.clamp(max=k + skip))
    vector = to_dual(mean[:, :, None])[:, :, 0]
    squares = mean.square().sum(dim=1)
    found = forms.solve(vector, squares, lam, copies, first, counts, dual=dual)
    if found is None:
        return None
    place = torch.arange(found.values.shape[1])
    solved = place < counts[:, None]
    values = torch.where(solved, found.values, 1.0)
    vectors = found.vectors / values.sqrt()[:, :, None] if dual else found.vectors
    components, weight = from_dual(vectors), from_dual(found.solution)
    if dual:
        weight += found.along[:, :, None] * mean[:, None, :]
    scale = (1 + lam) / (copies + lam)
    whole = stats.in_input_coordinates if rows is None else lambda x: x
    signs = signs_of(whole(components))
    weight *= scale * signs
    components *= signs

    def times_covariance(x: Tensor) -> Tensor:
        return matrix @ x if rows is None else from_dual(to_dual(x).mT).mT

    probes = _signs(components.shape[:2]).where(solved[:, :, None], 0.0)
    seen = torch.cat((components.mT @ probes, weight.mT @ probes), dim=2)
    along = times_covariance(seen)
    coded, of_weight = along[:, :, :_PROBES], along[:, :, _PROBES:]
    defect = (
        copies * (weight.mT @ (components @ coded))
        + lam * (of_weight + mean[:, :, None] * (mean[:, None, :] @ seen[:, :, _PROBES:]))
        - (1 + lam) * coded
    )
    of_a = torch.where(solved, found.values, 0.0).square().sum(dim=1).sqrt()
    mean_variance = (times_covariance(mean[:, :, None])[:, :, 0] * mean).sum(dim=1)
    # |Sigma + mu mu^T|^2; the Gram matrix has the norm of Sigma.
    of_b = lam * (frobenius_norm(matrix) ** 2 + 2 * mean_variance + squares**2).sqrt()
    size = (copies * of_a + of_b) * frobenius_norm(weight) + (1 + lam) * of_a
    error = frobenius_norm(defect) / _PROBES**0.5
    residual = float((error / torch.where(size > 0, size, 1.0)).max())
    skew = float((components @ seen[:, :, :_PROBES] - probes).abs().max())
    skewed = skew > max(_ORTHONORMAL, _ORTHONORMAL_ROUNDINGS * stats.rows_eps)
    if skewed or not residual <= RESIDUAL_BOUND:
        return None
    deviation = scale * (found.variances.clamp(min=0) * unit[:, None]).sqrt()
    component = first[:, None] + place
    total = matrix.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True)
    shares = None if bool(first.any()) else torch.where(solved, found.values / total, 0.0)
    return PrincipalRows(
        whole(weight), deviation, component, solved, int(ranks.max()), residual, shares
    )


def _signs(shape: torch.Size) -> Tensor:
    """A fixed matrix of 1 and -1 for every group, float64 (groups, rows, probes)."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (shape[1], _PROBES), generator=generator)
    return (2.0 * bits - 1).double().expand(shape[0], -1, -1)
