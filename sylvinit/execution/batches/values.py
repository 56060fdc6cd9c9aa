"""Nested tuples, lists and mappings: the tensors in them, and what belongs to some samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleList:
    """A list or tuple (``kind``) with one tensor for each sample."""

    tensors: list[Tensor]
    kind: type


def map_tensors(
    value: Any,
    function: Callable[[Tensor], Any],
    lists: Callable[[SampleList], Any] | None = None,
) -> Any:
    """Nested tuples, lists and mappings with a function applied to every tensor and array.

    ``lists`` is applied to lists with one tensor for each sample; without it ``function`` is, to
    their tensors. Mappings become plain dicts with strings as keys; other values stay.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, SampleList):
        if lists is not None:
            return lists(value)
        return SampleList([function(x) for x in value.tensors], value.kind)
    if isinstance(value, Mapping):
        return {str(key): map_tensors(item, function, lists) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, function, lists) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All of them, in order; arrays as tensors."""
    found: list[Tensor] = []
    map_tensors(value, lambda x: found.append(x) or x)
    return found


def count_samples(value: Any) -> int:
    """The length of the first tensor, or list of samples; 0 if that is a number."""
    lengths: list[int] = []
    map_tensors(
        value,
        lambda x: lengths.append(len(x) if x.ndim else 0),
        lambda x: lengths.append(len(x.tensors)),
    )
    return lengths[0] if lengths else 0


def take_samples(value: Any, index: slice | list[int], size: int) -> Any:
    """The same with some of ``size`` samples; what is not as long as the batch stays."""
    order = range(size)[index] if isinstance(index, slice) else index

    def pick(x: Tensor) -> Tensor:
        if not x.ndim or len(x) != size:
            return x
        return x[index] if isinstance(index, slice) else x[torch.tensor(index, device=x.device)]

    return map_tensors(value, pick, lambda x: SampleList([x.tensors[at] for at in order], x.kind))
