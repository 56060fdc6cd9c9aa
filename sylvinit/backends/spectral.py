"""A W + W B = Q for symmetric positive semi-definite A and B, by eigendecomposition.

With A = U diag(a) U^T and B = V diag(b) V^T the solution is W = U [(U^T Q V)_ij / (a_i + b_j)] V^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from sylvinit.errors import SolverError

Eigh = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Solution:
    """W and how far it can be trusted.

    Attributes:
        w: float64 (batch, k, d).
        residual: largest relative residual of the batch, see :func:`relative_residual`.
        separation: smallest a_i + b_j that was divided by, relative to a_max + b_max.
        dropped: pairs (i, j) set to zero because a_i + b_j was below the threshold.
    """

    w: Tensor
    residual: float
    separation: float
    dropped: int


def _float64_device(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigendecomposition of symmetric float64 matrices, with its result checked.

    Matrices are scaled to unit size first: graded low-rank Gram matrices are where the libraries'
    routines are known to fail.

    Raises:
        SolverError: the routine failed, or returned values that are not finite.
    """
    scale = a.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
    try:
        values, vectors = torch.linalg.eigh((a / scale).to(_float64_device(a)))
    except torch.linalg.LinAlgError as error:
        raise SolverError(
            f"the eigendecomposition of size {a.shape[-1]} failed: {error}"
        ) from error
    if not (values.isfinite().all() and vectors.isfinite().all()):
        raise SolverError(f"the eigendecomposition of size {a.shape[-1]} is not finite")
    return values.to(a.device) * scale[..., 0], vectors.to(a.device)


def eigh_with_fallback(a: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`eigh`, then SciPy's QR-iteration driver, which is slower and fails less."""
    try:
        return eigh(a)
    except SolverError:
        pass
    try:
        pairs = [scipy.linalg.eigh(m.numpy(), driver="ev") for m in a.flatten(0, -3)]
    except (ValueError, scipy.linalg.LinAlgError) as error:
        raise SolverError(
            f"the eigendecomposition of size {a.shape[-1]} failed on every route: {error}"
        ) from error
    values = torch.stack([torch.from_numpy(v) for v, _ in pairs])
    vectors = torch.stack([torch.from_numpy(v) for _, v in pairs])
    return values.view(a.shape[:-1]), vectors.view(a.shape)


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


def solve_positive(a: Tensor, b: Tensor, q: Tensor, eps: float, eigh: Eigh = eigh) -> Solution:
    """Minimum-norm solution of A W + W B = Q for positive semi-definite A and B.

    Pairs with a_i + b_j <= max(k, d) * eps * (a_max + b_max) are set to zero.

    Args:
        a: float64 (batch, k, k), symmetric positive semi-definite.
        b: float64 (batch, d, d), likewise.
        q: float64 (batch, k, d).
        eps: unit round-off of the data that A, B and Q were computed from.
        eigh: the eigendecomposition to use.

    Raises:
        SolverError: an eigendecomposition failed.
    """
    values_a, u = eigh(a)
    values_b, v = eigh(b)
    total = values_a.clamp(min=0)[..., :, None] + values_b.clamp(min=0)[..., None, :]
    largest = total.amax(dim=(-2, -1), keepdim=True)
    keep = total > max(a.shape[-1], b.shape[-1]) * eps * largest
    y = torch.where(keep, (u.mT @ q @ v) / torch.where(keep, total, 1.0), 0.0)
    w = u @ y @ v.mT
    least = torch.where(keep, total, torch.inf).amin(dim=(-2, -1)) / largest[..., 0, 0]
    separation = float(least.min()) if bool(keep.any()) else 0.0
    residual = relative_residual(a, b, q, w, (u, v, keep))
    return Solution(w, residual, separation, int((~keep).sum()))


def solve_rank_one(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    eps: float,
    factors: tuple[Tensor, Tensor, Tensor],
    eigh: Eigh = eigh,
) -> Solution | None:
    """The same for B = V diag(s) V^T + m m^T with V and s known, without decomposing B.

    In the eigenvectors u_i of A, row i solves (a_i I + V diag(s) V^T + m m^T) w = q, a diagonal
    matrix plus one of rank one (Sherman and Morrison 1950), followed by two steps of iterative
    refinement.

    Args:
        a, b, q, eps, eigh: as for :func:`solve_positive`.
        factors: (s, V, m), float64 (batch, d), (batch, d, d) and (batch, d).

    Returns:
        The solution, or None where some a_i is so small that the zero rule may apply.
    """
    s, v, m = factors
    values, u = eigh(a)
    m = (v.mT @ m[..., None])[..., 0]
    s = s.clamp(min=0)
    bound = values.amax(dim=-1) + s.amax(dim=-1) + (m**2).sum(dim=-1)
    if bool((values.amin(dim=-1) <= max(a.shape[-1], b.shape[-1]) * eps * bound).any()):
        return None
    diagonal = values[..., :, None] + s[..., None, :]
    m_row = m[..., None, :]
    scaled = m_row / diagonal
    pivot = 1 + (scaled * m_row).sum(dim=-1, keepdim=True)

    def apply(right: Tensor) -> Tensor:
        y = (u.mT @ right @ v) / diagonal
        y = y - scaled * ((m_row * y).sum(dim=-1, keepdim=True) / pivot)
        return u @ y @ v.mT

    w = apply(q)
    for _ in range(2):
        w = w + apply(q - a @ w - w @ b)
    separation = float((diagonal.amin(dim=(-2, -1)) / bound).min())
    return Solution(w, relative_residual(a, b, q, w), separation, 0)
