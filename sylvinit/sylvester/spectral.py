"""Hermitian equations on any device, with both matrices diagonalised.

A = U diag(a) U^H, B = V diag(b) V^H, X = U [(U^H Q V)_ij / (a_i + b_j)] V^H.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sylvinit.backends import choose
from sylvinit.sylvester.outcome import Outcome, Status

# As in csrc/solver/hermitian.h.
_REFINE_ABOVE = 1e-15
_NEGATIVE = 10.0


def decompose(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (..., n, n) and eigenvalues (..., n), ascending, of float64 or complex128.

    Raises:
        SolverError: no eigenvalue iteration converged.
    """
    if a.numel() == 0:
        return a.clone(), a.new_zeros(a.shape[:-1], dtype=torch.float64)
    values, vectors = choose("auto", a.device).eigh(a)
    return vectors.contiguous(), values.contiguous()


def decompose_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`decompose` of a, then of b; at the same time where the device's backend can.

    Raises:
        SolverError: no eigenvalue iteration converged.
    """
    if a.numel() == 0 or b.numel() == 0:
        return (*decompose(a), *decompose(b))
    (values_a, u), (values_b, v) = choose("auto", a.device).eigh_pair(a, b)
    return u.contiguous(), values_a.contiguous(), v.contiguous(), values_b.contiguous()


def solve(
    matrices: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    q: Tensor,
    *,
    eps: float,
    positive: bool,
    examine: bool,
) -> tuple[Tensor, Outcome]:
    """X from the decompositions; batch dimensions broadcast.

    Args:
        matrices: a (..., k, k) and b (..., d, d).
        factors: eigenvectors and eigenvalues of a, then of b.
        q: (..., k, d), not empty.
        eps: of the caller's dtype.
        positive: pairs with a_i + b_j <= max(k, d) eps (|a| + |b|) become 0; otherwise a
            modulus up to that bound is an error.
        examine: look for such pairs and for negative eigenvalues.
    """
    a, b = matrices
    u, values_a, v, values_b = factors
    sums = values_a[..., :, None] + values_b[..., None, :]
    radius_a = values_a.abs().amax(dim=-1)
    radius_b = values_b.abs().amax(dim=-1)
    size = radius_a + radius_b
    rounding = max(q.shape[-2:]) * eps
    threshold = (rounding * size)[..., None, None]
    keep = (sums if positive else sums.abs()) > threshold
    divisor = torch.where(keep, sums, 1.0) if positive else sums

    # Not .mH: inside operators torch may have lazy conjugation switched off.
    u_adjoint, v_adjoint = u.mT.conj_physical(), v.mT.conj_physical()

    def apply(right: Tensor) -> Tensor:
        y = (u_adjoint @ right @ v) / divisor
        return u @ (torch.where(keep, y, 0.0) if positive else y) @ v_adjoint

    dropped = int((~keep).sum()) if positive else 0
    separation = torch.where(keep, sums, torch.inf) if positive else sums.abs()
    batch = torch.broadcast_shapes(sums.shape[:-2], q.shape[:-2])
    outcome = _examine(values_a, values_b, separation, size, batch)
    if examine:
        if positive:
            low_a = values_a.amin(dim=-1) + _NEGATIVE * rounding * radius_a
            low_b = values_b.amin(dim=-1) + _NEGATIVE * rounding * radius_b
            if bool((low_a < 0).any() or (low_b < 0).any()):
                lowest = (values_a.amin(dim=-1), values_b.amin(dim=-1))
                return q, _negative((low_a, low_b), lowest, batch)
        elif not bool(keep.all()):
            return q, outcome
    x = apply(q)
    residual, defect = _defect(a, b, q, x)
    correction = apply(defect)
    if dropped:
        # Only the part of the defect that belongs to pairs that were kept counts.
        residual = _residual(a, b, q, x, a @ correction + correction @ b)
    if residual > _REFINE_ABOVE:
        refined = x + correction
        after, _ = _defect(a, b, q, refined)
        if dropped or after < residual:
            x, residual = refined, (residual if dropped else after)
    return x, Outcome(
        Status.OK,
        outcome.problem,
        residual,
        outcome.separation,
        outcome.a,
        outcome.b,
        dropped,
    )


def _defect(a: Tensor, b: Tensor, q: Tensor, x: Tensor) -> tuple[float, Tensor]:
    defect = q - a @ x - x @ b
    return _residual(a, b, q, x, defect), defect


def _residual(a: Tensor, b: Tensor, q: Tensor, x: Tensor, defect: Tensor) -> float:
    norm = frobenius_norm
    size = (norm(a) + norm(b)) * norm(x) + norm(q)
    return float((norm(defect) / torch.where(size > 0, size, 1.0)).max())


def _examine(
    values_a: Tensor, values_b: Tensor, separation: Tensor, size: Tensor, batch: torch.Size
) -> Outcome:
    """The pair with the smallest relative separation, as a singular one."""
    relative = separation / torch.where(size > 0, size, 1.0)[..., None, None]
    k, d = separation.shape[-2:]
    relative = relative.expand(*batch, k, d)
    at = int(relative.flatten().argmin())
    problem, i, j = at // (k * d), at // d % k, at % d
    a = values_a.expand(*batch, k).reshape(-1, k)[problem, i]
    b = values_b.expand(*batch, d).reshape(-1, d)[problem, j]
    least = float(relative.flatten()[at])
    return Outcome(Status.SINGULAR, problem, 0.0, least, complex(a), complex(b), 0)


def _negative(
    low: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], batch: torch.Size
) -> Outcome:
    """The least eigenvalue after rounding has been allowed for."""
    low_a, low_b, a, b = (x.expand(batch).flatten() for x in (*low, *values))
    problem = int(torch.minimum(low_a, low_b).argmin())
    of_a = bool(low_a[problem] <= low_b[problem])
    a, b = float(a[problem]) if of_a else 0.0, 0.0 if of_a else float(b[problem])
    return Outcome(Status.NEGATIVE, problem, 0.0, 0.0, a, b, 0)


def frobenius_norm(x: Tensor) -> Tensor:
    """Of matrices (..., m, n), without squares that over- or underflow."""
    if x.numel() == 0:
        return torch.linalg.matrix_norm(x)
    scale = x.detach().abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
    return torch.linalg.matrix_norm(x / scale) * scale[..., 0, 0]
