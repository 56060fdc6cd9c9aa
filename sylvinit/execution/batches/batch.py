"""One microbatch: inputs, labels, padding mask and sample indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sylvinit.backends.memory import to_device
from sylvinit.execution.batches.values import take_samples, tensors_in


@dataclass(frozen=True)
class Batch:
    """One microbatch.

    Attributes:
        inputs: what the model is called with: a tensor or :class:`SampleList`, a tuple or list of
            positional arguments, or a mapping of keyword arguments.
        labels: of its samples as they came, or None.
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
    _read: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def read(self, reading: Callable[[Tensor], Tensor], device: torch.device) -> Tensor | None:
        """The labels as ``reading`` has them, on a device; read and moved there once."""
        if self.labels is None:
            return None
        key = (reading, device)
        if key not in self._read:
            self._read[key] = to_device(reading(self.labels), device)
        return self._read[key]

    def tensors(self) -> list[Tensor]:
        """All inputs."""
        return tensors_in(self.inputs)

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
        if index >= self.size:
            return None
        own = self._sample(index)
        for other in range(min(among, self.size)):
            if not all(map(torch.equal, own, self._sample(other))):
                return other
        return None

    def _sample(self, index: int) -> list[Tensor]:
        return tensors_in(take_samples(self.inputs, slice(index, index + 1), self.size))

    def replaced(self, others: Mapping[int, int]) -> Batch:
        """The same with the inputs of other samples in the place of some."""
        order = [others.get(index, index) for index in range(self.size)]
        mask = take_samples(self.mask, order, self.size)
        return replace(self, inputs=take_samples(self.inputs, order, self.size), mask=mask)

    def head(self, count: int) -> Batch:
        """The first ``count`` samples."""
        return self.part(0, min(count, self.size))

    def part(self, begin: int, end: int) -> Batch:
        """Samples begin .. end - 1."""
        taken = slice(begin, end)
        inputs, labels, mask = (
            take_samples(x, taken, self.size) for x in (self.inputs, self.labels, self.mask)
        )
        return Batch(inputs, labels, mask, self.start + begin, end - begin, self.named)
