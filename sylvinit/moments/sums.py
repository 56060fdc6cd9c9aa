"""Sums of rows about a shift, the form in which moments arrive that were added up elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowSums:
    """Sums of n rows x about a shift.

    Attributes:
        n: rows.
        total: float64 (groups, d), sum of x - shift.
        second: float64 (groups, d, d), sum of (x - shift)(x - shift)^T.
        shift: (groups, d).
        class_counts: float64 (classes,), or None.
        class_totals: float64 (groups, classes, d), class sums of x - shift, or None.
        eps: unit round-off of the products.
    """

    n: int
    total: Tensor
    second: Tensor
    shift: Tensor
    class_counts: Tensor | None = None
    class_totals: Tensor | None = None
    eps: float = torch.finfo(torch.float32).eps


class Accumulator(Protocol):
    """Rows that are added up on a device, and asked for when they are needed."""

    n: int

    @property
    def device(self) -> torch.device | None:
        """Where the sums are, once there are any."""
        ...

    def sums(self) -> RowSums:
        """Everything added so far."""
        ...
