"""How well a linear head on given features does on samples that it has not seen.

For rows x_i with targets y_i (one-hot for classes, else standardized), the ridge regression with a
free constant predicts H y on the rows themselves, with

    H = 1 1^T / n + Z diag(1 / (v + n r)) Z^T,

where Z are the centered rows in the basis of their principal components and v = diag(Z^T Z). Fitted
without the rows of a fold f it misses these by (Allen's PRESS, 1974, in blocks)

    e_f = (I - H_ff)^-1 (y - H y)_f,

so that one eigendecomposition serves all folds and all ridges; where a fold has more rows than
there are components, the smaller equations of the fit without it are solved. The ridge of least
error is taken.
Folds are of samples: rows of one sample, such as the pixels of an image, are left out together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sylvinit.backends.eigen import eigh
from sylvinit.moments.row_sample import SampledRows
from sylvinit.moments.sums import gram

FOLDS = 10
# Relative to the mean variance of a feature.
RIDGES = tuple(10.0**step for step in range(-4, 4))
# Up to this share of the largest eigenvalue a direction may be rounding of float32 features.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class HeldOut:
    """Errors of samples by heads that have not seen them.

    Attributes:
        samples: int64 (m,), the samples that have rows, ascending.
        errors: float64 (m,), |y - prediction|^2, the mean over the rows of a sample, as a share of
            what the mean of all rows misses: 0 is perfect, 1 no better than that mean.
        accuracy: share of the rows whose own class scores highest; nan for targets.
        spread: participation ratio (sum v)^2 / sum v^2 of the eigenvalues v of the features'
            covariance: over how many directions their variance is spread.
    """

    samples: Tensor
    errors: Tensor
    accuracy: float
    spread: float

    @property
    def error(self) -> float:
        """Mean over the samples."""
        return float(self.errors.mean())


def held_out(rows: SampledRows) -> HeldOut | None:
    """Errors of ridge regression by folds of the samples; None where there is nothing to tell.

    That is: fewer than three samples, one class or constant targets, features that are not finite
    or never vary.
    """
    x = rows.x.double()
    samples, place = rows.samples.unique(return_inverse=True)
    classes = None
    if not rows.labels.is_floating_point():  # of the classes, only those that there are
        _, classes = rows.labels.unique(return_inverse=True)
    y = rows.labels if classes is None else one_hot(classes).double()
    center = y.mean(dim=0)
    y = y - center
    power = y.square().mean(dim=0)
    if classes is None:
        y, power = y[:, power > 0], power[power > 0] * int((power > 0).sum())  # all count alike
    else:
        power = power.sum()[None]
    if len(samples) < 3 or y.shape[1] == 0 or not bool((power > 0).all() & x.isfinite().all()):
        return None
    z, values = _principal_coordinates(x)
    if len(values) == 0:
        return None
    errors = y.new_empty(len(RIDGES), len(y))
    hits = torch.zeros_like(errors, dtype=torch.bool)
    shift = values.sum() / x.shape[1] * torch.tensor(RIDGES).to(values)
    cross = z.mT @ y
    for fold in _folds(place, len(samples), classes):
        missed = _missed(z, values, shift, y, cross, fold)
        errors[:, fold] = (missed.square() / power).sum(dim=2)
        if classes is not None:
            hits[:, fold] = (y[fold] - missed + center).argmax(dim=2) == classes[fold]
    best = errors.mean(dim=1).argmin()
    of_samples = torch.zeros(len(samples), dtype=torch.float64, device=x.device)
    of_samples.index_add_(0, place, errors[best]).div_(torch.bincount(place))
    accuracy = math.nan if classes is None else float(hits[best].double().mean())
    spread = float(values.sum() ** 2 / values.square().sum())
    return HeldOut(samples, of_samples, accuracy, spread)


def _principal_coordinates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows about their mean in the basis of their components, (n, r), and its Gram's diagonal."""
    x = x - x.mean(dim=0)
    x = x / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)  # squares of squares are finite
    dual = x.shape[0] < x.shape[1]
    values, vectors = eigh(gram(x.mT if dual else x))
    kept = values > _ROUNDING * values[-1].clamp(min=0)
    values, vectors = values[kept], vectors[:, kept]
    return (vectors * values.sqrt() if dual else x @ vectors), values


def _folds(place: Tensor, samples: int, classes: Tensor | None) -> list[Tensor]:
    """Indices of the rows of every fold; samples are dealt out in the order of their classes."""
    order = torch.arange(samples, device=place.device)
    if classes is not None:
        first = torch.searchsorted(place, order)  # rows come in the order of their samples
        order = classes[first].argsort(stable=True)
    fold = torch.empty_like(order)
    fold[order] = torch.arange(samples, device=place.device) % min(FOLDS, samples)
    return [(fold[place] == k).nonzero()[:, 0] for k in range(min(FOLDS, samples))]


def _missed(
    z: Tensor, values: Tensor, shift: Tensor, y: Tensor, cross: Tensor, fold: Tensor
) -> Tensor:
    """What the rows of a fold are missed by, by the fits without it: (ridges, rows, targets).

    Of the two ways the one with the smaller system; ``cross`` is z^T y.
    """
    n, part, labels = len(z), z[fold], y[fold]
    shifted = values + shift[:, None]
    if len(values) < len(fold):
        ones = torch.ones_like(part[:, :1])
        part = torch.cat((part, ones), dim=1)  # z and y are centered: the constant is on its own
        whole = torch.cat((shifted, torch.full_like(shifted[:, :1], n)), dim=1)
        target = torch.cat((cross, torch.zeros_like(cross[:1]))) - part.mT @ labels
        return labels - part @ _solve(torch.diag_embed(whole) - part.mT @ part, target)
    weighted = part / shifted[:, None]
    rest = torch.eye(len(fold), dtype=z.dtype, device=z.device) - 1 / n
    return _solve(rest - weighted @ part.mT, labels - weighted @ cross)


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """a^-1 b of symmetric positive definite a: by the ridge, which is no rounding of it."""
    return torch.cholesky_solve(b, torch.linalg.cholesky(a))
