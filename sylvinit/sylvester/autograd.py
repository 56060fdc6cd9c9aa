"""Derivatives of the operators: reverse and forward mode, torch.func and torch.compile.

torch.compile records an operator with a backward. In eager mode and under torch.func an
autograd.Function around it is used, since an operator cannot be given a forward-mode derivative. In
a compiled graph the operator stands alone, and a tangent that arrives there at run time would
vanish without a word. Below autograd an operator cannot see tangents, so it refuses to run while
forward mode is on, unless the function has called it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sylvinit.errors import BackendError

Solve = Callable[..., Tensor]


class _Caller(threading.local):
    is_function = False


_caller = _Caller()


def refuse_tangents() -> None:
    """Raise BackendError if forward mode is on and the operator's function did not call it."""
    if forward_ad._current_level >= 0 and not _caller.is_function:
        raise BackendError(
            "a compiled graph with the solver cannot run under forward-mode differentiation: call "
            "torch.func.jvp inside the compiled function, or do not compile it"
        )


def differentiable(
    operator: Any,
    *,
    dimensions: Callable[..., Sequence[int]],
    gradients: Callable[..., Sequence[Tensor | None]],
    tangent: Callable[..., Tensor],
) -> Solve:
    """An operator that solves a linear equation, with all derivatives and a rule for vmap.

    Its inputs are tensors, of which the third one is the right side Q, then options. ``saved`` are
    the tensors with the solution in the place of Q.

    Args:
        operator: what torch.library.custom_op returned.
        dimensions: (tensors, options) -> dimensions of one entry of each tensor; all before these
            are batch dimensions, which broadcast.
        gradients: (solve, saved, options, gradient, whether each is needed) -> those of the first
            inputs, summed over broadcast dimensions afterwards.
        tangent: (solve, saved, options, tangents) -> that of the solution.
    """

    def count(inputs: Sequence[Any]) -> int:
        return sum(isinstance(x, Tensor) for x in inputs)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = count(inputs)
        ctx.save_for_backward(*inputs[:2], output, *inputs[3:tensors])
        ctx.options = inputs[tensors:]
        ctx.shapes = [x.shape for x in inputs[:tensors]]

    def backward(ctx: Any, gradient: Tensor, solve: Solve) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        found = gradients(solve, ctx.saved_tensors, ctx.options, gradient, needed)
        pairs = zip(found, ctx.shapes, strict=False)
        summed = [None if x is None else x.sum_to_size(shape) for x, shape in pairs]
        return (*summed, *(None,) * (len(needed) - len(summed)))

    def align(in_dims: Sequence[int | None], inputs: Sequence[Any]) -> list[Any]:
        tensors = count(inputs)
        pairs = zip(inputs[:tensors], in_dims[:tensors], strict=True)
        moved = [x if dim is None else x.movedim(dim, 0) for x, dim in pairs]
        own = dimensions(moved, inputs[tensors:])
        return [*broadcastable(moved, in_dims, own), *inputs[tensors:]]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Tensor:
            before, _caller.is_function = _caller.is_function, True
            try:
                return operator(*inputs)
            finally:
                _caller.is_function = before

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            setup(ctx, inputs, output)
            tensors = count(inputs)
            ctx.save_for_forward(*inputs[:2], output, *inputs[3:tensors])

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            with _full_precision(grads[0]):
                return backward(ctx, grads[0], Function.apply)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            saved = ctx.saved_tensors
            with _full_precision(saved[2]):
                return tangent(Function.apply, saved, ctx.options, tangents)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
            return Function.apply(*align(in_dims, inputs)), 0

    operator.register_autograd(lambda ctx, g: backward(ctx, g, operator), setup_context=setup)
    operator.register_vmap(lambda info, in_dims, *inputs: (operator(*align(in_dims, inputs)), 0))

    # torch.compile records the call as it is and takes it apart below Dynamo, which does not trace
    # an autograd.Function with a forward-mode derivative.
    @torch.compiler.allow_in_graph
    def solve(*inputs: Any) -> Tensor:
        return Function.apply(*inputs)

    return solve


def broadcastable(
    moved: Sequence[Tensor], in_dims: Sequence[int | None], dimensions: Sequence[int]
) -> list[Tensor]:
    """Tensors whose mapped dimension, if any, stays first while their batch dimensions broadcast.

    ``in_dims`` comes from vmap; ``dimensions`` are those of one entry of each tensor.
    """
    mapped = [dim is not None for dim, _ in zip(in_dims, moved, strict=False)]
    ranks = [x.ndim - own - at for x, own, at in zip(moved, dimensions, mapped, strict=True)]
    return [
        x.reshape(x.shape[0], *(1,) * (max(ranks) - rank), *x.shape[1:]) if at else x
        for x, rank, at in zip(moved, ranks, mapped, strict=True)
    ]


def _full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off where it is on: the solver does not lower precision, nor must these."""
    kind = x.device.type
    if kind in ("cpu", "cuda", "xpu") and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
