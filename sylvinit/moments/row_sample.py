"""A bounded random sample of the rows of a layer's input, with whose they are and their labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.backends.memory import to_device
from sylvinit.distributed import Message
from sylvinit.moments.patch_source import PatchSource
from sylvinit.moments.sampling import Reservoir


class SampledRows(NamedTuple):
    """Rows, each with its sample and its label."""

    x: Tensor  # (n, features), of all groups
    samples: Tensor  # int64 (n,), index in the stream of data
    labels: Tensor  # int64 (n,) classes, or float64 (n, targets)


class RowSample:
    """Collects at most ``capacity`` rows with labels, so many draws of every sample.

    A row's sample is kept beside it as a column of its label. The rows do not depend on the chunks
    in which they come.
    """

    def __init__(self, capacity: int, draws: int) -> None:
        self._draws = draws
        self._classes = False
        self._reservoir = Reservoir(capacity)

    def add(self, source: PatchSource) -> None:
        """Add rows of one microbatch."""
        taken = source.drawn(self._draws)
        if taken.labels is None or taken.priority is None or len(taken.entry) == 0:
            return
        self._classes = bool(source.kind.classes)
        x = source.gather(taken.entry, taken.position)
        labels = taken.labels.to(x.device, torch.float64)
        labels = labels[:, None] if labels.ndim == 1 else labels
        owner = to_device(source.start + taken.sample, x.device).double()
        beside = torch.cat((owner[:, None], labels), dim=1)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self._reservoir.offer(x, 0, to_device(taken.priority, x.device), beside)

    def packed(self) -> Message:
        """What was collected, for :meth:`merge` elsewhere."""
        held = self._reservoir
        if held.rows is None or held.labels is None or held._priority is None:
            return Message()
        return Message(self._classes, [held.rows, held.labels, held._priority])

    def merge(self, message: Message, device: torch.device) -> None:
        """Add what another process has collected."""
        if message.tensors:
            x, beside, priority = (x.to(device) for x in message.tensors)
            self._reservoir.offer(x, 0, priority, beside)
            self._classes = message.meta

    def rows(self) -> SampledRows | None:
        """What was collected, in the order of the samples; None if that is nothing."""
        x, beside = self._reservoir.rows, self._reservoir.labels
        if x is None or beside is None:
            return None
        order = beside[:, 0].argsort(stable=True)
        beside = beside[order]
        labels = beside[:, 1].long() if self._classes else beside[:, 1:]
        return SampledRows(x[:, order].movedim(0, 1).flatten(1), beside[:, 0].long(), labels)
