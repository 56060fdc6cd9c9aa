"""solve_sylvester_lowrank: B = lam X X^H given by its factor X with few columns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sylvinit.errors import MatrixError, OptionError, OptionTypeError
from sylvinit.sylvester import compute, matrices, spectral
from sylvinit.sylvester.autograd import Solve, broadcastable, differentiable, refuse_tangents
from sylvinit.sylvester.matrices import adjoint_of, widen
from sylvinit.sylvester.outcome import Mode, Status, judge
from sylvinit.sylvester.rounding import frobenius_norm


def solve_sylvester_lowrank(a: Tensor, x: Tensor, q: Tensor, lam: float | Tensor = 1.0) -> Tensor:
    """Solve A W + lam W X X^H = Q for positive semi-definite A without forming X X^H (d x d).

    With an orthonormal basis P (d x r, r = min(n, d)) of the range of X and
    lam P^H X X^H P = V diag(b) V^H, A = U diag(a) U^H and F = U^H Q,

        W = U [ (F P V)_ij / (a_i + b_j) (P V)^H + (F - F P P^H)_i / a_i ],

    at a cost of O(d n^2 + n^3 + k^3 + k d n) and O(d (k + n)) memory. This is the dual route for
    fewer samples n than dimensions d ("Data-driven Weight Initialization with Sylvester Solvers",
    eq. 2, B = lam X X^T). Pairs with a_i + b_j <= max(k, d) eps (a_max + b_max) are dropped, as
    :func:`solve_sylvester` does with ``assume_a="pos"``.

    Args:
        a: (..., k, k), Hermitian positive semi-definite, float32, float64, complex64, complex128.
        x: (..., d, n), same dtype and device; meant for n < d, right for any n.
        q: (..., k, d).
        lam: weight, at least 0; a real number, or a real tensor without dimensions (rounded to
            the precision of a).

    Returns:
        W (..., k, d) with derivatives of any order for a, x, q and lam, as solve_sylvester's.

    Raises:
        OptionTypeError: not tensors, an integer dtype, or different dtypes.
        OptionError: lam is negative or not finite.
        MatrixError: shapes do not fit, NaN or Inf, different devices, or a is not Hermitian
            positive semi-definite.
        SolverError: an iteration did not converge.

    Warns:
        AccuracyWarning: the smallest a_i + b_j kept is below sqrt(eps) of |A| + |B|.
    """
    a, x = matrices.check_square("a", a), matrices.check_matrix("x", x)
    q = matrices.check_matrix("q", q)
    matrices.check_alike(a=a, x=x, q=q)
    weight = _weight(lam, a)
    batch = matrices.broadcast(a=a.shape[:-2], x=x.shape[:-2])
    matrices.check_right_side(q, a.shape[-1], x.shape[-2], batch)
    factors = lowrank_factor(a.detach(), x.detach(), weight.detach())
    return _solve(a, x, q, weight, *factors, True)


@torch.library.custom_op("sylvinit::sylvester_lowrank_factor", mutates_args=())
def lowrank_factor(a: Tensor, x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, a, P V and b of the formula above."""
    if not bool(((lam >= 0) & lam.isfinite()).all()):
        raise OptionError(f"lam must be at least 0 and finite, got {lam.tolist()}")
    wide_a, wide_x = widen(a), widen(x)
    size, gap = compute.inspect("a", wide_a)
    compute.inspect("x", wide_x)
    matrices.check_hermitian("a", "pos", a.shape[-1], size, gap, torch.finfo(a.dtype).eps)
    u, values_a = spectral.decompose((wide_a + adjoint_of(wide_a)) / 2)
    p, r = torch.linalg.qr(wide_x)
    gram = r @ adjoint_of(r)
    v, values_b = spectral.decompose((gram + adjoint_of(gram)) / 2)
    values_b = values_b * lam.to(torch.float64)[..., None]
    return u, values_a, (p @ v).contiguous(), values_b.contiguous()


@lowrank_factor.register_fake
def _(a: Tensor, x: Tensor, lam: Tensor) -> tuple[Tensor, ...]:
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    r = min(x.shape[-2], x.shape[-1])
    batch = torch.broadcast_shapes(x.shape[:-2], lam.shape)
    return (
        a.new_empty(a.shape, dtype=wide),
        a.new_empty(a.shape[:-1], dtype=torch.float64),
        x.new_empty((*x.shape[:-1], r), dtype=wide),
        x.new_empty((*batch, r), dtype=torch.float64),
    )


@lowrank_factor.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    pairs = zip(inputs, in_dims, strict=True)
    moved = [x if dim is None else x.movedim(dim, 0) for x, dim in pairs]
    a, x, lam = (None if dim is None else 0 for dim in in_dims)
    of_b = 0 if 0 in (x, lam) else None
    return lowrank_factor(*broadcastable(moved, in_dims, (2, 2, 0))), (a, a, x, of_b)


@torch.library.custom_op("sylvinit::sylvester_lowrank_solve", mutates_args=())
def lowrank_solve(
    a: Tensor,
    x: Tensor,
    q: Tensor,
    lam: Tensor,
    u: Tensor,
    values_a: Tensor,
    basis: Tensor,
    values_b: Tensor,
    checked: bool,
) -> Tensor:
    """W by the division of :mod:`spectral`, in the coordinates [F P V, F - F P P^H].

    lam has a batch shape.
    """
    refuse_tangents()
    eps = torch.finfo(q.dtype).eps
    a, x, right = widen(a), widen(x), widen(q)
    weight = lam.detach().to(torch.float64)[..., None, None]
    if checked:
        compute.inspect("q", right)
    k, d = q.shape[-2:]
    batch = torch.broadcast_shapes(a.shape[:-2], x.shape[:-2], q.shape[:-2], lam.shape)
    if math.prod(batch) * k * d == 0:
        return q.new_zeros((*batch, k, d))
    r = basis.shape[-1]
    full = r == d  # nothing is left across the range of X
    u_adjoint, basis_adjoint, x_adjoint = adjoint_of(u), adjoint_of(basis), adjoint_of(x)

    def enter(right: Tensor) -> Tensor:
        f = u_adjoint @ right
        along = f @ basis
        if full:
            return along
        across = f - along @ basis_adjoint
        # Once more: what is left along the basis would be divided by a_i alone.
        return torch.cat((along, across - (across @ basis) @ basis_adjoint), dim=-1)

    def leave(y: Tensor) -> Tensor:
        return u @ (y[..., :r] @ basis_adjoint + (0.0 if full else y[..., r:]))

    w, outcome = spectral.solve_divided(
        values_a,
        values_b if full else torch.nn.functional.pad(values_b, (0, d)),
        right,
        Mode(eps, positive=True, checked=checked),
        enter=enter,
        leave=leave,
        defect=lambda w: right - a @ w - weight * ((w @ x) @ x_adjoint),
        norms=frobenius_norm(a) + torch.linalg.vector_norm(values_b, dim=-1),
        refine_above=0.0 if checked else math.inf,
    )
    if outcome.status == Status.NEGATIVE:
        raise MatrixError(
            f"a must be positive semi-definite, but has the eigenvalue {outcome.a.real:.6g}; use "
            "solve_sylvester with b = lam X X^H"
        )
    judge(outcome, tuple(batch), eps, checked)
    return compute.narrow(w, q.dtype, checked, "a, x and q").contiguous()


@lowrank_solve.register_fake
def _(a: Tensor, x: Tensor, q: Tensor, lam: Tensor, *rest: Any) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], x.shape[:-2], q.shape[:-2], lam.shape)
    return q.new_empty((*batch, *q.shape[-2:]))


def _gradients(
    solve: Solve, saved: Any, options: Any, gradient: Tensor, needed: Any
) -> tuple[Tensor | None, ...]:
    # B = lam X X^H: with Y the solution for the gradient, grad B = -W^H Y enters through
    # grad X = lam (grad B + grad B^H) X and grad lam = <grad B, X X^H>.
    a, x, w, lam, *factors = saved
    y = solve(a, x, gradient, lam, *factors, False)
    yx, wx = y @ x, w @ x
    return (
        -(y @ w.mH) if needed[0] else None,
        -(lam[..., None, None] * (w.mH @ yx + y.mH @ wx)) if needed[1] else None,
        y if needed[2] else None,
        -(yx.conj() * wx).real.sum((-2, -1)) if needed[3] else None,
    )


def _tangent(solve: Solve, saved: Any, options: Any, tangents: Any) -> Tensor:
    a, x, w, lam, *factors = saved
    da, dx, dq, dlam = tangents[:4]
    right = torch.zeros_like(w) if dq is None else dq.expand_as(w)
    if da is not None:
        right = right - da @ w
    if dx is not None:
        right = right - lam[..., None, None] * ((w @ dx) @ x.mH + (w @ x) @ dx.mH)
    if dlam is not None:
        right = right - dlam[..., None, None] * ((w @ x) @ x.mH)
    return solve(a, x, right, lam, *factors, False)


_solve = differentiable(
    lowrank_solve,
    dimensions=lambda tensors, options: (2, 2, 2, 0, 2, 1, 2, 1),
    gradients=_gradients,
    tangent=_tangent,
)


def _weight(lam: float | Tensor, a: Tensor) -> Tensor:
    if isinstance(lam, Tensor):
        if lam.ndim or lam.dtype.is_complex or not lam.dtype.is_floating_point:
            raise OptionTypeError(
                "lam must be a real number or a real tensor without dimensions, got shape "
                f"{tuple(lam.shape)} and dtype {lam.dtype}"
            )
        return lam.to(a.device, matrices.REAL[a.dtype])
    return matrices.number_like(a, "lam", lam)
