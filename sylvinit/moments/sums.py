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
class RowSums:
    """Sums of n rows x about a shift; tensors are float64 except for the shift."""

    n: int
    total: Tensor  # (groups, d), sum of x - shift
    second: Tensor  # (groups, d, d), sum of (x - shift)(x - shift)^T
    shift: Tensor  # (groups, d)
    class_counts: Tensor | None = None  # (classes,)
    class_totals: Tensor | None = None  # (groups, classes, d), class sums of x - shift
    eps: float = torch.finfo(torch.float32).eps  # unit round-off of the products
