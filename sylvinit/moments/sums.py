"""Sums over rows of outer products, and the form in which a device hands them over.

Sums in float32 have an error that does not grow with the rows. Libraries of linear algebra sum the
products of narrow matrices row by row, in one float32: after 300,000 rows of ReLUs it is 0.2 % off,
and a covariance matrix has negative eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Columns from which the libraries sum in blocks themselves (12 with Intel's, measured).
_WIDE = 16
_BLOCK = 64  # rows; of 512 equal ones the sum is 3e-6 off already
_GRAM_BLOCK = 96  # columns of a block of a symmetric product, of which half need not be computed


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """left^T right in float64, for (..., n, p) and (..., n, q), with products in their dtype."""
    if left.dtype == torch.float64 or min(left.shape[-1], right.shape[-1]) >= _WIDE:
        return (left.mT @ right).double()
    whole = left.shape[-2] // _BLOCK * _BLOCK
    rest = (left[..., whole:, :].mT @ right[..., whole:, :]).double()
    if not whole:
        return rest
    a, b = (x[..., :whole, :].unflatten(-2, (-1, _BLOCK)) for x in (left, right))
    return rest.add_((a.mT @ b).sum(dim=-3, dtype=torch.float64))


def gram(x: Tensor) -> Tensor:
    """x^T x for x (..., n, d), in float64, from the blocks of the upper triangle.

    Products are computed in the dtype of x. The result is exactly symmetric, which a plain product
    is with some libraries and processors only.
    """
    d = x.shape[-1]
    if d < 2 * _GRAM_BLOCK:
        return mirrored(row_products(x, x))
    out = x.new_empty((*x.shape[:-2], d, d), dtype=torch.float64)
    blocks = -(-d // _GRAM_BLOCK)
    edges = [d * i // blocks for i in range(blocks + 1)]
    for begin, end in pairwise(edges):
        part = x[..., begin:end].mT @ x[..., begin:]
        out[..., begin:end, begin:] = part
        out[..., end:, begin:end] = part[..., end - begin :].mT
        out[..., begin:end, begin:end] = mirrored(part[..., : end - begin])
    return out


def mirrored(a: Tensor) -> Tensor:
    """The symmetric matrices (..., d, d) that have the upper triangles of the given ones."""
    return a.triu() + a.triu(1).mT


@dataclass(frozen=True)
class LabelSums:
    """Sums over rows x with codes s for their labels; every tensor is float64."""

    total: Tensor  # (t,), sum of s: the rows of every class, or the sums of targets
    cross: Tensor  # (groups, t, d), sum of s x^T
    second: Tensor | None = None  # (t, t), sum of s s^T for targets; None for classes

    def add(self, other: LabelSums, shift: Tensor | None = None) -> None:
        """Add other rows, in place; those of ``other`` are about ``shift``, (groups, d)."""
        self.total.add_(other.total)
        self.cross.add_(other.cross)
        if shift is not None:
            self.cross.add_(other.total[None, :, None] * shift.double()[:, None, :])
        if self.second is not None and other.second is not None:
            self.second.add_(other.second)

    def means(self) -> Tensor:
        """Mean row of every class, (groups, classes, d), zero for absent ones."""
        total = torch.where(self.total > 0, self.total, 1.0)
        return self.cross / total[None, :, None]


@dataclass(frozen=True)
class RowSums:
    """Sums of n rows x about a shift; tensors are float64 except for the shift."""

    n: int
    total: Tensor  # (groups, d), sum of x - shift
    second: Tensor  # (groups, d, d), sum of (x - shift)(x - shift)^T
    shift: Tensor  # (groups, d)
    labels: LabelSums | None = None  # of x - shift
    eps: float = torch.finfo(torch.float32).eps  # unit round-off of the products
