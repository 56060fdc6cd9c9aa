"""Streaming first and second moments of a layer's input rows.

For rows x_1 .. x_n in R^d this keeps

    n,  mu = (1/n) sum x,  M = sum (x - mu)(x - mu)^T,  and sums by labels (label_sums.py),

which is all that the equation of a layer needs (see solve/equation.py). Products are taken
in the precision of the rows (bf16 and fp16 are upcast to float32) or a given one about the mean of
the chunk, and added up in float64 by the pairwise update of Chan, Golub and LeVeque (1983). Until n
reaches d the rows themselves are kept, so that the dual (n x n) problem can be solved.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sylvinit.errors import DataError, LabelError, OptionError
from sylvinit.moments.device_sums import PatchAccumulator
from sylvinit.moments.label_sums import add_rows, check_classes, check_targets, empty_sums
from sylvinit.moments.sampling import Reservoir
from sylvinit.moments.sums import LabelSums, RowSums, gram

# Rows are multiplied in chunks of about this size: enough for an efficient product, and below the
# size from which the allocator asks the system for fresh pages each time.
_CHUNK_BYTES = 6 * 2**20

# Features up to which layers' products are taken in float64 whatever the rows are: raw tables have
# columns of very different scales, and so few features cost little.
NARROW = 128


def product_precision(dtype: torch.dtype, features: int) -> torch.dtype:
    """In which dtype rows of ``dtype`` with so many features, of all groups, are multiplied."""
    return torch.float64 if features <= NARROW else torch.promote_types(dtype, torch.float32)


class PatchMoments:
    """Moments of rows that arrive in chunks; they add over chunks, devices and machines.

    Args:
        d_in: features of a row.
        groups: independent groups of features; rows then have shape (groups, n, d_in).
        classes: number of classes whose counts and sums are kept; 0 for none.
        targets: number of targets of a row whose sums are kept, in place of classes; 0 for none.
        reservoir: upper bound on the rows kept as a uniform random sample; 0 for none.
        precision: dtype of the products; by default that of the first rows, at least float32.

    Raises:
        OptionError: a size is negative or ``d_in`` or ``groups`` is zero.
    """

    def __init__(
        self,
        d_in: int,
        *,
        groups: int = 1,
        classes: int = 0,
        targets: int = 0,
        reservoir: int = 0,
        precision: torch.dtype | None = None,
    ) -> None:
        labeled = {"classes": classes, "targets": targets}
        sizes = {"d_in": d_in, "groups": groups, **labeled, "reservoir": reservoir}
        for name, value in sizes.items():
            least = int(name in ("d_in", "groups"))
            if value < least:
                raise OptionError(f"{name} must be at least {least}, got {value}")
        if classes and targets:
            raise OptionError("labels are classes or targets, and not both; leave one of them at 0")
        self.d_in, self.groups, self.classes, self.targets = d_in, groups, classes, targets
        self.precision = precision
        self._eps = self._rows_eps = 0.0
        self._merged = 0
        self._mass = 0.0  # of the merged rows
        self._mean_and_scatter: tuple[Tensor, Tensor] | None = None
        self._label_sums: LabelSums | None = None
        self._pending: list[Tensor] = []
        self._pending_labels: list[Tensor] = []
        self._pending_weights: list[Tensor] = []
        self._pending_rows = 0
        self._reservoir = Reservoir(reservoir)
        #: Adds up rows on the device; they count as seen, and are merged when needed.
        self.accumulator: PatchAccumulator | None = None

    @property
    def n(self) -> int:
        """Rows seen so far."""
        elsewhere = 0 if self.accumulator is None else self.accumulator.n
        return self._merged + self._pending_rows + elsewhere

    @property
    def reservoir_size(self) -> int:
        """Upper bound on the rows of the reservoir."""
        return self._reservoir.capacity

    @property
    def device(self) -> torch.device:
        """Where the moments are; the CPU before any rows came."""
        self._settle()
        held = self._mean_and_scatter or self._pending
        return held[0].device if held else torch.device("cpu")

    @property
    def eps(self) -> float:
        """Unit round-off of the products."""
        self._settle()
        return self._eps

    @property
    def rows_eps(self) -> float:
        """Unit round-off of the rows as they are kept, that of float32 for halves."""
        self._settle()
        return self._rows_eps

    def update(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        priority: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        copy: bool = True,
        labels_checked: bool = False,
    ) -> PatchMoments:
        """Add rows; returns self.

        Args:
            x: floating tensor (n, d_in), or (groups, n, d_in).
            labels: int64 (n,) in [0, classes), or float64 (n, targets); needed if one of these is
                positive.
            priority: int64 (n,), the order in which a reservoir prefers rows (least first); by
                default a counter-based random one, the same for every instance: give priorities
                of your own where reservoirs will be merged.
            weights: float64 (n,), positive: how much every row counts, where that is not the same
                for all. Then all calls have weights.
            copy: copy what waits to be multiplied; pass False if ``x``, ``labels`` and ``weights``
                will not be changed.
            labels_checked: the labels are known to be valid; looking at them waits for a GPU.

        Raises:
            DataError: the shape or dtype of ``x`` does not fit.
            LabelError: labels are missing, of the wrong length, or out of range.
        """
        if x.ndim == 2 and self.groups == 1:
            x = x.unsqueeze(0)
        if x.ndim != 3 or x.shape[0] != self.groups or x.shape[2] != self.d_in:
            raise DataError(
                f"x must have shape ({self.groups}, n, {self.d_in}) or, with one group, "
                f"(n, {self.d_in}); got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise DataError(f"x must be floating point, got {x.dtype}; convert it first")
        if x.shape[1] == 0:
            return self
        x = x.detach()
        precise = torch.promote_types(x.dtype, torch.float32)
        self.precision = self.precision or precise
        eps = torch.finfo(self.precision).eps
        self._eps = max(self._eps, eps)
        self._rows_eps = max(self._rows_eps, eps, torch.finfo(precise).eps)
        if not self.classes and not self.targets:
            labels = None
        elif labels is None:
            kinds = f"{self.classes} classes" if self.classes else f"{self.targets} targets"
            raise LabelError(f"labels are needed for moments with {kinds}")
        elif not labels_checked and self.classes:
            check_classes(labels, x.shape[1], self.classes)
        elif not labels_checked:
            check_targets(labels, x.shape[1], self.targets)
        if self._reservoir.capacity:
            self._reservoir.offer(x.to(precise), self.n, priority, labels)
        if copy:
            labels, weights = (None if v is None else v.clone() for v in (labels, weights))
        step = self._chunk_rows()
        for begin in range(0, x.shape[1], step):
            part = x[:, begin : begin + step]
            self._pending.append(part.to(self.precision, copy=copy))
            if labels is not None:
                self._pending_labels.append(labels[begin : begin + step])
            if weights is not None:
                self._pending_weights.append(weights[begin : begin + step])
            self._pending_rows += part.shape[1]
            if self._pending_rows >= step:
                self._flush()
        return self

    def offer(self, x: Tensor, priority: Tensor, labels: Tensor | None = None) -> None:
        """Offer rows (groups, n, d_in) to the reservoir alone, not to the moments."""
        precise = torch.promote_types(x.dtype, torch.float32)
        self._reservoir.offer(x.to(precise), 0, priority, labels)

    def add_sums(self, sums: RowSums) -> PatchMoments:
        """Add rows given by their sums about a shift; ``sums.second`` is overwritten."""
        self._eps = max(self._eps, sums.eps)
        self._rows_eps = max(self._rows_eps, sums.eps)
        residual = sums.total / sums.n
        shift = sums.shift.double()
        self._merge(sums.n, sums.n, shift + residual, sums.second, residual)
        if sums.labels is not None:
            self._labels_of(sums.total[:, None]).add(sums.labels, shift)
        return self

    def _settle(self) -> None:
        """Merge what the accumulator has added up."""
        if self.accumulator is not None:
            sums = self.accumulator.sums()
            self.accumulator = None
            self.add_sums(sums)

    def merge(self, other: PatchMoments) -> PatchMoments:
        """Add the rows that ``other`` has seen; ``other`` is left as it was.

        Raises:
            DataError: the two have different sizes.
        """
        mine, theirs = (
            (m.d_in, m.groups, m.classes, m.targets, m.reservoir_size) for m in (self, other)
        )
        if mine != theirs:
            raise DataError(
                "moments of different sizes cannot be merged: (d_in, groups, classes, targets, "
                f"reservoir) is {mine} here and {theirs} there"
            )
        self._settle()
        other._settle()
        if other.precision is not None:
            self.precision = torch.promote_types(self.precision or other.precision, other.precision)
        self._eps = max(self._eps, other._eps)
        self._rows_eps = max(self._rows_eps, other._rows_eps)
        if other._mean_and_scatter is not None:
            mean, scatter = other._mean_and_scatter
            nothing = torch.zeros_like(mean)
            self._merge(other._merged, other._mass, mean, scatter.clone(), nothing)
        if other._label_sums is not None:
            self._labels_of(other._label_sums.cross).add(other._label_sums)
        self._pending.extend(other._pending)
        self._pending_labels.extend(other._pending_labels)
        self._pending_weights.extend(other._pending_weights)
        self._pending_rows += other._pending_rows
        self._reservoir.merge(other._reservoir)
        if self._pending_rows >= self._chunk_rows():
            self._flush()
        return self

    def columns(self) -> Tensor | None:
        """The rows themselves, (groups, n, d_in), while there are fewer than d_in; else None.

        Rows with weights are not had one by one.
        """
        whole = self.n == self._pending_rows and not self._pending_weights
        if not whole or self.n >= self.d_in or not self._pending:
            return None
        return torch.cat(self._pending, dim=1)

    def column_label_sums(self) -> LabelSums | None:
        """Sums by label of :meth:`columns`, without a Gram matrix of size d_in."""
        rows = self.columns()
        if rows is None or not self._pending_labels:
            return None
        sums = empty_sums(rows, self.classes, self.targets)
        add_rows(sums, rows.double(), None, torch.cat(self._pending_labels), None)
        return sums

    def mean(self) -> Tensor:
        """mu, float64 (groups, d_in), of weighted rows the weighted one."""
        return self._finished()[0]

    def covariance(self) -> Tensor:
        """Sigma = M / n, float64 (groups, d_in, d_in)."""
        return self._finished()[1] / self._mass

    def mass(self) -> float:
        """Sum of the rows' weights: their number where they have none."""
        self._finished()
        return self._mass

    def label_sums(self) -> LabelSums | None:
        """Sums of the labels and of labels times rows, or None without labels."""
        self._finished()
        return self._label_sums

    def class_counts(self) -> Tensor | None:
        """Rows per class, float64 (classes,), or None without classes."""
        sums = self.label_sums()
        return sums.total if sums is not None and self.classes else None

    def class_means(self) -> Tensor | None:
        """Mean row of every class, float64 (groups, classes, d_in), zero for absent classes."""
        sums = self.label_sums()
        return sums.means() if sums is not None and self.classes else None

    def reservoir(self) -> Tensor | None:
        """A uniform random sample of the rows, (groups, rows, d_in), or None."""
        return self._reservoir.rows

    def reservoir_labels(self) -> Tensor | None:
        """Labels of the rows of :meth:`reservoir`, or None without labels."""
        return self._reservoir.labels

    def transposed(self, rows: int) -> PatchMoments:
        """The moments with features (rows, columns), row-major, read column by column.

        Tap-major features become channel-major ones, the order of a weight.
        """
        self._settle()
        if self._pending and (self._merged or self.n >= self.d_in):
            self._flush()  # fewer numbers to reorder than in the rows
        shape = (rows, self.d_in // rows)

        def swap(x: Tensor) -> Tensor:
            return x.unflatten(-1, shape).mT.flatten(-2)

        labeled = {"classes": self.classes, "targets": self.targets}
        other = PatchMoments(self.d_in, groups=self.groups, **labeled, precision=self.precision)
        other._eps, other._rows_eps = self._eps, self._rows_eps
        other._merged, other._mass = self._merged, self._mass
        if self._mean_and_scatter is not None:
            mean, scatter = self._mean_and_scatter
            both = scatter.unflatten(2, shape).unflatten(1, shape)
            both = both.permute(0, 2, 1, 4, 3).reshape(scatter.shape)
            other._mean_and_scatter = swap(mean), both
        if self._label_sums is not None:
            cross = swap(self._label_sums.cross)
            other._label_sums = replace(self._label_sums, cross=cross)
        other._pending = [swap(x) for x in self._pending]
        other._pending_labels = list(self._pending_labels)
        other._pending_weights = list(self._pending_weights)
        other._pending_rows = self._pending_rows
        other._reservoir = self._reservoir.mapped(swap)
        return other

    def _chunk_rows(self) -> int:
        itemsize = (self.precision or torch.float32).itemsize
        return max(self.d_in, _CHUNK_BYTES // (self.d_in * self.groups * itemsize))

    def _finished(self) -> tuple[Tensor, Tensor]:
        self._settle()
        if self._pending:
            self._flush()
        if self._mean_and_scatter is None:
            raise DataError("no rows have been added to these moments")
        return self._mean_and_scatter

    def _flush(self) -> None:
        owned = len(self._pending) > 1
        x = torch.cat(self._pending, dim=1) if owned else self._pending[0]
        labels = torch.cat(self._pending_labels) if self._pending_labels else None
        weights = torch.cat(self._pending_weights) if self._pending_weights else None
        self._pending, self._pending_labels, self._pending_rows = [], [], 0
        self._pending_weights = []
        n, mass = x.shape[1], float(x.shape[1])
        shift = x.mean(dim=1)
        if weights is not None:
            mass = float(weights.sum())
            shift = (weights.to(x.dtype) @ x) / mass
        x = x.sub_(shift[:, None, :]) if owned else x - shift[:, None, :]
        if labels is not None:
            add_rows(self._labels_of(x), x, shift, labels, weights)
        # The mean was rounded; what is left of it is summed after the shift, where it is small.
        residual = x.sum(dim=1).double() / mass
        if weights is not None:
            residual = (weights @ x.double()) / mass
            x = x * weights.sqrt()[:, None].to(x.dtype)
        self._merge(n, mass, shift.double() + residual, gram(x), residual)

    def _merge(self, n: int, mass: float, mean: Tensor, second: Tensor, residual: Tensor) -> None:
        """Merge n rows with the given mean and second moments, which are about mean - residual.

        M = M_1 + M_2 + (n_1 n_2 / n) (mu_2 - mu_1)(mu_2 - mu_1)^T, with the rows' weights for their
        numbers; ``second`` is overwritten.
        """
        second.baddbmm_(residual[:, :, None], residual[:, None, :], alpha=-mass)
        self._merged += n
        if self._mean_and_scatter is None:
            self._mean_and_scatter, self._mass = (mean, second), mass
            return
        old_mean, scatter = self._mean_and_scatter
        total = self._mass + mass
        step, weight = mean - old_mean, self._mass * mass / total
        scatter += second.baddbmm_(step[:, :, None], step[:, None, :], alpha=weight)
        self._mean_and_scatter = old_mean + step * (mass / total), scatter
        self._mass = total

    def _labels_of(self, x: Tensor) -> LabelSums:
        """The sums by label, to which rows like x (groups, n, d_in) are added."""
        if self._label_sums is None:
            self._label_sums = empty_sums(x, self.classes, self.targets)
        return self._label_sums
