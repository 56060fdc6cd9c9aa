"""Hooks that watch a model and leave it as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor


class Hook:
    """A hook that stays behind when its module is copied or pickled.

    A copy of the model, say a moving average of its weights, is another model; and a closure would
    keep the module from being pickled.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        """Call the function, but leave compiled code as it would be without the hook."""
        if not torch.compiler.is_compiling():
            self._function(*args)

    def __reduce__(self) -> tuple[type[NoHook], tuple[()]]:
        return NoHook, ()


class NoHook:
    """A hook that does nothing."""

    def __call__(self, *args: Any) -> None:
        """Do nothing."""


def training_forward() -> bool:
    """Whether the forward that runs is one that a gradient can be taken of.

    Not so without gradients (evaluation), and where torch traces or captures the program:
    statistics would become a part of what it makes of it.
    """
    return (
        torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


def in_backward() -> bool:
    """Whether a backward pass is running, so that a forward is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def readable(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor with statistics of its own: floating, dense and not empty.

    The tensors of torch.func (vmap, grad) exist only inside their transform.
    """
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.numel() > 0
        and not is_functorch_wrapped_tensor(value)
    )
