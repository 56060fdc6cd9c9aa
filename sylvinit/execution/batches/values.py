"""Nested tuples, lists and mappings: the tensors in them, and what belongs to some samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Number
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
    objects: Callable[[Any], Any] | None = None,
) -> Any:
    """Nested tuples, lists and mappings with a function applied to every tensor and array.

    ``lists`` is applied to lists with one tensor for each sample; without it ``function`` is, to
    their tensors. ``objects`` is applied to lists and tuples of strings and the like. Mappings
    become plain dicts with strings as keys; other values stay.
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
        return {str(key): map_tensors(x, function, lists, objects) for key, x in value.items()}
    if objects is not None and _holds_objects(value):
        return objects(value)
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, function, lists, objects) for item in value]
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
    """The same with some of ``size`` samples; what is not as long as the batch stays.

    Strings and pictures, which ``forward_fn`` may read, are taken as tensors are. Lists of numbers
    may be sizes.
    """
    order = range(size)[index] if isinstance(index, slice) else index

    def pick(x: Tensor) -> Tensor:
        if not x.ndim or len(x) != size:
            return x
        return x[index] if isinstance(index, slice) else x[torch.tensor(index, device=x.device)]

    def pick_objects(x: Any) -> Any:
        return type(x)(x[at] for at in order) if len(x) == size else x

    def pick_listed(x: SampleList) -> SampleList:
        return SampleList([x.tensors[at] for at in order], x.kind)

    return map_tensors(value, pick, pick_listed, pick_objects)


def _holds_objects(value: Any) -> bool:
    """Whether a value is a list or tuple of neither tensors, numbers, None nor containers."""
    if not isinstance(value, (list, tuple)) or hasattr(value, "_fields"):
        return False
    others = (Tensor, np.ndarray, SampleList, Mapping, tuple, list, Number, type(None))
    return not any(isinstance(x, others) for x in value)
