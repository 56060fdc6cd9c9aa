"""Hermitian equations on any device, with both matrices diagonalized.

A = U diag(a) U^H, B = V diag(b) V^H, X = U [(U^H Q V)_ij / (a_i + b_j)] V^H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sylvinit.backends import choose
from sylvinit.backends.eigen import divide_kept
from sylvinit.sylvester.outcome import Mode, Outcome, Status, closest_pair
from sylvinit.sylvester.rounding import NEGATIVE, REFINED, frobenius_norm, refine, zero_threshold


def decompose(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (..., n, n) and eigenvalues (..., n), ascending, of float64 or complex128."""
    if a.numel() == 0:
        return a.clone(), a.new_zeros(a.shape[:-1], dtype=torch.float64)
    values, vectors = choose("auto", a.device).eigh(a)
    return vectors.contiguous(), values.contiguous()


def decompose_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`decompose` of a, then of b; at the same time where the device's backend can."""
    if a.numel() == 0 or b.numel() == 0:
        return (*decompose(a), *decompose(b))
    (values_a, u), (values_b, v) = choose("auto", a.device).eigh_pair(a, b)
    return u.contiguous(), values_a.contiguous(), v.contiguous(), values_b.contiguous()


def solve(
    matrices: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    q: Tensor,
    mode: Mode,
) -> tuple[Tensor, Outcome]:
    """X (..., k, d) from the eigenvectors and eigenvalues of a, then of b; batches broadcast."""
    a, b = matrices
    u, values_a, v, values_b = factors
    # Not .mH: inside operators torch may have lazy conjugation switched off.
    u_adjoint, v_adjoint = u.mT.conj_physical(), v.mT.conj_physical()
    return solve_divided(
        values_a,
        values_b,
        q,
        mode,
        enter=lambda right: u_adjoint @ right @ v,
        leave=lambda y: u @ y @ v_adjoint,
        defect=lambda x: q - a @ x - x @ b,
        norms=frobenius_norm(a) + frobenius_norm(b),
    )


def solve_divided(
    values_a: Tensor,
    values_b: Tensor,
    q: Tensor,
    mode: Mode,
    *,
    enter: Callable[[Tensor], Tensor],
    leave: Callable[[Tensor], Tensor],
    defect: Callable[[Tensor], Tensor],
    norms: Tensor,
    refine_above: float = REFINED,
) -> tuple[Tensor, Outcome]:
    """X of an equation that is a division by a_i (..., m) plus b_j (..., n) in other coordinates.

    ``enter`` maps (..., k, d) to these coordinates (..., m, n) and keeps the norm; ``leave`` maps
    back. q is not empty. ``defect``, ``norms`` and ``refine_above`` go to :func:`refine`.
    """
    sums = values_a[..., :, None] + values_b[..., None, :]
    radius_a, radius_b = values_a.abs().amax(dim=-1), values_b.abs().amax(dim=-1)
    size = radius_a + radius_b
    rounding = zero_threshold(q, mode.eps)
    clear = (sums if mode.positive else sums.abs()) > (rounding * size)[..., None, None]
    keep = clear if mode.positive else torch.ones_like(clear)
    batch = torch.broadcast_shapes(sums.shape[:-2], q.shape[:-2])
    distances = torch.where(keep, sums.abs(), torch.inf)
    outcome = closest_pair(values_a, values_b, distances, size, batch)
    outcome = outcome._replace(dropped=int((~keep).sum()))
    if mode.checked and mode.positive:
        low_a = values_a.amin(dim=-1) + NEGATIVE * rounding * radius_a
        low_b = values_b.amin(dim=-1) + NEGATIVE * rounding * radius_b
        if bool((low_a < 0).any() or (low_b < 0).any()):
            return q, _negative(values_a, values_b, low_a, low_b, batch)
    elif mode.checked and not bool(clear.all()):
        return q, outcome._replace(status=Status.SINGULAR)

    def solve(right: Tensor) -> Tensor:
        return leave(divide_kept(enter(right), sums, keep))

    def kept(left: Tensor) -> Tensor:
        return torch.where(keep, enter(left), 0.0) if outcome.dropped else left

    x, residual = refine(q, solve, defect, norms, above=refine_above, kept=kept)
    return x, outcome._replace(residual=residual)


def _negative(
    values_a: Tensor, values_b: Tensor, low_a: Tensor, low_b: Tensor, batch: torch.Size
) -> Outcome:
    """The least eigenvalue, where ``low`` is what is left of it after rounding."""
    low_a, low_b = low_a.expand(batch).flatten(), low_b.expand(batch).flatten()
    problem = int(torch.minimum(low_a, low_b).argmin())
    of_a = bool(low_a[problem] <= low_b[problem])
    values = values_a if of_a else values_b
    lowest = float(values.amin(dim=-1).expand(batch).flatten()[problem])
    return Outcome(Status.NEGATIVE, problem, a=lowest if of_a else 0.0, b=0.0 if of_a else lowest)
