"""What a code may know of a layer's input: its moments in float64, ready for linear algebra."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sylvinit.backends import Backend
from sylvinit.moments.streaming import PatchMoments


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


@dataclass
class LayerStatistics:
    """Moments of the input rows of a layer; every tensor has a leading axis of groups.

    With fewer rows than features all solutions lie in the span of the rows. Then ``basis`` holds an
    orthonormal basis of it and every other field is in its coordinates (``d`` of them): an encoder
    E in these coordinates is E @ basis in those of the layer's input.

    Attributes:
        n: number of rows.
        mean: float64 (groups, d).
        covariance: float64 (groups, d, d), divided by n.
        eps: variance, relative to the largest, that may be rounding of the rows or products.
        rows_eps: unit round-off of the rows themselves, that of float32 for halves.
        basis: float64 (groups, d, d_in), or None where d = d_in.
        kernel: of the patches, one number per spatial axis: the features of a layer's input are
            channels times taps, taps fastest; () for rows.
        class_counts: float64 (classes,), sums of the rows' weights where they have some, or None.
        class_means: float64 (groups, classes, d), or None.
        targets: moments of the rows' targets, or None.
        reservoir: (groups, rows, d), a random sample of the rows, or None.
        reservoir_labels: (rows,) or (rows, targets), the labels of those rows, or None.
        samples: the same of the mean rows of the samples, in the same coordinates, or None.
        constant: how many features of the layer's input never vary, over all groups.
        notes: on how things were computed, for the report.
    """

    n: int
    mean: Tensor
    covariance: Tensor
    eps: float
    rows_eps: float
    backend: Backend
    basis: Tensor | None = None
    kernel: tuple[int, ...] = ()
    class_counts: Tensor | None = None
    class_means: Tensor | None = None
    targets: TargetMoments | None = None
    reservoir: Tensor | None = None
    reservoir_labels: Tensor | None = None
    samples: LayerStatistics | None = None
    constant: int = 0
    notes: list[str] = field(default_factory=list)
    _spectrum: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def groups(self) -> int:
        """Independent groups of features."""
        return self.mean.shape[0]

    @property
    def d(self) -> int:
        """Features of a row in the present coordinates."""
        return self.mean.shape[1]

    @property
    def taps(self) -> int:
        """Positions of a patch; 1 for rows."""
        return math.prod(self.kernel)

    def class_shares(self) -> Tensor:
        """Frequency of every class, float64 (classes,); of weighted rows by their weights."""
        if self.class_counts is None:
            raise ValueError("these statistics have no classes")
        return self.class_counts / self.class_counts.sum()

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (groups, d), ascending, and eigenvectors (groups, d, d) of the covariance."""
        if self._spectrum is None:
            self._spectrum = self.backend.eigh(self.covariance, self.notes)
        return self._spectrum

    def second_moment(self) -> Tensor:
        """E[x x^T] = Sigma + mu mu^T, float64 (groups, d, d)."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def tolerance(self) -> float:
        """Ratios to the largest up to this may be rounding of the moments: d * eps."""
        return self.d * self.eps

    def threshold(self, values: Tensor | None = None) -> Tensor:
        """Eigenvalues up to this count as zero, float64 (groups, 1): they may be rounding.

        Those of the covariance: d * eps * largest for the products, and d * (eps * |mu|)^2 for the
        rows. Those of another matrix, ``values`` (groups, d) in ascending order, computed from the
        moments in float64: d * eps * largest with the eps of float64.
        """
        if values is not None:
            return self.d * torch.finfo(torch.float64).eps * values[:, -1:].clamp(min=0)
        largest = self.spectrum()[0][:, -1:].clamp(min=0)
        rows = self.rows_eps**2 * (self.mean**2).sum(dim=1, keepdim=True)
        return self.d * (self.eps * largest + rows)

    def rank(self) -> int:
        """Largest numerical rank of the covariance over the groups."""
        values, _ = self.spectrum()
        return int((values > self.threshold()).sum(dim=1).max())

    def group(self, index: int) -> LayerStatistics:
        """The statistics of one group, still with a leading axis of length 1."""
        part = slice(index, index + 1)
        names = ("mean", "covariance", "basis", "class_means", "reservoir")
        tensors = {name: getattr(self, name) for name in names}
        picked = {name: x[part] for name, x in tensors.items() if x is not None}
        if self.samples is not None:
            picked["samples"] = self.samples.group(index)
        if self.targets is not None:
            picked["targets"] = replace(self.targets, cross=self.targets.cross[part])
        if self._spectrum is not None:
            picked["_spectrum"] = tuple(x[part] for x in self._spectrum)
        return replace(self, notes=[], **picked)

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
    rows, basis = moments.columns(), None
    if rows is not None and reduce:
        # Not from the n x n Gram matrix, whose eigenvectors lose half the digits of the small
        # directions. The factor is orthonormal whatever the rank of the rows.
        basis = torch.linalg.qr(rows.double().mT).Q.mT
    stats = _in_basis(moments, backend, basis)
    if basis is None:
        trusted = (_ROUNDINGS * stats.rows_eps) ** 2 if raw else stats.rows_eps
        stats.eps = max(moments.eps, trusted)
    if rows is None:
        constant = stats.covariance.diagonal(dim1=1, dim2=2) <= 0
    else:
        constant = (rows == rows[:, :1]).all(dim=1)
    stats.constant, stats.kernel = int(constant.sum()), kernel
    reservoir = moments.reservoir()
    if reservoir is not None:
        stats.reservoir = reservoir if basis is None else reservoir.double() @ basis.mT
        stats.reservoir_labels = moments.reservoir_labels()
    if sample_means is not None:
        stats.samples = _in_basis(sample_means, backend, basis)
    return stats


def without_constant(stats: LayerStatistics) -> LayerStatistics:
    """The statistics of P x with P = I - 1 1^T / d_in, for weights whose rows satisfy W 1 = 0.

    Such rows see no more of x than P x.
    """
    if stats.basis is None:
        basis, change = None, torch.eye(stats.d).to(stats.mean) - 1 / stats.d
    else:
        # Rows lie in the span of the basis B and P x in that of B P, for which C is orthonormal:
        # coordinates c of x become C B^T c.
        basis = torch.linalg.qr((stats.basis - stats.basis.mean(dim=2, keepdim=True)).mT).Q.mT
        change = basis @ stats.basis.mT
    changed = _changed(stats, change, basis)
    # Products were rounded by what they were, the part included that has been taken away.
    before, after = (x.covariance.diagonal(dim1=1, dim2=2).sum(dim=1) for x in (stats, changed))
    clear = after > stats.tolerance * before
    ratio = torch.where(clear, before / after, 1.0).max()
    covariance = torch.where(clear[:, None, None], changed.covariance, 0.0)
    return replace(changed, covariance=covariance, eps=stats.eps * max(float(ratio), 1.0))


def _changed(stats: LayerStatistics, change: Tensor, basis: Tensor | None) -> LayerStatistics:
    """The statistics with coordinates multiplied by a matrix, whose basis is another one then."""

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(change.dtype) @ change.mT

    covariance = change @ stats.covariance @ change.mT
    return replace(
        stats,
        mean=(stats.mean[:, None] @ change.mT)[:, 0],
        covariance=(covariance + covariance.mT) / 2,
        basis=basis,
        class_means=rows(stats.class_means),
        targets=None
        if stats.targets is None
        else replace(stats.targets, cross=stats.targets.cross @ change.mT),
        reservoir=rows(stats.reservoir),
        samples=None if stats.samples is None else _changed(stats.samples, change, basis),
        _spectrum=None,
    )


def _in_basis(moments: PatchMoments, backend: Backend, basis: Tensor | None) -> LayerStatistics:
    """The moments alone, in a basis (groups, r, d) or as they are; eps is that of float64."""
    if basis is None:
        covariance, mean = moments.covariance(), moments.mean()
        mass, sums = moments.mass(), moments.label_sums()
    else:
        rows = moments.columns()
        if rows is None:
            raise ValueError("a basis of the rows needs fewer sample means than features")
        rows = rows.double()
        mean = (rows @ basis.mT).mean(dim=1)
        # About the first row, so that rows which never vary have no covariance, and no rounding.
        centered = (rows - rows[:, :1]) @ basis.mT
        centered = centered - centered.mean(dim=1, keepdim=True)
        covariance = centered.mT @ centered / rows.shape[1]
        mass, sums = rows.shape[1], moments.column_label_sums()
        sums = None if sums is None else replace(sums, cross=sums.cross @ basis.mT)
    eps, rows_eps = torch.finfo(torch.float64).eps, moments.rows_eps
    stats = LayerStatistics(moments.n, mean, covariance, eps, rows_eps, backend, basis=basis)
    if sums is not None and sums.second is not None:
        stats.targets = TargetMoments(sums.total / mass, sums.second / mass, sums.cross / mass)
    elif sums is not None:
        stats.class_counts, stats.class_means = sums.total, sums.means()
    return stats
