"""How gradients change from one update to the next, and how large they are.

Source: Schneider, "Correlated Initialization for Correlated Data", section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sylvinit.errors import DataError, OptionTypeError

Gradients = Tensor | Iterable[Tensor]


def gradient_sign_changes(before: Gradients, after: Gradients) -> float:
    r"""The share of entries whose sign differs between two gradients ("zig-zag").

    With gradients g and g' of d entries, and sign(0) = 0,

        GradientSignChanges = \sum_j |sign(g_j) - sign(g'_j)| / (2 d),

    so that a step between zero and another sign counts one half. A NaN has the sign 0.

    Args:
        before: gradient at one update, a tensor or tensors of any shapes and any floating or
            complex dtype (real and imaginary parts are entries of their own); sparse tensors count
            with their zeros.
        after: gradient at the next one, of the same shapes.

    Returns:
        A number in [0, 1].

    Raises:
        OptionTypeError: an argument is not a tensor or an iterable of tensors.
        DataError: the shapes differ, there are no entries, or a dtype is not floating or complex.
    """
    first, second = _gradients("before", before), _gradients("after", after)
    shapes = [[tuple(grad.shape) for grad in grads] for grads in (first, second)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"after: expected tensors of the shapes of before, {_shown(shapes[0])}, got "
            f"{_shown(shapes[1])}; compare the gradients of the same parameters in the same order"
        )
    parts = [entries(grad) for grad in first]
    count = _entry_count("before", parts)
    changes = sum(
        int(sign_difference(signs(a), signs(entries(b)).to(a.device)))
        for a, b in zip(parts, second, strict=True)
    )
    return changes / (2 * count)


def gradient_magnitude(grads: Gradients) -> float:
    r"""The mean magnitude of the entries of a gradient, \sum_j |g_j| / d (figures 4 to 6).

    Args:
        grads: as for :func:`gradient_sign_changes`.

    Returns:
        The mean, summed in float64 (float32 on devices without it); NaN where a gradient has NaN.

    Raises:
        OptionTypeError, DataError: as there.
    """
    parts = [entries(grad) for grad in _gradients("grads", grads)]
    count = _entry_count("grads", parts)
    return sum(float(magnitude_sum(part)) for part in parts) / count


def entries(grad: Tensor) -> Tensor:
    """The real entries of a gradient as a dense tensor without history."""
    grad = grad.detach()
    if grad.layout == torch.sparse_coo:
        grad = grad.coalesce()
    if grad.layout != torch.strided:
        grad = grad.to_dense()
    return torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad


def signs(part: Tensor) -> Tensor:
    """Signs as int8, which takes one byte an entry; those of 0 and NaN are 0."""
    return (part > 0).view(torch.int8) - (part < 0).view(torch.int8)


def sign_difference(before: Tensor, after: Tensor) -> Tensor:
    """The sum of |difference| of two tensors of signs, 0-d int64."""
    return (before - after).abs_().sum(dtype=torch.int64)


def magnitude_sum(part: Tensor) -> Tensor:
    """The sum of |entry|, 0-d in :func:`sum_dtype`."""
    return part.abs().sum(dtype=sum_dtype(part.device))


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _gradients(argument: str, value: Any) -> list[Tensor]:
    try:
        grads = [value] if isinstance(value, Tensor) else list(value)
    except TypeError as error:
        raise OptionTypeError(
            f"{argument} must be a tensor or an iterable of tensors, got {type(value).__name__}"
        ) from error
    for index, grad in enumerate(grads):
        if not isinstance(grad, Tensor):
            remedy = "; leave out parameters without a gradient" if grad is None else ""
            raise OptionTypeError(
                f"{argument} must hold tensors, got {type(grad).__name__} at {index}{remedy}"
            )
        if not (grad.is_floating_point() or grad.is_complex()):
            raise DataError(
                f"{argument}: expected floating or complex gradients, got {grad.dtype} at {index}; "
                "convert it with .float()"
            )
    return grads


def _entry_count(argument: str, parts: list[Tensor]) -> int:
    count = sum(part.numel() for part in parts)
    if count == 0:
        raise DataError(
            f"{argument}: expected at least one entry, got none; run backward() before, or name "
            "parameters that have a gradient"
        )
    return count


def _shown(shapes: list[tuple[int, ...]]) -> str:
    return f"{shapes[:4]}" + (f" and {len(shapes) - 4} more" if len(shapes) > 4 else "")
