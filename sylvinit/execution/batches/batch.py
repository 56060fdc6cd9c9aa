"""One microbatch: inputs, labels, padding mask and sample indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sylvinit.backends.memory import to_device
from sylvinit.execution.batches.values import map_tensors, tensors_in


@dataclass(frozen=True)
class Batch:
    """One microbatch.

    Attributes:
        inputs: what the model is called with: a tensor, a tuple or list of positional arguments, or
            a mapping of keyword arguments.
        labels: of its samples, or None.
        mask: bool (size, length), True for real tokens, or None.
        start: index of its first sample in the stream of data.
        size: number of samples.
        named: whether the labels were found by name, so that they may be targets of any kind.
    """

    inputs: Any
    labels: Tensor | None
    mask: Tensor | None
    start: int
    size: int
    named: bool = False
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def labels_on(self, device: torch.device) -> Tensor | None:
        """The labels as int64 on a device, moved there once."""
        if self.labels is None:
            return None
        if device not in self._on_device:
            self._on_device[device] = to_device(self.labels.long(), device)
        return self._on_device[device]

    def shapes(self) -> tuple[torch.Size, ...]:
        """Of all inputs."""
        return tuple(x.shape for x in tensors_in(self.inputs))

    def holds(self, x: Tensor) -> bool:
        """Whether x has the values of one of the inputs, in their order, on the CPU."""
        return any(
            given.dtype == x.dtype
            and given.device == x.device == torch.device("cpu")
            and given.numel() == x.numel()
            and torch.equal(given.reshape(x.shape), x)
            for given in tensors_in(self.inputs)
        )

    def other_sample(self, index: int, among: int) -> int | None:
        """One of the first samples whose inputs differ from those of sample ``index``."""
        tensors = [x for x in tensors_in(self.inputs) if x.ndim and len(x) == self.size]
        if index >= self.size:
            return None
        for other in range(min(among, self.size)):
            if any(not torch.equal(x[index], x[other]) for x in tensors):
                return other
        return None

    def replaced(self, others: Mapping[int, int]) -> Batch:
        """The same with the inputs of other samples in the place of some."""
        order = torch.arange(self.size)
        for index, other in others.items():
            order[index] = other

        def pick(x: Tensor) -> Tensor:
            return x[order.to(x.device)] if x.ndim and len(x) == self.size else x

        mask = None if self.mask is None else pick(self.mask)
        inputs = map_tensors(self.inputs, pick)
        return Batch(inputs, self.labels, mask, self.start, self.size, self.named)

    def head(self, count: int) -> Batch:
        """The first ``count`` samples."""
        return self.part(0, min(count, self.size))

    def part(self, begin: int, end: int) -> Batch:
        """Samples begin .. end - 1."""

        def cut(x: Tensor) -> Tensor:
            return x[begin:end] if x.ndim and len(x) == self.size else x

        return Batch(
            map_tensors(self.inputs, cut),
            None if self.labels is None else cut(self.labels),
            None if self.mask is None else cut(self.mask),
            self.start + begin,
            end - begin,
            self.named,
        )
