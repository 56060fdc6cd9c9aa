"""The solver as operators that autograd, torch.func and torch.compile know.

``sylvinit::sylvester_factor`` decomposes, ``sylvinit::sylvester_solve`` solves with the factors.
Only the second one has derivatives; they are solves of the adjoint equation with the same factors,
never derivatives of an eigendecomposition, which fail where eigenvalues repeat. With X the solution
of A X + X B = Q and G the gradient of X:

    A^H Y + Y B^H = G,   grad Q = Y,   grad A = -Y X^H,   grad B = -X^H Y,
    tangent of X: the solution for dQ - dA X - X dB.

Everything in these formulas is a product or the operator itself, so they hold at any order. The
gradients of Hermitian matrices are not symmetrised. Pairs that the zero rule dropped stay dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sylvinit.sylvester import compute, routes
from sylvinit.sylvester.alignment import align
from sylvinit.sylvester.compute import Factors
from sylvinit.sylvester.direct import is_plain
from sylvinit.sylvester.precision import full_precision
from sylvinit.sylvester.tangents import call, refuse


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
    refuse()
    factors = Factors(basis_a, core_a, basis_b, core_b)
    x = compute.solve(a, b, q, factors, structure, form, adjoint=adjoint, checked=checked)
    return x.clone() if x is q else x.contiguous()


@sylvester_solve.register_fake
def _(a: Tensor, b: Tensor, q: Tensor, *rest: Any) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2], q.shape[:-2])
    return q.new_empty((*batch, *q.shape[-2:]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, _, *factors, structure, form, adjoint, _ = inputs
    ctx.save_for_backward(a, b, output, *factors)
    ctx.options = (structure, form, adjoint)


def _gradients(ctx: Any, gradient: Tensor, solve: Any) -> tuple[Tensor | None, ...]:
    a, b, x, *factors = ctx.saved_tensors
    structure, form, adjoint = ctx.options
    y = solve(a, b, gradient, *factors, structure, form, not adjoint, False)
    left, right = (x, y) if adjoint else (y, x)
    for_a = -(left @ right.mH) if ctx.needs_input_grad[0] else None
    for_b = -(right.mH @ left) if ctx.needs_input_grad[1] else None
    q_shape = ctx.q_shape
    return (
        None if for_a is None else for_a.sum_to_size(a.shape),
        None if for_b is None else for_b.sum_to_size(b.shape),
        y.sum_to_size(q_shape) if ctx.needs_input_grad[2] else None,
        *(None,) * 8,
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save(ctx, inputs, output)
    ctx.q_shape = inputs[2].shape


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, gradient, sylvester_solve)


# torch.compile records the operator with this backward. In eager mode and under torch.func the
# class below is used: an operator cannot be given a forward-mode derivative.
torch.library.register_autograd("sylvinit::sylvester_solve", _backward, setup_context=_setup)


class SylvesterSolve(torch.autograd.Function):
    """The operator with reverse- and forward-mode derivatives and a rule for vmap."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return call(sylvester_solve, inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _setup(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1], output, *inputs[3:7])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        with full_precision(gradients[0]):
            return _gradients(ctx, gradients[0], SylvesterSolve.apply)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        a, b, x, *factors = ctx.saved_tensors
        with full_precision(x):
            structure, form, adjoint = ctx.options
            da, db, dq = tangents[:3]
            right = torch.zeros_like(x) if dq is None else dq.expand_as(x)
            if da is not None:
                right = right - (da.mH if adjoint else da) @ x
            if db is not None:
                right = right - x @ (db.mH if adjoint else db)
            return SylvesterSolve.apply(a, b, right, *factors, structure, form, adjoint, False)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return SylvesterSolve.apply(*_aligned(in_dims, inputs)), 0


def _aligned(in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    sizes = [
        (x if dim is None else x.movedim(dim, 0)).shape[-1]
        for x, dim in zip(inputs[:2], in_dims[:2], strict=True)
    ]
    core_a, core_b = compute.core_dimensions(inputs[8], sizes[0], sizes[1])
    return align(in_dims, (2, 2, 2, 2, core_a, 2, core_b), inputs)


def _vmap_solve(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    return sylvester_solve(*_aligned(in_dims, inputs)), 0


def _vmap_factor(
    info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor, structure: str, form: str
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    a = a if in_dims[0] is None else a.movedim(in_dims[0], 0)
    b = b if in_dims[1] is None else b.movedim(in_dims[1], 0)
    dims = tuple(None if dim is None else 0 for dim in in_dims[:2])
    return sylvester_factor(a, b, structure, form), (dims[0], dims[0], dims[1], dims[1])


torch.library.register_vmap("sylvinit::sylvester_solve", _vmap_solve)
torch.library.register_vmap("sylvinit::sylvester_factor", _vmap_factor)


def solve(a: Tensor, b: Tensor, q: Tensor, structure: str) -> Tensor:
    """A X + X B = Q with everything PyTorch can ask of an operator."""
    if is_plain(a, b, q):
        return compute.solve_once(a, b, q, structure)
    still_a, still_b = a.detach(), b.detach()
    if structure == "auto" and is_plain(still_a, still_b):
        # Values can be looked at: the cheaper route, if both are Hermitian to the bit.
        eps = torch.finfo(a.dtype).eps
        wide_a, wide_b = compute.widen(still_a), compute.widen(still_b)
        structure = compute.structure_of(wide_a, wide_b, structure, eps)[0]
    form = routes.choose(structure, a.device)
    factors = sylvester_factor(still_a, still_b, structure, form)
    return solve_with(a, b, q, Factors(*factors), structure, form)


def solve_with(
    a: Tensor, b: Tensor, q: Tensor, factors: Factors, structure: str, form: str
) -> Tensor:
    """The same with factors at hand."""
    return _apply(a, b, q, *factors, structure, form, False, True)


# torch.compile records the call as it is and takes it apart below Dynamo, which does not trace an
# autograd.Function with a forward-mode derivative.
@torch.compiler.allow_in_graph
def _apply(*inputs: Any) -> Tensor:
    return SylvesterSolve.apply(*inputs)
