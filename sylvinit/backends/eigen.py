"""A W + W B = Q for symmetric positive semi-definite A and B, by eigendecomposition.

With A = U diag(a) U^T and B = V diag(b) V^T the solution is W = U [(U^T Q V)_ij / (a_i + b_j)] V^T.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol

import scipy.linalg
import torch
from torch import Tensor

from sylvinit.errors import SolverError

# Relative error up to which an eigendecomposition is believed: it multiplies a vector as the matrix
# does. LAPACK's was below 1e-16 for low-rank Gram matrices of size 100 to 4608.
_EIGH_BOUND = 1e-10
# Relative residual from which on it is said what eigenvalues below zero have to do with it.
_NOTICED = 1e-12
# Relative residual at which iterative refinement has nothing left to gain.
_REFINED = 1e-15


class Eigh(Protocol):
    """An eigendecomposition of symmetric matrices; notes say if it was not the first choice."""

    def __call__(self, a: Tensor, notes: list[str] | None = None) -> tuple[Tensor, Tensor]:
        """Eigenvalues (..., n), ascending, and eigenvectors (..., n, n) of a (..., n, n)."""
        ...


class EighPair(Protocol):
    """Two eigendecompositions, at the same time where the backend can."""

    def __call__(
        self, a: Tensor, b: Tensor, notes: list[str] | None = None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Those of a (..., k, k) and of b (..., d, d), each as of :class:`Eigh`."""
        ...


class Divide(Protocol):
    """The division by a_i + b_j, with the zero rule."""

    def __call__(
        self, c: Tensor, values_a: Tensor, values_b: Tensor, thresholds: Thresholds
    ) -> Quotient:
        """The quotient of c (batch, k, d), which may be overwritten; see :func:`divide`."""
        ...


class Routines(Protocol):
    """What a backend offers to the solution of an equation."""

    @property
    def eigh(self) -> Eigh:
        """An eigendecomposition."""
        ...

    @property
    def eigh_pair(self) -> EighPair:
        """Two of them."""
        ...

    @property
    def divide(self) -> Divide:
        """What stands between them."""
        ...


@dataclass(frozen=True)
class Solution:
    """W and how far it can be trusted.

    Attributes:
        w: float64 (batch, k, d).
        residual: largest relative residual of the batch, see :func:`relative_residual`.
        separation: smallest a_i + b_j that was divided by, relative to a_max + b_max.
        dropped: pairs (i, j) set to zero because a_i and b_j are both rounding.
    """

    w: Tensor
    residual: float
    separation: float
    dropped: int


@dataclass(frozen=True)
class Thresholds:
    """Eigenvalues of A and B up to which they may be rounding, float64 (batch,) each."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Quotient:
    """c_ij / (a_i + b_j), eigenvalues below 0 taken as 0.

    Attributes:
        y: float64 (batch, k, d), 0 where the zero rule applies.
        keep: bool (batch, k, d), where it does not.
        least: float64 (batch,), smallest divisor where it does not, infinite if that is nowhere.
        dropped: how many entries it applies to in the whole batch.
    """

    y: Tensor
    keep: Tensor
    least: Tensor
    dropped: int


@dataclass(frozen=True)
class RankOne:
    """B = V diag(s) V^T + m m^T: float64 (batch, d), (batch, d, d) and (batch, d)."""

    values: Tensor
    vectors: Tensor
    vector: Tensor


def eigh(a: Tensor, notes: list[str] | None = None) -> tuple[Tensor, Tensor]:
    """Eigendecomposition of symmetric or Hermitian matrices by torch.linalg, else by SciPy.

    Matrices are scaled to unit size first: graded low-rank Gram matrices are where the libraries'
    routines are known to fail. Results are checked on a vector; SciPy's QR iteration is slower than
    divide and conquer, and fails less.

    Args:
        a: float64 or complex128 (..., n, n).
        notes: takes a sentence if the first route failed.

    Raises:
        SolverError: every route failed.
    """
    scale = a.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
    scaled = a / scale
    try:
        values, vectors = torch.linalg.eigh(scaled)
        reason = _defect(scaled, values, vectors)
    except torch.linalg.LinAlgError as error:
        values, vectors, reason = scaled[..., 0].real, scaled, str(error)
    if reason:
        values, vectors = eigh_scipy(scaled)
        if notes is not None:
            notes.append(f"torch.linalg.eigh failed ({reason}); SciPy's QR iteration was used")
    return values * scale[..., 0], vectors


def eigh_pair(
    a: Tensor, b: Tensor, notes: list[str] | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """:func:`eigh` of a, then of b."""
    return eigh(a, notes), eigh(b, notes)


def eigh_scipy(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigendecomposition on the host by QR iteration, checked.

    Args:
        a: float64 or complex128 (..., n, n) of unit size, on any device.

    Raises:
        SolverError: it failed.
    """
    flat = a.reshape(-1, *a.shape[-2:]).cpu().numpy()
    try:
        pairs = [scipy.linalg.eigh(matrix, driver="ev") for matrix in flat]
    except (ValueError, scipy.linalg.LinAlgError) as error:
        raise SolverError(
            f"the eigendecomposition of size {a.shape[-1]} failed on every route: {error}; check "
            "the data for values of very different size"
        ) from error
    values = torch.stack([torch.from_numpy(v) for v, _ in pairs])
    vectors = torch.stack([torch.from_numpy(v) for _, v in pairs])
    values, vectors = values.view(a.shape[:-1]).to(a.device), vectors.view(a.shape).to(a.device)
    reason = _defect(a, values, vectors)
    if reason:
        raise SolverError(
            f"the eigendecomposition of size {a.shape[-1]} failed on every route: {reason}; check "
            "the data for values of very different size"
        )
    return values, vectors


def _defect(a: Tensor, values: Tensor, vectors: Tensor) -> str:
    """What is wrong with eigendecompositions of matrices of unit size, or ""."""
    if a.shape[-1] == 0:
        return ""
    return describe_defect(float(defects(a, values, vectors).amax()), a.shape[-1])


def defects(a: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """The error of each eigendecomposition of matrices (..., n, n) of unit size, (...).

    A vector r shows it in O(n^2): V diag(values) V^T r against A r, and V V^T r against r.
    """
    n = a.shape[-1]
    r = torch.arange(n, dtype=torch.float64, device=a.device).mul(2.3).cos().to(a.dtype)[:, None]
    seen = vectors.mT.conj_physical() @ r
    product = vectors @ (values[..., None] * seen) - a @ r
    identity = vectors @ seen - r
    return torch.maximum(product.abs(), identity.abs()).amax(dim=(-2, -1))


def describe_defect(error: float, n: int) -> str:
    """What an error of :func:`defects` says of a matrix of size n, "" if it is rounding."""
    if not math.isfinite(error):
        return "the result is not finite"
    return "" if error <= _EIGH_BOUND * n else f"the result is off by {error:.1e}"


def divide(c: Tensor, values_a: Tensor, values_b: Tensor, thresholds: Thresholds) -> Quotient:
    """Quotient c_ij / (a_i + b_j), 0 where a_i and b_j are both at most their thresholds.

    Args:
        c: float64 (batch, k, d).
        values_a: float64 (batch, k).
        values_b: float64 (batch, d).
        thresholds: up to where eigenvalues may be rounding.
    """
    total = values_a.clamp(min=0)[..., :, None] + values_b.clamp(min=0)[..., None, :]
    significant_a = values_a > thresholds.a[:, None]
    significant_b = values_b > thresholds.b[:, None]
    keep = significant_a[..., :, None] | significant_b[..., None, :]
    y = torch.where(keep, c / torch.where(keep, total, 1.0), 0.0)
    least = torch.where(keep, total, torch.inf).amin(dim=(-2, -1))
    return Quotient(y, keep, least, int((~keep).sum()))


@dataclass(frozen=True)
class ZeroRule:
    """What the zero rule changes in the defect D = A W + W B - Q.

    Pairs of which both eigenvalues are rounding are given up. Eigenvalues below zero that are
    rounding are zero in the equation that is solved: where the moments are those of float32 and
    there are fewer rows than features, they alone would be a residual of 1e-12.

    Attributes:
        u, v: eigenvectors of A (batch, k, k) and of B (batch, d, d).
        keep: pairs that are solved for, bool (batch, k, d).
        negative: share of those negative eigenvalues in U^T D V, (batch, k, d).
    """

    u: Tensor
    v: Tensor
    keep: Tensor
    negative: Tensor


def relative_residual(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    w: Tensor,
    zero_rule: ZeroRule | None = None,
) -> float:
    """Largest |AW + WB - Q| / ((|A| + |B|)|W| + |Q|) of a batch, in Frobenius norms.

    Args:
        a, b, q, w: float64 (batch, k, k), (batch, d, d), (batch, k, d) and (batch, k, d).
        zero_rule: what W is not asked to fulfil.
    """

    def norm(x: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(x)

    size = (norm(a) + norm(b)) * norm(w) + norm(q)
    defect = a @ w + w @ b - q
    if zero_rule is not None:
        inside = zero_rule.u.mT @ defect @ zero_rule.v - zero_rule.negative
        defect = torch.where(zero_rule.keep, inside, 0.0)
    return float((norm(defect) / size.clamp(min=torch.finfo(size.dtype).tiny)).max())


def _rounded_below_zero(values: Tensor, threshold: Tensor) -> Tensor:
    """Eigenvalues (batch, n) from -threshold to 0, and 0 for the others."""
    return torch.where(values >= -threshold[:, None], values.clamp(max=0), 0.0)


def solve_positive(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    thresholds: Thresholds,
    routines: Routines,
    notes: list[str] | None = None,
) -> Solution:
    """Minimum-norm solution of A W + W B = Q for positive semi-definite A and B.

    Pairs with a_i and b_j both below their thresholds are set to zero. Eigenvalues below zero that
    are rounding are taken as zero; the residual is that of the equation with these zeros, and a
    note says so where that of A and B as they are is above 1e-12.

    Args:
        a: float64 (batch, k, k), symmetric positive semi-definite.
        b: float64 (batch, d, d), likewise.
        q: float64 (batch, k, d).
        thresholds: up to where eigenvalues may be rounding.
        routines: of the backend.
        notes: of eigendecompositions.

    Raises:
        SolverError: an eigendecomposition failed.
    """
    (values_a, u), (values_b, v) = routines.eigh_pair(a, b, notes)
    quotient = routines.divide(u.mT @ q @ v, values_a, values_b, thresholds)
    w = u @ quotient.y @ v.mT
    largest = values_a.amax(dim=-1).clamp(min=0) + values_b.amax(dim=-1).clamp(min=0)
    separation = float((quotient.least / largest).min()) if quotient.dropped < q.numel() else 0.0
    negative = (
        _rounded_below_zero(values_a, thresholds.a)[..., :, None]
        + _rounded_below_zero(values_b, thresholds.b)[..., None, :]
    )
    zero_rule = ZeroRule(u, v, quotient.keep, negative * quotient.y)
    residual = relative_residual(a, b, q, w, zero_rule)
    if notes is not None and bool(negative.any()):
        as_they_are = dataclasses.replace(zero_rule, negative=torch.zeros_like(negative))
        if relative_residual(a, b, q, w, as_they_are) > _NOTICED:
            notes.append("eigenvalues below zero, which are rounding, were taken as zero")
    return Solution(w, residual, separation, quotient.dropped)


def solve_rank_one(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    thresholds: Thresholds,
    factors: RankOne,
    eigh: Eigh,
    notes: list[str] | None = None,
) -> Solution | None:
    """The same for B = V diag(s) V^T + m m^T with V and s known, without decomposing B.

    In the eigenvectors u_i of A, row i solves (a_i I + V diag(s) V^T + m m^T) w = q, a diagonal
    matrix plus one of rank one (Sherman and Morrison 1950), followed by up to two steps of
    iterative refinement.

    Args:
        a, b, q, thresholds, notes: as for :func:`solve_positive`.
        factors: of B.
        eigh: the eigendecomposition to use.

    Returns:
        The solution, or None where some a_i is so small that the zero rule may apply.
    """
    values, u = eigh(a, notes)
    if bool((values <= thresholds.a[:, None]).any()):
        return None
    s, v = factors.values.clamp(min=0), factors.vectors
    m = (v.mT @ factors.vector[..., None])[..., 0]
    diagonal = values[..., :, None] + s[..., None, :]
    m_row = m[..., None, :]
    scaled = m_row / diagonal
    pivot = 1 + (scaled * m_row).sum(dim=-1, keepdim=True)

    def apply(right: Tensor) -> Tensor:
        y = (u.mT @ right @ v) / diagonal
        y = y - scaled * ((m_row * y).sum(dim=-1, keepdim=True) / pivot)
        return u @ y @ v.mT

    w = apply(q)
    residual = relative_residual(a, b, q, w)
    for _ in range(2):
        if residual <= _REFINED:
            break
        w = w + apply(q - a @ w - w @ b)
        residual = relative_residual(a, b, q, w)
    largest = values.amax(dim=-1) + s.amax(dim=-1) + (m**2).sum(dim=-1)
    separation = float((diagonal.amin(dim=(-2, -1)) / largest).min())
    return Solution(w, residual, separation, 0)
