"""Sums of rows by their labels: what a supervised code needs beside the moments of the rows.

A label is a class, whose code is one-hot, or a row of targets. For codes s and rows x of weight w
these are

    sum w s,   sum w s x^T   and, for targets,   sum w s s^T

in float64. (Of one-hot codes the last is the diagonal matrix of the first.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sylvinit.errors import LabelError
from sylvinit.moments.sums import LabelSums, row_products

_CHUNK_BYTES = 6 * 2**20
# Classes up to which rows are multiplied by one-hot rows; above, they are sorted by their class.
_MOST_ONE_HOT = 1024


def empty_sums(x: Tensor, classes: int, targets: int) -> LabelSums:
    """Sums of no rows, for rows like x (groups, n, d): 8 bytes per label, group and feature."""
    entries = classes + targets
    cross = x.new_zeros((x.shape[0], entries, x.shape[2]), dtype=torch.float64)
    second = cross.new_zeros((targets, targets)) if targets else None
    return LabelSums(cross.new_zeros(entries), cross, second)


def add_rows(
    sums: LabelSums, x: Tensor, shift: Tensor | None, labels: Tensor, weights: Tensor | None
) -> None:
    """Add rows x + shift, (groups, n, d) and (groups, d), with their labels, in place.

    Labels are classes, int64 (n,), or targets, float64 (n, t).
    """
    weighted = x if weights is None else x * weights[:, None].to(x.dtype)
    if sums.second is not None:
        s = labels if weights is None else labels * weights[:, None]
        total, place = s.sum(dim=0), slice(None)
        cross = row_products(labels.to(x.dtype).expand(x.shape[0], -1, -1), weighted)
        sums.second.add_(s.mT @ labels)
    else:
        classes = len(sums.total)
        total, place = torch.bincount(labels, weights, minlength=classes).double(), slice(None)
        if classes <= _MOST_ONE_HOT:
            cross = _class_products(weighted, labels, classes)
        else:
            order = labels.argsort(stable=True)
            place, lengths = labels[order].unique_consecutive(return_counts=True)
            rows = weighted[:, order].movedim(1, 0).double().contiguous()
            cross = torch.segment_reduce(rows, "sum", lengths=lengths).movedim(0, 1)
    sums.total.add_(total)
    if shift is not None:
        cross = cross + total[place][None, :, None] * shift.double()[:, None, :]
    sums.cross[:, place] += cross


def _class_products(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    # A product with one-hot rows is deterministic on every device, unlike index_add.
    step = max(1, _CHUNK_BYTES // (4 * classes))
    sums = x.new_zeros((x.shape[0], classes, x.shape[2]), dtype=torch.float64)
    for begin in range(0, x.shape[1], step):
        part = one_hot(labels[begin : begin + step], classes).to(x.dtype)
        sums += (part.T @ x[:, begin : begin + step]).double()
    return sums


def check_classes(labels: Tensor, n: int, classes: int | None) -> int:
    """How many classes there are: as given, or the largest label plus one.

    Raises:
        LabelError: labels are not int64 (n,), or out of range.
    """
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise LabelError(
            f"labels must be int64 of shape ({n},), got {labels.dtype} {tuple(labels.shape)}"
        )
    low, high = (int(v) for v in torch.aminmax(labels))
    count = high + 1 if classes is None else classes
    if low < 0 or high >= count:
        raise LabelError(f"labels must lie in [0, {max(count, 1)}), got {low} to {high}")
    return count


def check_targets(labels: Tensor, n: int, targets: int) -> None:
    """Raise LabelError unless labels are finite targets, float64 (n, targets)."""
    if labels.shape != (n, targets) or labels.dtype != torch.float64:
        raise LabelError(
            f"labels must be float64 of shape ({n}, {targets}), got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    if not bool(labels.isfinite().all()):
        raise LabelError("labels hold NaN or Inf; drop those rows")
