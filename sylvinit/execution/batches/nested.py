"""Inputs whose samples differ in size: lists with a tensor for each, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sylvinit.errors import DataError
from sylvinit.execution.batches.values import SampleList

_PADDED = (
    "give (padded, lengths) with padding_mask='lengths' or a boolean mask, and let the model or "
    "forward_fn= pack or nest it"
)


def refuse_packed(value: Any, start: int) -> None:
    """Raise DataError for a PackedSequence or nested tensor: their rows belong to nobody."""
    if isinstance(value, PackedSequence):
        raise DataError(
            f"the batch at sample {start} holds a PackedSequence, which does not say which sample "
            f"a row belongs to; undo it with torch.nn.utils.rnn.pad_packed_sequence and {_PADDED}"
        )
    if isinstance(value, Tensor) and value.is_nested:
        raise DataError(
            f"the batch at sample {start} holds a nested tensor, which does not say which sample a "
            f"row belongs to; undo it with .to_padded_tensor(0.0) and {_PADDED}"
        )
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            refuse_packed(item, start)


class SampleLists:
    """Tells lists with one tensor for each sample from lists of inputs, on the first batch.

    A list or tuple of tensors, as many as there are labels, has one for each sample, unless each
    of them is as long as there are labels: then they are inputs of the whole batch. (Not if they
    would be arguments and the forward takes fewer: three pictures of three channels.)

    Args:
        takes: whether the forward may be given so many arguments.
    """

    def __init__(self, takes: Callable[[int], bool]) -> None:
        self._takes = takes
        self._places: set[tuple[Any, ...]] = set()
        self._decided = False

    def marked(self, inputs: Any, labels: int | None, start: int) -> Any:
        """The same with a :class:`SampleList` for every list that has a tensor for each sample.

        Raises:
            DataError: such a list of a later batch has not one tensor for each label.
        """
        if not labels:
            return inputs
        inputs = self._marked(inputs, labels, start, ())
        self._decided = True
        return inputs

    def _marked(self, value: Any, labels: int, start: int, place: tuple[Any, ...]) -> Any:
        if isinstance(value, Mapping):
            return {
                key: self._marked(item, labels, start, (*place, key)) for key, item in value.items()
            }
        if not isinstance(value, (tuple, list)) or hasattr(value, "_fields"):
            return value
        if not self._decided and self._has_samples(value, labels, place):
            self._places.add(place)
        if place not in self._places:
            items = [
                self._marked(item, labels, start, (*place, at)) for at, item in enumerate(value)
            ]
            return items if isinstance(value, list) else tuple(items)
        tensors = [torch.as_tensor(x) for x in value if isinstance(x, (Tensor, np.ndarray))]
        if len(tensors) != labels or len(value) != labels:
            raise DataError(
                f"the batch at sample {start} has {labels} labels and a list of {len(value)} "
                f"entries, {len(tensors)} of them tensors; the first batch had one tensor for each "
                "label in its place"
            )
        return SampleList(tensors, list if isinstance(value, list) else tuple)

    def _has_samples(self, value: Sequence[Any], labels: int, place: tuple[Any, ...]) -> bool:
        if len(value) != labels or not all(isinstance(x, (Tensor, np.ndarray)) for x in value):
            return False
        alike = all(x.ndim and len(x) == labels for x in value)
        return not alike or (not place and not self._takes(labels))
