"""Ridge regression as the solution of the last layer, its ridges by leave-one-out error.

For rows x with mean mu and covariance Sigma = V diag(v) V^T, and one target s of mean m and
covariance c = E[(s - m)(x - mu)] with the rows, the ridge regression is

    w = (Sigma + r I)^-1 c,   b = m - w^T mu.

Left out of n rows, row i is missed by (Allen 1974, "The relationship between variable selection and
data augmentation and a method for prediction")

    (s_i - b - w^T x_i) / (1 - h_i),   h_i = (1 + (x_i - mu)^T (Sigma + r I)^-1 (x_i - mu)) / n.

The regression is that of all rows, from their moments. The r of least mean square of these errors
is found on a bounded random sample of the rows: leverages need the rows themselves. Generalized
cross-validation would not, but on tables with repeated rows it takes ridges that are too small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sylvinit.moments.statistics import LayerStatistics
from sylvinit.solve.equation import LayerSolution

# Relative to the mean eigenvalue of Sigma; half a decade apart the error changes little.
RIDGES = tuple(10.0 ** (0.5 * step) for step in range(-20, 7))


def _rounding(stats: LayerStatistics, values: Tensor) -> Tensor:
    """Eigenvalues up to this may be rounding of the rows or of their float64 products.

    Smaller than :meth:`LayerStatistics.threshold`: what little says nothing is left to the ridge.
    """
    size = values[-1].clamp(min=0) + stats.mean[0].square().sum()
    rounding = torch.finfo(torch.float64).eps + stats.rows_eps**2
    return stats.d * rounding * size


def _spare(centered: Tensor, damped: Tensor, n: int) -> Tensor:
    """1 - h_i of rows (m, d) in the basis, (m, 1), for the eigenvalues v + r."""
    leverage = (1 + centered.square() @ (1 / damped)) / n
    return (1 - leverage).clamp(min=torch.finfo(centered.dtype).eps)[:, None]


def solve_ridge(stats: LayerStatistics, k: int) -> LayerSolution:
    """Weight and bias of a last layer with ``k`` outputs, one for each target.

    ``stats`` are those of one group, with the moments of k targets, products taken in float64:
    float32 would hide directions that tell smooth targets.
    """
    found, rows, labels = stats.targets, stats.reservoir, stats.reservoir_labels
    if found is None or rows is None or labels is None or len(found.mean) != k:
        raise ValueError("ridge regression needs rows and the moments of a target for every output")
    values, basis = (x[0] for x in stats.spectrum())
    mean = stats.mean[0]
    real = values > _rounding(stats, values)
    values = torch.where(real, values, 0.0)
    level = values.sum() / max(int(real.sum()), 1)
    # Directions in which the rows do not vary say nothing: the covariance there is rounding.
    cross = found.cross[0] - found.mean[:, None] * mean
    z = torch.where(real, cross @ basis, 0.0)
    ridges = [ratio * float(level) for ratio in RIDGES]
    damped = [torch.where(real, values + ridge, torch.inf) for ridge in ridges]
    centered = (rows[0].double() - mean) @ basis
    around = labels - found.mean
    losses = torch.stack(
        [
            ((around - centered @ (z / d).mT) / _spare(centered, d, stats.n)).square().mean(dim=0)
            for d in damped
        ]
    )
    chosen = losses.argmin(dim=0).tolist()
    weight = torch.stack([z[j] / damped[i] for j, i in enumerate(chosen)]) @ basis.mT
    low, high = RIDGES[min(chosen)], RIDGES[max(chosen)]
    span = f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"
    notes = [
        *stats.notes,
        f"ridge regression, ridge {span} of the mean variance by leave-one-out; lam has no part in "
        "it",
    ]
    if high == RIDGES[-1]:
        notes.append("a ridge is the largest of those tried: such targets may not be predictable")
    if len(labels) < stats.n:
        notes.append(f"the ridge is chosen by a random sample of {len(labels)} of {stats.n} rows")
    return LayerSolution(
        weight=stats.in_input_coordinates(weight[None]),
        bias=(found.mean - weight @ mean)[None],
        rank=stats.rank(),
        residual=math.nan,
        dropped=0,
        filled_components=0,
        mixed=torch.zeros((1, k), dtype=torch.bool, device=mean.device),
        empty=torch.zeros(1, dtype=torch.bool, device=mean.device),
        notes=notes,
    )
