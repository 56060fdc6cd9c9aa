"""What a code may know of a layer's input: its moments in float64, ready for linear algebra."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sylvinit.backends import Backend
from sylvinit.moments.streaming import PatchMoments
from sylvinit.moments.sums import LabelSums


@dataclass(frozen=True)
class TargetMoments:
    """Moments of the targets s of rows x, divided by the number of rows; every tensor is float64.

    Attributes:
        mean: E[s], (t,).
        second: E[s s^T], (t, t).
        cross: E[s x^T], (groups, t, d).
    """

    mean: Tensor
    second: Tensor
    cross: Tensor


class LayerStatistics:
    """Moments of the input rows of a layer; every tensor has a leading axis of groups.

    With fewer rows than features all solutions lie in the span of the rows. Then ``basis`` holds an
    orthonormal basis of it and every other field is in its coordinates (``d`` of them): an encoder
    E in these coordinates is E @ basis in those of the layer's input. Fields are computed when they
    are first read: principal components need neither basis nor covariance there.

    Attributes:
        n: number of rows.
        groups: independent groups of features.
        eps: variance, relative to the largest, that may be rounding of the rows or products.
        rows_eps: unit round-off of the rows themselves, that of float32 for halves.
        kernel: of the patches, one number per spatial axis: the features of a layer's input are
            channels times taps, taps fastest; () for rows.
        samples: the same of the mean rows of the samples, in the same coordinates, or None.
        constant: how many features of the layer's input never vary, over all groups.
        notes: on how things were computed, for the report.
    """

    def __init__(
        self,
        moments: PatchMoments,
        backend: Backend,
        *,
        rows: Tensor | None = None,
        basis: Callable[[], Tensor | None] | None = None,
        kernel: tuple[int, ...] = (),
    ) -> None:
        """With ``rows``, those of the moments, in the basis of ``basis`` or of their own span."""
        self.n, self.groups = moments.n, moments.groups
        self.backend, self.kernel = backend, kernel
        self.eps, self.rows_eps = torch.finfo(torch.float64).eps, moments.rows_eps
        self.constant = 0
        self.samples: LayerStatistics | None = None
        self.notes: list[str] = []
        self._moments, self._rows, self._basis = moments, rows, basis

    @cached_property
    def basis(self) -> Tensor | None:
        """Orthonormal basis of the rows' span, float64 (groups, d, d_in); None where d = d_in."""
        if self._rows is None:
            return None
        if self._basis is not None:
            return self._basis()
        # The factor is orthonormal whatever the rank of the rows.
        return torch.linalg.qr(self._rows.double().mT).Q.mT

    @cached_property
    def _mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        rows, basis = self._rows, self.basis
        if rows is None or basis is None:
            return self._moments.mean(), self._moments.covariance()
        rows = rows.double()
        mean = (rows @ basis.mT).mean(dim=1)
        # About the first row, so that rows which never vary have no covariance, and no rounding.
        about = (rows - rows[:, :1]) @ basis.mT
        about = about - about.mean(dim=1, keepdim=True)
        return mean, about.mT @ about / rows.shape[1]

    @cached_property
    def mean(self) -> Tensor:
        """Mean row, float64 (groups, d)."""
        return self._mean_and_covariance[0]

    @cached_property
    def covariance(self) -> Tensor:
        """Of the rows, divided by n, float64 (groups, d, d)."""
        return self._mean_and_covariance[1]

    @cached_property
    def _label_sums(self) -> LabelSums | None:
        if self.basis is None:
            return self._moments.label_sums()
        sums = self._moments.column_label_sums()
        return sums if sums is None else replace(sums, cross=sums.cross @ self.basis.mT)

    @property
    def _class_sums(self) -> LabelSums | None:
        sums = self._label_sums
        return None if sums is None or sums.second is not None else sums

    @cached_property
    def class_counts(self) -> Tensor | None:
        """Sums of the weights of the rows of every class, float64 (classes,), or None.

        Without weights they are numbers of rows.
        """
        sums = self._class_sums
        return None if sums is None else sums.total

    @cached_property
    def class_means(self) -> Tensor | None:
        """Mean row of every class, float64 (groups, classes, d), or None."""
        sums = self._class_sums
        return None if sums is None else sums.means()

    @cached_property
    def targets(self) -> TargetMoments | None:
        """Moments of the rows' targets, or None."""
        sums = self._label_sums
        if sums is None or sums.second is None:
            return None
        mass = self._moments.mass() if self._rows is None else self._rows.shape[1]
        return TargetMoments(sums.total / mass, sums.second / mass, sums.cross / mass)

    @cached_property
    def reservoir(self) -> Tensor | None:
        """A random sample of the rows, (groups, rows, d), or None."""
        rows = self._moments.reservoir()
        return rows if rows is None or self.basis is None else rows.double() @ self.basis.mT

    @property
    def reservoir_labels(self) -> Tensor | None:
        """The labels of those rows, (rows,) or (rows, targets), or None."""
        return self._moments.reservoir_labels()

    @cached_property
    def centered(self) -> Tensor | None:
        """The rows about their mean, float64 (groups, n, d_in), where there is a basis."""
        if self._rows is None:
            return None
        rows = self._rows.double()
        # About the first row, so that what never varies is zero, without rounding.
        rows = rows - rows[:, :1]
        return rows.sub_(rows.mean(dim=1, keepdim=True))

    @cached_property
    def input_mean(self) -> Tensor:
        """Mean row in the coordinates of the layer's input, float64 (groups, d_in)."""
        return self.mean if self._rows is None else self._rows.mean(dim=1, dtype=torch.float64)

    @cached_property
    def feature_variances(self) -> Tensor:
        """Variance of every feature of the layer's input, float64 (groups, d_in)."""
        rows = self.centered
        if rows is not None:
            return rows.square().mean(dim=1)
        return self.covariance.diagonal(dim1=1, dim2=2)

    def variances(self, weight: Tensor) -> Tensor:
        """Variances w Sigma w^T of rows (groups, k, d_in), float64, with products in their type."""
        unit = self.feature_variances.amax(dim=1)[:, None, None]
        # float32 has no room for the squares of all of its numbers.
        unit = torch.where((unit > 0) & (weight.dtype != torch.float64), unit, 1.0)
        rows = self.centered
        if rows is not None:
            outputs = weight @ (rows / unit.sqrt()).to(weight).mT
            variances = outputs.square().mean(dim=2)
        else:
            variances = ((weight @ (self.covariance / unit).to(weight)) * weight).sum(dim=2)
        return variances.double() * unit[:, :, 0]

    def is_finite(self) -> bool:
        """Whether the rows are, and their products."""
        if self._rows is None:
            return bool(self.covariance.isfinite().all())
        return bool(torch.linalg.vector_norm(self._rows, dtype=torch.float64).isfinite())

    @property
    def d(self) -> int:
        """Features of a row in the present coordinates."""
        if self._rows is None:
            return self._moments.d_in
        return self._rows.shape[1] if self._basis is None else self.mean.shape[1]

    @property
    def taps(self) -> int:
        """Positions of a patch; 1 for rows."""
        return math.prod(self.kernel)

    def class_shares(self) -> Tensor:
        """Frequency of every class, float64 (classes,); of weighted rows by their weights."""
        if self.class_counts is None:
            raise ValueError("these statistics have no classes")
        return self.class_counts / self.class_counts.sum()

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        return self.backend.eigh(self.covariance, self.notes)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (groups, d), ascending, and eigenvectors (groups, d, d) of the covariance."""
        return self._spectrum

    def known_shares(self) -> Tensor | None:
        """Shares of the variance, descending, (groups, d), if the spectrum has been computed."""
        if "_spectrum" not in self.__dict__:
            return None
        values = self._spectrum[0].flip(1).clamp(min=0)
        total = values.sum(dim=1, keepdim=True)
        return values / torch.where(total > 0, total, 1.0)

    def second_moment(self) -> Tensor:
        """E[x x^T] = Sigma + mu mu^T, float64 (groups, d, d)."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def tolerance(self) -> float:
        """Ratios to the largest up to this may be rounding of the moments: d * eps."""
        return self.d * self.eps

    def rounding_of_rows(self) -> Tensor:
        """Variance that may be rounding of the rows, d * (eps * |mu|)^2, float64 (groups,)."""
        return self.d * self.rows_eps**2 * self.input_mean.square().sum(dim=1)

    def threshold(self, values: Tensor | None = None) -> Tensor:
        """Eigenvalues up to this count as zero, float64 (groups, 1): they may be rounding.

        Those of the covariance: d * eps * largest for the products, and d * (eps * |mu|)^2 for the
        rows. Those of another matrix, ``values`` (groups, d) in ascending order, computed from the
        moments in float64: d * eps * largest with the eps of float64.
        """
        if values is not None:
            return self.d * torch.finfo(torch.float64).eps * values[:, -1:].clamp(min=0)
        largest = self.spectrum()[0][:, -1:].clamp(min=0)
        return self.tolerance * largest + self.rounding_of_rows()[:, None]

    def rank(self) -> int:
        """Largest numerical rank of the covariance over the groups."""
        values, _ = self.spectrum()
        return int((values > self.threshold()).sum(dim=1).max())

    def group(self, index: int) -> LayerStatistics:
        """The statistics of one group, still with a leading axis of length 1."""
        part = slice(index, index + 1)
        names = ("mean", "covariance", "basis", "class_means", "reservoir", "_rows")
        fields = {name: getattr(self, name) for name in names}
        targets = self.targets
        values, vectors = self.spectrum()
        return self._with(
            **{name: None if x is None else x[part] for name, x in fields.items()},
            groups=1,
            targets=None if targets is None else replace(targets, cross=targets.cross[part]),
            samples=None if self.samples is None else self.samples.group(index),
            notes=[],
            _spectrum=(values[part], vectors[part]),
        )

    def _with(self, **fields: object) -> LayerStatistics:
        """A copy with other fields; what follows from the rows and moments is computed anew."""
        other = copy.copy(self)
        for name in ("_spectrum", "centered", "input_mean", "feature_variances"):
            other.__dict__.pop(name, None)
        other.class_counts = self.class_counts
        other.__dict__.update(fields)
        return other

    def _changed(self, change: Tensor, basis: Tensor | None) -> LayerStatistics:
        """Of rows without their means; coordinates are multiplied by a matrix, in another basis."""

        def changed(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(change.dtype) @ change.mT

        covariance = change @ self.covariance @ change.mT
        targets, rows = self.targets, self._rows
        return self._with(
            mean=(self.mean[:, None] @ change.mT)[:, 0],
            covariance=(covariance + covariance.mT) / 2,
            basis=basis,
            class_means=changed(self.class_means),
            targets=None if targets is None else replace(targets, cross=changed(targets.cross)),
            reservoir=changed(self.reservoir),
            samples=None if self.samples is None else self.samples._changed(change, basis),
            _rows=None if rows is None else _centered_features(rows.double()),
        )

    def in_input_coordinates(self, x: Tensor) -> Tensor:
        """Rows (groups, k, d) in the coordinates of the layer's input, (groups, k, d_in)."""
        return x if self.basis is None else x @ self.basis


# Rounding of raw data, in units of their own round-off, that is not taken for variance.
_ROUNDINGS = 32


def layer_statistics(
    moments: PatchMoments,
    backend: Backend,
    *,
    sample_means: PatchMoments | None = None,
    reduce: bool = True,
    kernel: tuple[int, ...] = (),
    raw: bool = False,
) -> LayerStatistics:
    """The statistics of a layer from its moments, which must have seen a row.

    With ``reduce``, they are in a basis of the rows' span where rows are fewer than features.

    Args:
        sample_means: moments of the mean row of every sample. Where there are fewer rows than
            features there are no more means, so that they are still held one by one, and nothing of
            the size of a Gram matrix of all features is made.
        kernel: of the patches, () for rows.
        raw: whether the rows are data as they come, each entry rounded once. The outputs of layers
            that subtract means may be mere rounding: if not raw, eigenvalues of up to eps times the
            largest are not trusted, however precise the products.
    """
    rows = moments.columns()
    held = rows if reduce else None
    stats = LayerStatistics(moments, backend, rows=held, kernel=kernel)
    if held is None:
        trusted = (_ROUNDINGS * stats.rows_eps) ** 2 if raw else stats.rows_eps
        stats.eps = max(moments.eps, trusted)
    if rows is None:
        constant = stats.covariance.diagonal(dim1=1, dim2=2) <= 0
    else:
        constant = (rows == rows[:, :1]).all(dim=1)
    stats.constant = int(constant.sum())
    if sample_means is not None:
        means = None if held is None else sample_means.columns()
        if held is not None and means is None:
            raise ValueError("a basis of the rows needs fewer sample means than features")
        same = None if held is None else lambda: stats.basis
        stats.samples = LayerStatistics(sample_means, backend, rows=means, basis=same)
    return stats


def without_constant(stats: LayerStatistics) -> LayerStatistics:
    """The statistics of P x with P = I - 1 1^T / d_in, for weights whose rows satisfy W 1 = 0.

    Such rows see no more of x than P x.
    """
    if stats.basis is None:
        basis, change = None, torch.eye(stats.d).to(stats.mean) - 1 / stats.d
    else:
        # Rows lie in the span of the basis B and P x in that of B P, for which C is orthonormal:
        # coordinates c of x become C P B^T c.
        projected = _centered_features(stats.basis)
        basis = torch.linalg.qr(projected.mT).Q.mT
        change = basis @ projected.mT
    changed = stats._changed(change, basis)
    # Products were rounded by what they were, the part included that has been taken away.
    before, after = (x.covariance.diagonal(dim1=1, dim2=2).sum(dim=1) for x in (stats, changed))
    clear = after > stats.tolerance * before
    ratio = torch.where(clear, before / after, 1.0).max()
    clear = clear[:, None, None]
    rows = changed._rows
    return changed._with(
        covariance=torch.where(clear, changed.covariance, 0.0),
        eps=stats.eps * max(float(ratio), 1.0),
        _rows=None if rows is None else torch.where(clear, rows, rows.mean(dim=1, keepdim=True)),
    )


def _centered_features(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)
