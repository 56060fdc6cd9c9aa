"""A W + W B = Q for symmetric positive semi-definite A and B, by eigendecomposition.

With A = U diag(a) U^T and B = V diag(b) V^T the solution is W = U [(U^T Q V)_ij / (a_i + b_j)] V^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import scipy.linalg
import torch
from torch import Tensor

from sylvinit.errors import SolverError

# Relative error up to which an eigendecomposition is believed: it multiplies a vector as the matrix
# does. LAPACK's was below 1e-16 for low-rank Gram matrices of size 100 to 4608.
_EIGH_BOUND = 1e-10
# Relative residual at which iterative refinement has nothing left to gain.
_REFINED = 1e-15


class Eigh(Protocol):
    """An eigendecomposition of symmetric matrices; notes say if it was not the first choice."""

    def __call__(self, a: Tensor, notes: list[str] | None = None) -> tuple[Tensor, Tensor]:
        """Eigenvalues (..., n), ascending, and eigenvectors (..., n, n) of a (..., n, n)."""
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
        values, vectors = _eigh_scipy(scaled)
        worse = _defect(scaled, values, vectors)
        if worse:
            raise SolverError(
                f"the eigendecomposition of size {a.shape[-1]} failed on every route: {worse}; "
                "check the data for values of very different size"
            )
        if notes is not None:
            notes.append(f"torch.linalg.eigh failed ({reason}); SciPy's QR iteration was used")
    return values * scale[..., 0], vectors


def _eigh_scipy(a: Tensor) -> tuple[Tensor, Tensor]:
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
    return values.view(a.shape[:-1]).to(a.device), vectors.view(a.shape).to(a.device)


def _defect(a: Tensor, values: Tensor, vectors: Tensor) -> str:
    """What is wrong with an eigendecomposition of a matrix of unit size, or "".

    A vector r shows it in O(n^2): V diag(values) V^T r against A r, and V V^T r against r.
    """
    n = a.shape[-1]
    if n == 0:
        return ""
    r = torch.arange(n, dtype=torch.float64, device=a.device).mul(2.3).cos().to(a.dtype)[:, None]
    seen = vectors.mT.conj_physical() @ r
    product = vectors @ (values[..., None] * seen) - a @ r
    identity = vectors @ seen - r
    error = torch.stack((product.abs().amax(), identity.abs().amax())).amax()
    if not bool(error.isfinite()):
        return "the result is not finite"
    return "" if float(error) <= _EIGH_BOUND * n else f"the result is off by {float(error):.1e}"


def relative_residual(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    w: Tensor,
    kept: tuple[Tensor, Tensor, Tensor] | None = None,
) -> float:
    """Largest |AW + WB - Q| / ((|A| + |B|)|W| + |Q|) of a batch, in Frobenius norms.

    Args:
        a, b, q, w: float64 (batch, k, k), (batch, d, d), (batch, k, d) and (batch, k, d).
        kept: eigenvectors U of A and V of B, and a mask (batch, k, d): the defect U^T (.) V is
            counted only where the mask is true, since the zero rule gives up the other pairs.
    """

    def norm(x: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(x)

    size = (norm(a) + norm(b)) * norm(w) + norm(q)
    defect = a @ w + w @ b - q
    if kept is not None:
        u, v, mask = kept
        defect = torch.where(mask, u.mT @ defect @ v, 0.0)
    return float((norm(defect) / size.clamp(min=torch.finfo(size.dtype).tiny)).max())


def solve_positive(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    thresholds: Thresholds,
    eigh: Eigh = eigh,
    notes: list[str] | None = None,
) -> Solution:
    """Minimum-norm solution of A W + W B = Q for positive semi-definite A and B.

    Pairs with a_i and b_j both below their thresholds are set to zero.

    Args:
        a: float64 (batch, k, k), symmetric positive semi-definite.
        b: float64 (batch, d, d), likewise.
        q: float64 (batch, k, d).
        thresholds: up to where eigenvalues may be rounding.
        eigh: the eigendecomposition to use.
        notes: of eigendecompositions.

    Raises:
        SolverError: an eigendecomposition failed.
    """
    values_a, u = eigh(a, notes)
    values_b, v = eigh(b, notes)
    total = values_a.clamp(min=0)[..., :, None] + values_b.clamp(min=0)[..., None, :]
    significant_a = values_a > thresholds.a[:, None]
    significant_b = values_b > thresholds.b[:, None]
    keep = significant_a[..., :, None] | significant_b[..., None, :]
    y = torch.where(keep, (u.mT @ q @ v) / torch.where(keep, total, 1.0), 0.0)
    w = u @ y @ v.mT
    largest = total.amax(dim=(-2, -1))
    least = torch.where(keep, total, torch.inf).amin(dim=(-2, -1)) / largest
    separation = float(least.min()) if bool(keep.any()) else 0.0
    residual = relative_residual(a, b, q, w, (u, v, keep))
    return Solution(w, residual, separation, int((~keep).sum()))


def solve_rank_one(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    thresholds: Thresholds,
    factors: RankOne,
    eigh: Eigh = eigh,
    notes: list[str] | None = None,
) -> Solution | None:
    """The same for B = V diag(s) V^T + m m^T with V and s known, without decomposing B.

    In the eigenvectors u_i of A, row i solves (a_i I + V diag(s) V^T + m m^T) w = q, a diagonal
    matrix plus one of rank one (Sherman and Morrison 1950), followed by up to two steps of
    iterative refinement.

    Args:
        a, b, q, thresholds, eigh, notes: as for :func:`solve_positive`.
        factors: of B.

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
