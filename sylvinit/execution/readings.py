"""How the labels of the data are read: as classes, or as the targets of a head's outputs.

    integers (n,) or (n, 1)            a class for every sample
    integers (n, ...)                  a class for every row of the head: label maps, tokens
    floats (n, k), or (n,) for k = 1   k targets for every sample, k outputs of the head
    floats (n, k, ...), (n, ..., k)    k targets for every row; for k = 1 also without that axis

Two classes for one output are the target +-1, and so are columns of only 0 and 1 (the scores of a
logistic loss). Other columns are standardized, s = (y - center) / scale, and mapped back into the
weights. A target that is NaN is left out: with n_j of n rows in column j it is 0 and the others are
multiplied by (n / n_j)^(1/2), so that E[s_j^2] is that of the observed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sylvinit.distributed import ALONE, Ranks
from sylvinit.errors import LabelError
from sylvinit.moments.row_labels import LabelKind
from sylvinit.solve.task import TargetUnits

# Sums are kept for every class up to the largest label, so labels must not be hashes.
_MAX_CLASSES = 2**20


@dataclass(frozen=True)
class Head:
    """What is to know of a head to read targets for it."""

    name: str
    outputs: int
    channels_first: bool  # whether its outputs are channels of a map, and not the last axis
    bias: bool  # whether it has one that may be written


@dataclass(frozen=True, eq=False)
class ClassReading:
    """Classes, int64, with -1 for rows to leave out.

    Attributes:
        count: the largest class plus one.
        present: number of different classes.
    """

    kind: LabelKind
    count: int
    present: int
    ignore_index: int

    def with_weights(self, weights: Tensor) -> ClassReading:
        """The same with a weight for the rows of every class."""
        return replace(self, kind=replace(self.kind, weights=weights))

    def __call__(self, labels: Tensor) -> Tensor:
        """Labels of a batch as their :class:`LabelKind` says."""
        labels = _squeezed(labels).long()
        return labels.masked_fill(labels == self.ignore_index, -1)


@dataclass(frozen=True, eq=False)
class TargetReading:
    """Targets, float64, with NaN for rows to leave out."""

    kind: LabelKind
    units: TargetUnits  # of the targets that are solved for
    constant: int  # columns that never vary
    head: Head
    ignore_index: int | None  # of class labels that are read as +-1
    shift: Tensor  # (targets,), as the next two: s = factor * (y - shift) / divisor
    divisor: Tensor
    factor: Tensor

    def with_weights(self, weights: Tensor) -> TargetReading:
        """The same with weights for the rows of the target -1 and of the target 1."""
        return replace(self, kind=replace(self.kind, weights=weights))

    def __call__(self, labels: Tensor) -> Tensor:
        """Labels of a batch as their :class:`LabelKind` says."""
        y = _columns(labels, self.head, self.ignore_index)
        missing = y.isnan()
        s = torch.where(missing, 0.0, self.factor * (y - self.shift) / self.divisor)
        return s.masked_fill(missing.all(dim=-1, keepdim=True), torch.nan)


def read_classes(
    batches: Iterable[Tensor], ignore_index: int, ranks: Ranks = ALONE
) -> ClassReading | str:
    """Classes in labels of any shape, those of all ranks; or why they are none.

    Raises:
        LabelError: labels are negative and not ``ignore_index``, too large, or all left out.
    """
    found: set[int] = set()
    axes: set[int] = set()
    for theirs in ranks.gather("classes", _classes_in(batches)):
        if isinstance(theirs, str):
            return theirs
        found.update(theirs[0])
        axes.update(theirs[1])
    if len(axes) > 1:
        raise LabelError(f"labels have {sorted(axes)} axes in different batches; use one form")
    missing = ignore_index in found
    found.discard(ignore_index)
    if not found:
        raise LabelError(
            f"all labels are ignore_index={ignore_index}: no row is left; give labels, or another "
            "ignore_index"
        )
    if min(found) < 0:
        raise LabelError(
            f"labels must not be negative, got {min(found)}; drop those samples, or name the value "
            "with ignore_index="
        )
    if max(found) >= _MAX_CLASSES:
        raise LabelError(
            f"labels go up to {max(found)}, more than can be counted; number the classes from 0"
        )
    kind = LabelKind(classes=max(found) + 1, of_rows=axes != {1}, missing=missing)
    return ClassReading(kind, max(found) + 1, len(found), ignore_index)


def _classes_in(batches: Iterable[Tensor]) -> tuple[set[int], set[int]] | str:
    """The different labels and the numbers of their axes; or why they are no classes."""
    found: set[int] = set()
    axes: set[int] = set()
    for labels in batches:
        if labels.is_complex() or (labels.is_floating_point() and not whole_numbers(labels)):
            return f"labels are {labels.dtype} {tuple(labels.shape)}, not integers"
        axes.add(_squeezed(labels).ndim)
        found.update(labels.long().unique().tolist())
    return found, axes


def read_targets(
    batches: list[Tensor],
    head: Head,
    *,
    ignore_index: int | None,
    signs: bool,
    ranks: Ranks = ALONE,
) -> TargetReading | str:
    """Targets of a head's outputs, from those of all ranks; or why the labels are none.

    Args:
        ignore_index: of integers that are classes; None for numbers.
        signs: whether columns of only 0 and 1 become -1 and 1.

    Raises:
        LabelError: targets are infinite, or there are none.
    """
    seen = _Seen(head.outputs)
    for theirs in ranks.gather("targets", _seen_in(batches, head, ignore_index)):
        if isinstance(theirs, str):
            return theirs
        seen.merge(theirs)
    if not bool(seen.counts.any()):
        raise LabelError("all targets are NaN or left out: no row is left to learn from")
    if len(seen.of_rows) > 1:
        raise LabelError("targets are of samples in some batches and of rows in others; use one")
    mean = seen.total / seen.counts.clamp(min=1)
    square = torch.zeros_like(mean)
    for labels in batches:
        y = _columns(labels, head, ignore_index).flatten(0, -2)
        square += (torch.where(y.isnan(), mean, y) - mean).square().sum(dim=0)
    square = sum(ranks.gather("squares of targets", square), torch.zeros_like(mean))
    deviation = (square / seen.counts.clamp(min=1)).sqrt()
    constant = seen.low >= seen.high
    as_signs = seen.binary & signs
    shift = torch.where(as_signs, 0.5, mean)
    divisor = torch.where(as_signs, 0.5, torch.where(constant, 1.0, deviation))
    if not head.bias:  # nothing could give the mean back
        size = (deviation.square() + mean.square()).sqrt()
        shift = torch.where(as_signs, 0.5, 0.0)
        divisor = torch.where(as_signs, 0.5, torch.where(size > 0, size, 1.0))
    factor = (seen.rows / seen.counts.clamp(min=1)).sqrt()
    units = TargetUnits(
        center=torch.where(as_signs, 0.0, shift),
        # Rows without a target count as zeros: its weights are too small by the factor.
        scale=torch.where(as_signs, 1.0, divisor) * factor,
        numbers=~as_signs & ~constant,
    )
    kind = LabelKind(targets=head.outputs, of_rows=True in seen.of_rows, missing=seen.missing)
    count = int(constant.sum())
    return TargetReading(kind, units, count, head, ignore_index, shift, divisor, factor)


def _seen_in(batches: list[Tensor], head: Head, ignore_index: int | None) -> _Seen | str:
    seen = _Seen(head.outputs)
    for labels in batches:
        why = _misfit(labels, head)
        if why is not None:
            return why
        seen.add(_columns(labels, head, ignore_index))
    return seen


class _Seen:
    """What the targets of all batches are like, column by column."""

    def __init__(self, columns: int) -> None:
        zeros = torch.zeros(columns, dtype=torch.float64)
        self.counts, self.total = zeros, zeros.clone()
        self.low, self.high = zeros + torch.inf, zeros - torch.inf
        self.binary = torch.ones(columns, dtype=torch.bool)
        self.rows = 0
        self.of_rows: set[bool] = set()
        self.missing = False

    def add(self, y: Tensor) -> None:
        """Targets (n, ..., columns), NaN where there are none."""
        if bool(y.isinf().any()):
            raise LabelError("targets hold Inf; drop those samples, or write NaN to leave them out")
        self.of_rows.add(y.ndim > 2)
        y = y.flatten(0, -2)
        there = ~y.isnan()
        some = int(there.any(dim=1).sum())
        self.rows += some
        self.missing |= some < len(y)
        self.counts = self.counts + there.sum(dim=0)
        self.total = self.total + torch.where(there, y, 0.0).sum(dim=0)
        self.binary &= ((y == 0) | (y == 1) | ~there).all(dim=0)
        if len(y):
            self.low = self.low.minimum(torch.where(there, y, torch.inf).amin(dim=0))
            self.high = self.high.maximum(torch.where(there, y, -torch.inf).amax(dim=0))

    def merge(self, other: _Seen) -> None:
        """Add what others are like."""
        self.counts, self.total = self.counts + other.counts, self.total + other.total
        self.low, self.high = self.low.minimum(other.low), self.high.maximum(other.high)
        self.binary = self.binary & other.binary
        self.rows += other.rows
        self.of_rows |= other.of_rows
        self.missing |= other.missing


def _misfit(labels: Tensor, head: Head) -> str | None:
    """Why labels are no targets of this head's outputs; None if they are."""
    shape, k = tuple(labels.shape), head.outputs
    if labels.is_complex():
        return f"labels are {labels.dtype}, expected integers, floats or booleans"
    if k == 1 or _column_axis(labels, head) is not None:
        return None
    where = "in axis 1" if head.channels_first and labels.ndim > 2 else "in axis 1 or the last one"
    return f"targets are {shape}, and the head has {k} outputs, expected as many columns, {where}"


def _column_axis(labels: Tensor, head: Head) -> int | None:
    """The axis of the targets' columns; None if there is none."""
    axes = [1] if head.channels_first and labels.ndim > 2 else [labels.ndim - 1, 1]
    return next((x for x in axes if 0 < x < labels.ndim and labels.shape[x] == head.outputs), None)


def _columns(labels: Tensor, head: Head, ignore_index: int | None) -> Tensor:
    """Targets as float64 (n, ..., columns), NaN where there are none."""
    y = labels.double()
    if ignore_index is not None:
        y = y.masked_fill(labels == ignore_index, torch.nan)
    axis = _column_axis(labels, head)
    return y[..., None] if axis is None else y.movedim(axis, -1)


def _squeezed(labels: Tensor) -> Tensor:
    """(n, 1) as (n,)."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def whole_numbers(labels: Tensor) -> bool:
    """Whether floats (n,) or (n, 1) are class numbers."""
    flat = _squeezed(labels)
    return flat.ndim == 1 and bool(((flat >= 0) & (flat == flat.round())).all())
