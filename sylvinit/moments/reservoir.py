"""A bounded uniform sample of rows that does not depend on how the rows arrive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sylvinit.moments.sampling import philox4x32


class Reservoir:
    """The rows of least priority among all offered: for random priorities a uniform sample.

    The choice depends on the rows' priorities alone, not on the chunks in which they came, and two
    reservoirs merge into that of the union.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: Tensor | None = None
        self.labels: Tensor | None = None
        self._priority: Tensor | None = None

    def offer(
        self,
        x: Tensor,
        first: int,
        priority: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Offer rows (groups, n, d); ``first`` is the running index of the first one.

        Labels (n,) are kept beside the rows if every call brings some.
        """
        if priority is None:
            counter = np.zeros((x.shape[1], 4), dtype=np.uint32)
            counter[:, 0] = np.arange(first, first + x.shape[1], dtype=np.uint64) & 0xFFFFFFFF
            words = philox4x32(counter, (0, 0))[:, 0].astype(np.int64)
            priority = torch.from_numpy(words).to(x.device)
        if self.rows is not None and self._priority is not None:
            if len(self._priority) == self.capacity:
                better = priority < self._priority[-1]
                x, priority = x[:, better], priority[better]
                labels = None if labels is None else labels[better]
            x = torch.cat((self.rows, x), dim=1)
            priority = torch.cat((self._priority, priority))
            both = self.labels is not None and labels is not None
            labels = torch.cat((self.labels, labels)) if both else None  # type: ignore[arg-type]
        kept = torch.argsort(priority, stable=True)[: self.capacity]
        self.rows, self._priority = x[:, kept], priority[kept]
        self.labels = None if labels is None else labels[kept]

    def merge(self, other: Reservoir) -> None:
        """Offer the rows of another reservoir."""
        if other.rows is not None and other._priority is not None:
            self.offer(other.rows, 0, other._priority, other.labels)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Reservoir:
        """The same rows with a function applied to their features."""
        other = Reservoir(self.capacity)
        other._priority, other.labels = self._priority, self.labels
        if self.rows is not None:
            other.rows = function(self.rows)
        return other
