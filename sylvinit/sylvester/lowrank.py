"""solve_sylvester_lowrank: B = lam X X^H given by its factor X with few columns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sylvinit.errors import MatrixError, OptionError, OptionTypeError, SolverError
from sylvinit.sylvester import compute, matrices, spectral
from sylvinit.sylvester.alignment import align
from sylvinit.sylvester.outcome import Outcome, Status, judge
from sylvinit.sylvester.precision import full_precision
from sylvinit.sylvester.tangents import call, refuse


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
    batch = matrices.broadcast(a=tuple(a.shape[:-2]), x=tuple(x.shape[:-2]))
    matrices.check_right_side(q, a.shape[-1], x.shape[-2], batch)
    factors = lowrank_factor(a.detach(), x.detach(), weight.detach())
    return _solve(a, x, q, weight, *factors, True)


@torch.compiler.allow_in_graph  # see operators.py
def _solve(*inputs: Any) -> Tensor:
    return _LowrankSolve.apply(*inputs)


@torch.library.custom_op("sylvinit::sylvester_lowrank_factor", mutates_args=())
def lowrank_factor(a: Tensor, x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, a, P V and b of the formula above."""
    return _factor(a, x, lam)


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
    """W from the factors; lam has a batch shape."""
    refuse()
    return _apply(a, x, q, lam, (u, values_a, basis, values_b), checked).contiguous()


@lowrank_solve.register_fake
def _(a: Tensor, x: Tensor, q: Tensor, lam: Tensor, *rest: Any) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], x.shape[:-2], q.shape[:-2], lam.shape)
    return q.new_empty((*batch, *q.shape[-2:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, x, q, lam, *factors, _ = inputs
    ctx.save_for_backward(a, x, output, lam, *factors)
    ctx.q_shape = q.shape


def _gradients(ctx: Any, gradient: Tensor, solve: Any) -> tuple[Tensor | None, ...]:
    # B = lam X X^H: with Y the solution for the gradient, grad B = -W^H Y enters through
    # grad X = lam (grad B + grad B^H) X and grad lam = <grad B, X X^H>.
    a, x, w, lam, *factors = ctx.saved_tensors
    y = solve(a, x, gradient, lam, *factors, False)
    yx, wx = y @ x, w @ x
    weight = lam[..., None, None]
    needs = ctx.needs_input_grad
    return (
        -(y @ w.mH).sum_to_size(a.shape) if needs[0] else None,
        -(weight * (w.mH @ yx + y.mH @ wx)).sum_to_size(x.shape) if needs[1] else None,
        y.sum_to_size(ctx.q_shape) if needs[2] else None,
        -(yx.conj() * wx).real.sum((-2, -1)).sum_to_size(lam.shape) if needs[3] else None,
        *(None,) * 5,
    )


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, gradient, lowrank_solve)


class _LowrankSolve(torch.autograd.Function):
    """The equation is self-adjoint: derivatives are solves with the same factors."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return call(lowrank_solve, inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _setup(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1], output, *inputs[3:8])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        with full_precision(gradients[0]):
            return _gradients(ctx, gradients[0], _LowrankSolve.apply)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        a, x, w, lam, *factors = ctx.saved_tensors
        with full_precision(w):
            da, dx, dq, dlam = tangents[:4]
            weight = lam[..., None, None]
            right = torch.zeros_like(w) if dq is None else dq.expand_as(w)
            if da is not None:
                right = right - da @ w
            if dx is not None:
                right = right - weight * ((w @ dx) @ x.mH + (w @ x) @ dx.mH)
            if dlam is not None:
                right = right - dlam[..., None, None] * ((w @ x) @ x.mH)
            return _LowrankSolve.apply(a, x, right, lam, *factors, False)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _LowrankSolve.apply(*align(in_dims, _DIMENSIONS, inputs)), 0


# Of one entry of each tensor argument of lowrank_solve.
_DIMENSIONS = (2, 2, 2, 0, 2, 1, 2, 1)


def _vmap_solve(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    return lowrank_solve(*align(in_dims, _DIMENSIONS, inputs)), 0


def _vmap_factor(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    own = tuple(None if dim is None else 0 for dim in in_dims)
    from_b = 0 if 0 in own[1:] else None
    return lowrank_factor(*align(in_dims, (2, 2, 0), inputs)), (own[0], own[0], own[1], from_b)


torch.library.register_autograd(
    "sylvinit::sylvester_lowrank_solve", _backward, setup_context=_setup
)
torch.library.register_vmap("sylvinit::sylvester_lowrank_solve", _vmap_solve)
torch.library.register_vmap("sylvinit::sylvester_lowrank_factor", _vmap_factor)


def _factor(a: Tensor, x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, a, P V and b."""
    if not bool(((lam >= 0) & lam.isfinite()).all()):
        raise OptionError(f"lam must be at least 0 and finite, got {lam.tolist()}")
    eps = torch.finfo(a.dtype).eps
    wide_a, wide_x = compute.widen(a), compute.widen(x)
    size, gap = compute.inspect("a", wide_a)
    compute.inspect("x", wide_x)
    matrices.check_hermitian("a", "pos", a.shape[-1], size, gap, eps)
    u, values_a = spectral.decompose((wide_a + compute.adjoint_of(wide_a)) / 2)
    p, r = torch.linalg.qr(wide_x)
    gram = r @ compute.adjoint_of(r)
    v, values_b = spectral.decompose((gram + compute.adjoint_of(gram)) / 2)
    values_b = values_b * lam.to(torch.float64)[..., None]
    return u, values_a, (p @ v).contiguous(), values_b.contiguous()


def _apply(
    a: Tensor,
    x: Tensor,
    q: Tensor,
    lam: Tensor,
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    checked: bool,
) -> Tensor:
    u, values_a, basis, values_b = factors
    eps = torch.finfo(q.dtype).eps
    a, x, right = compute.widen(a), compute.widen(x), compute.widen(q)
    lam = lam.detach().to(torch.float64)
    if checked:
        compute.inspect("q", right)
    k, d = q.shape[-2:]
    batch = torch.broadcast_shapes(a.shape[:-2], x.shape[:-2], q.shape[:-2], lam.shape)
    if math.prod(batch) * k * d == 0:
        return q.new_zeros((*batch, k, d))
    radius_a = values_a.abs().amax(dim=-1)
    radius_b = values_b.amax(dim=-1) if values_b.shape[-1] else torch.zeros_like(radius_a)
    size = radius_a + radius_b
    rounding = max(k, d) * eps
    threshold = (rounding * size)[..., None, None]
    full = basis.shape[-1] == d  # no directions are left across the range of X
    inside = values_a[..., :, None] + values_b[..., None, :]
    outside = values_a[..., :, None]
    keep_inside, keep_outside = inside > threshold, outside > threshold
    if checked and bool((values_a.amin(dim=-1) < -10 * rounding * radius_a).any()):
        low = float(values_a.min())
        raise MatrixError(f"a must be positive semi-definite, but has the eigenvalue {low:.6g}")

    u_adjoint, basis_adjoint = compute.adjoint_of(u), compute.adjoint_of(basis)

    def solve(right: Tensor) -> Tensor:
        f = u_adjoint @ right
        along = f @ basis
        inner = torch.where(keep_inside, along / torch.where(keep_inside, inside, 1.0), 0.0)
        y = inner @ basis_adjoint
        if not full:
            across = f - along @ basis_adjoint
            # Once more: what is left along the basis would be divided by a_i alone.
            across = across - (across @ basis) @ basis_adjoint
            y = y + torch.where(keep_outside, across / torch.where(keep_outside, outside, 1.0), 0.0)
        return u @ y

    w = solve(right)
    if not checked:
        return w.to(q.dtype)
    w = w + solve(right - a @ w - lam[..., None, None] * ((w @ x) @ compute.adjoint_of(x)))
    sums = [torch.where(keep_inside, inside, torch.inf).flatten(-2).expand(*batch, -1)]
    if not full:
        sums.append(torch.where(keep_outside, outside, torch.inf).flatten(-2).expand(*batch, -1))
    least = (torch.cat(sums, dim=-1).amin(dim=-1) / torch.where(size > 0, size, 1.0)).flatten()
    at = int(least.argmin())
    judge(
        Outcome(Status.OK, at, 0.0, float(least[at]), 0.0, 0.0, 0),
        tuple(batch),
        eps,
        True,
    )
    narrow = w.to(q.dtype)
    if checked and not bool(narrow.isfinite().all()):
        raise SolverError(f"the solution has entries too large for {q.dtype}; scale a, x and q")
    return narrow


def _weight(lam: float | Tensor, a: Tensor) -> Tensor:
    if isinstance(lam, Tensor):
        if lam.ndim or lam.dtype.is_complex or not lam.dtype.is_floating_point:
            raise OptionTypeError(
                "lam must be a real number or a real tensor without dimensions, got shape "
                f"{tuple(lam.shape)} and dtype {lam.dtype}"
            )
        return lam.to(a.device, matrices.REAL[a.dtype])
    if isinstance(lam, bool) or not isinstance(lam, (int, float)):
        raise OptionTypeError(f"lam must be a real number, got {type(lam).__name__}")
    return torch.tensor(float(lam), dtype=matrices.REAL[a.dtype], device=a.device)
