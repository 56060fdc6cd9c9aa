"""Forward mode and the operators, which cannot carry tangents and must not lose them.

The autograd.Function around an operator has the forward-mode derivative. In a compiled graph the
operator stands alone, and a tangent that arrives there at run time would vanish without a word.
Below autograd an operator cannot see tangents, so it refuses to run while forward mode is on,
unless the function has called it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from sylvinit.errors import BackendError


class _Caller(threading.local):
    is_function = False


_caller = _Caller()


def call(operator: Callable[..., Tensor], inputs: tuple[Any, ...]) -> Tensor:
    """Call an operator from the forward of the function that has its derivatives."""
    before, _caller.is_function = _caller.is_function, True
    try:
        return operator(*inputs)
    finally:
        _caller.is_function = before


def refuse() -> None:
    """Raise where an operator might drop a tangent.

    Raises:
        BackendError: forward mode is on and the operator was not reached through :func:`call`.
    """
    if forward_ad._current_level >= 0 and not _caller.is_function:
        raise BackendError(
            "a compiled graph with the solver cannot run under forward-mode differentiation: call "
            "torch.func.jvp inside the compiled function, or do not compile it"
        )
