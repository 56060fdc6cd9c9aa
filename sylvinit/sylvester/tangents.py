"""Forward-mode tangents at the operators, which cannot carry them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from sylvinit.errors import BackendError


def primals(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors without their tangents; the autograd.Function around the operator has those."""
    if forward_ad._current_level < 0:
        return inputs
    return tuple(forward_ad.unpack_dual(x).primal if isinstance(x, Tensor) else x for x in inputs)


def refuse(*tensors: Tensor) -> None:
    """Raise where an operator would drop a tangent without a word.

    Raises:
        BackendError: a tensor has a tangent.
    """
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise BackendError(
            "dual tensors were passed into a compiled graph, where the solver has no forward-mode "
            "derivative; call torch.func.jvp inside the compiled function, or do not compile it"
        )
