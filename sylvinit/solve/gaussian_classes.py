"""The classifier of Gaussian classes with one covariance, its ridge by leave-one-out error.

With class means m_c, frequencies p_c, pooled within-class covariance S = sum r_i r_i^T / nu of the
rows x_i about their class means, nu = n - C, and K = S + r t I with t = tr(S) / d, the scores are

    f_c(x) = (1 + r) [ m_c^T K^-1 x - m_c^T K^-1 m_c / 2 ] + log p_c

(linear discriminant analysis), less their mean over the classes: it changes no probability, but
where features have a mean it is far larger than what does, and float32 weights would lose that.

Leaving row i out moves its own class mean to m - r_i / (n_c - 1) and takes beta r_i r_i^T from S,
beta = n_c / ((n_c - 1) nu). The frequencies p_c, nu and t are kept as they are with all rows. By
Sherman and Morrison's formula

    K_-i^-1 = K^-1 + beta K^-1 r_i r_i^T K^-1 / (1 - beta r_i^T K^-1 r_i),

so that the scores of rows, each by the classifier that has not seen it, cost d C operations a row
and ridge r, in the basis where S is diagonal. (Friedman, "Regularized discriminant analysis",
1989, section 4.2, updates in the same way.) r is the one of least cross-entropy of these scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Ridges relative to the mean variance; half a decade apart the error changes little.
RIDGES = tuple(10.0 ** (0.5 * step) for step in range(-7, 4))


class GaussianClassifier(NamedTuple):
    """Scores ``x @ weight.T + bias``, of mean zero over the classes that have rows.

    Classes without rows have the weight zero and a very low bias.
    """

    weight: Tensor  # float64 (classes, d)
    bias: Tensor  # float64 (classes,)
    ridge: float  # the chosen r
    loss: float  # leave-one-out cross-entropy at r, in nats a row


# Rows that are left out, at most, to choose the ridge: enough to tell half decades apart.
_LEFT_OUT = 1000
# Scores of left-out rows that are computed at once, for all ridges together (three times 8 MB).
_MOST_SCORES = 2**20
# Log of the frequency that an absent class is given.
_ABSENT = -30.0


def fit_gaussian(
    x: Tensor, labels: Tensor, classes: int, ridges: tuple[float, ...] = RIDGES
) -> GaussianClassifier:
    """The classifier of rows x, float64 (n, d), with ``labels``, int64 (n,) in [0, classes).

    Of more than 1,000 rows only every n/1,000-th is left out, counted in the order of the labels:
    classes have their shares whatever the order of the rows. A row that is alone in its class says
    nothing about leaving it out and is not counted; if all are, the largest ridge is taken.
    ``ridges`` are ascending.
    """
    n, d = x.shape
    counts = torch.bincount(labels, minlength=classes).to(x)
    present = counts > 0
    sums = x.new_zeros((classes, d)).index_add_(0, labels, x)
    means = sums / counts.clamp(min=1)[:, None]
    residual = x - means[labels]
    freedom = max(n - int(present.sum()), 1)
    values, basis = torch.linalg.eigh(residual.mT @ residual / freedom)
    values = values.clamp(min=0)
    level = values.mean()
    if level <= 0:  # every class is a single point
        level = torch.ones_like(level)
    means = means @ basis
    log_share = torch.where(present, (counts.clamp(min=1) / n).log(), _ABSENT)
    chosen = _evenly_by_class(labels, _LEFT_OUT)
    chosen = chosen[counts[labels[chosen]] > 1]
    ridge, loss = ridges[-1], math.inf
    if len(chosen):
        own = counts[labels[chosen]]
        rise = own / (own - 1)
        rows = _LeftOut(residual[chosen] @ basis, labels[chosen], rise, rise / freedom)
        about_center = means - means.mean(dim=0)  # scores depend on differences alone
        at_once = max(_MOST_SCORES // (len(chosen) * classes), 1)
        losses = torch.cat(
            [
                rows.losses(part, values + part[:, None] * level, about_center, log_share)
                for part in x.new_tensor(ridges).split(at_once)
            ]
        )
        loss, ridge = min(zip(losses.tolist(), ridges, strict=True))
    weighted = (1 + ridge) * means / (values + ridge * level)
    bias = log_share - (means * weighted).sum(dim=1) / 2
    weighted = weighted - weighted[present].mean(dim=0)
    bias = bias - bias[present].mean()
    weighted = torch.where(present[:, None], weighted, 0.0)
    return GaussianClassifier(weighted @ basis.mT, torch.where(present, bias, _ABSENT), ridge, loss)


class _LeftOut(NamedTuple):
    """The m rows that are left out one at a time, in the basis where S is diagonal."""

    residual: Tensor  # about their class means, (m, d)
    labels: Tensor  # (m,)
    rise: Tensor  # n_c / (n_c - 1), (m,)
    downdate: Tensor  # beta, (m,)

    def losses(self, ridges: Tensor, k: Tensor, means: Tensor, log_share: Tensor) -> Tensor:
        """Mean cross-entropy for each of R ridges (R,), with the diagonals of K, (R, d).

        With r the residual of a row of class y and |.| the norm of K^-1, the squared distance to
        another class's mean is |r|^2 + 2 r^T K^-1 (m_y - m_c) + |m_y - m_c|^2.
        """
        shape = (-1, len(ridges), len(means))  # all ridges' scores of a row lie together
        inverse = 1 / k
        weighted = (means * inverse[:, None, :]).flatten(0, 1)
        norms = (inverse @ means.square().mT)[None]
        classes, place = self.labels.unique(return_inverse=True)
        between = norms + norms[0, :, classes].mT[:, :, None]
        between -= 2 * (means[classes] @ weighted.mT).view(shape)
        own = self.labels[:, None, None].expand(-1, len(ridges), 1)
        leverage = (self.residual.square() @ inverse.mT)[:, :, None]
        # In place from here on: memory that is new every time costs more than the arithmetic.
        toward = (self.residual @ weighted.mT).view(shape)
        torch.sub(toward.gather(2, own), toward, out=toward)
        distance = between[place].add_(toward, alpha=2).add_(leverage)
        aligned = toward.add_(leverage)
        rise = self.rise[:, None, None]
        distance.scatter_(2, own, leverage * rise**2)
        aligned.scatter_(2, own, leverage * rise)
        downdate = self.downdate[:, None, None]
        rest = (1 - downdate * leverage).clamp(min=torch.finfo(k.dtype).eps)
        distance.add_(aligned.square_().mul_(downdate / rest))
        scores = distance.mul_(-(1 + ridges[:, None]) / 2).add_(log_share)
        return (scores.logsumexp(dim=2) - scores.gather(2, own)[:, :, 0]).mean(dim=0)


def _evenly_by_class(labels: Tensor, most: int) -> Tensor:
    """Indices of all rows, or of so many at even distances among the rows in order of their labels.

    Even distances among the rows as they come would miss classes that come in turns.
    """
    n = len(labels)
    if n <= most:
        return torch.arange(n, device=labels.device)
    middle = (2 * torch.arange(most, device=labels.device) + 1) * n // (2 * most)
    return labels.argsort(stable=True)[middle]
