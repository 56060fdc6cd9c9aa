"""Tensors within nested tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples, lists and mappings with a function applied to every tensor and array.

    Mappings become plain dicts with strings as keys; other values stay.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {str(key): map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, function) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All of them, in order; arrays as tensors."""
    found: list[Tensor] = []
    map_tensors(value, lambda x: found.append(x) or x)
    return found
