"""The solver as operators that autograd, torch.func and torch.compile know.

``sylvinit::sylvester_factor`` decomposes, ``sylvinit::sylvester_solve`` solves with the factors.
Only the second one has derivatives; they are solves of the adjoint equation with the same factors,
never derivatives of an eigendecomposition, which fail where eigenvalues repeat. With X the solution
of A X + X B = Q and G the gradient of X:

    A^H Y + Y B^H = G,   grad Q = Y,   grad A = -Y X^H,   grad B = -X^H Y,
    tangent of X: the solution for dQ - dA X - X dB.

Everything in these formulas is a product or the operator itself, so they hold at any order. The
gradients of Hermitian matrices are not symmetrized. Pairs that the zero rule dropped stay dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sylvinit.sylvester import compute
from sylvinit.sylvester.autograd import Solve, differentiable, refuse_tangents
from sylvinit.sylvester.compute import Factors
from sylvinit.sylvester.direct import is_plain


@torch.library.custom_op("sylvinit::sylvester_factor", mutates_args=())
def sylvester_factor(
    a: Tensor, b: Tensor, structure: str, form: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factors of a (..., k, k) and b (..., d, d), see compute.factor."""
    return compute.factor(a, b, structure, form)


@sylvester_factor.register_fake
def _(a: Tensor, b: Tensor, structure: str, form: str) -> tuple[Tensor, ...]:
    shapes = compute.factor_shapes(a, b, form)
    return tuple(a.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


@sylvester_factor.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor, structure: str, form: str
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    a = a if in_dims[0] is None else a.movedim(in_dims[0], 0)
    b = b if in_dims[1] is None else b.movedim(in_dims[1], 0)
    dims = tuple(None if dim is None else 0 for dim in in_dims[:2])
    return sylvester_factor(a, b, structure, form), (dims[0], dims[0], dims[1], dims[1])


@torch.library.custom_op("sylvinit::sylvester_solve", mutates_args=())
def sylvester_solve(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    basis_a: Tensor,
    core_a: Tensor,
    basis_b: Tensor,
    core_b: Tensor,
    structure: str,
    form: str,
    adjoint: bool,
    checked: bool,
) -> Tensor:
    """X from the factors, see compute.solve."""
    refuse_tangents()
    factors = Factors(basis_a, core_a, basis_b, core_b)
    x = compute.solve(a, b, q, factors, structure, form, adjoint=adjoint, checked=checked)
    return x.clone() if x is q else x.contiguous()


@sylvester_solve.register_fake
def _(a: Tensor, b: Tensor, q: Tensor, *rest: Any) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2], q.shape[:-2])
    return q.new_empty((*batch, *q.shape[-2:]))


def _dimensions(tensors: Sequence[Tensor], options: Sequence[Any]) -> tuple[int, ...]:
    core_a, core_b = compute.core_dimensions(options[1], *(x.shape[-1] for x in tensors[:2]))
    return (2, 2, 2, 2, core_a, 2, core_b)


def _gradients(
    solve: Solve, saved: Any, options: Any, gradient: Tensor, needed: Any
) -> tuple[Tensor | None, ...]:
    a, b, x, *factors = saved
    structure, form, adjoint, _ = options
    y = solve(a, b, gradient, *factors, structure, form, not adjoint, False)
    left, right = (x, y) if adjoint else (y, x)
    return (
        -(left @ right.mH) if needed[0] else None,
        -(right.mH @ left) if needed[1] else None,
        y if needed[2] else None,
    )


def _tangent(solve: Solve, saved: Any, options: Any, tangents: Any) -> Tensor:
    a, b, x, *factors = saved
    structure, form, adjoint, _ = options
    da, db, dq = tangents[:3]
    right = torch.zeros_like(x) if dq is None else dq.expand_as(x)
    if da is not None:
        right = right - (da.mH if adjoint else da) @ x
    if db is not None:
        right = right - x @ (db.mH if adjoint else db)
    return solve(a, b, right, *factors, structure, form, adjoint, False)


_solve = differentiable(
    sylvester_solve,
    dimensions=_dimensions,
    gradients=_gradients,
    tangent=_tangent,
)


def solve(a: Tensor, b: Tensor, q: Tensor, structure: str) -> Tensor:
    """A X + X B = Q with everything PyTorch can ask of an operator."""
    if is_plain(a, b, q):
        return compute.solve_once(a, b, q, structure)
    still_a, still_b = a.detach(), b.detach()
    if structure == "auto":
        structure = seen_structure(still_a, still_b, structure)
    form = compute.choose_form(structure, a.device)
    factors = sylvester_factor(still_a, still_b, structure, form)
    return solve_with(a, b, q, Factors(*factors), structure, form)


def seen_structure(a: Tensor, b: Tensor, structure: str) -> str:
    """The structure, checked and "auto" resolved if values of a and b can be looked at."""
    if not is_plain(a, b):
        return structure
    eps = torch.finfo(a.dtype).eps
    return compute.structure_of(compute.widen(a), compute.widen(b), structure, eps)[0]


def solve_with(
    a: Tensor, b: Tensor, q: Tensor, factors: Factors, structure: str, form: str
) -> Tensor:
    """The same with factors at hand."""
    return _solve(a, b, q, *factors, structure, form, False, True)
