"""Multinomial logistic regression near a given classifier, by majorize-minimize.

The coordinates z of a row are those in the eigenvectors of the rows' covariance, about their mean,
divided by (spread + 0.1 mean)^(1/2), with spread the eigenvalue and mean that of all eigenvalues:
uncorrelated, of variance spread / (spread + 0.1 mean). A constant 1 is appended. V = (v_1 .. v_C)
minimizes

    - sum_i log softmax(V z_i)_{y_i} + (tau / 2) |V - V_0|^2.

The Hessian of the first term is at most I (x) M with M = Z^T Z / 2 (Boehning, "Multinomial logistic
regression algorithm", 1992). The minimum of the quadratic majorant with that Hessian is a step D
away,

    (tau I) D + D M = (Y - P)^T Z - tau (V - V_0),     P = softmax(V Z^T)^T,

with the one-hot labels Y: a Sylvester equation whose matrices are both diagonal in these
coordinates, one division per entry. Steps are taken from the extrapolated points of Nesterov
(1983). V_0 stands in for the data that are not there: with few rows the result stays near it, and
the more rows there are the closer it comes to the maximum of the likelihood.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Added to the covariance of the rows, relative to its mean eigenvalue.
_RIDGE = 0.1


def refine_logistic(
    x: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    strength: float = 0.5,
    steps: int = 20,
    spectrum: tuple[Tensor, Tensor] | None = None,
    precision: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The classifier after ``steps`` steps from (and near) ``weight`` and ``bias``.

    Args:
        x, labels: float64 (n, d) and int64 (n,), less than classes.
        weight, bias: float64 (classes, d) and (classes,), V_0; so are the results.
        strength: tau / d, in rows: how much the given classifier counts. (A weight of more
            entries fits more of what is accident in the same rows.)
        spectrum: eigenvalues (d,), ascending, and eigenvectors (d, d) of the covariance of x,
            divided by n, if they are at hand.
        precision: of the probabilities and of their sums over the rows, most of the work; the
            rest is in float64. With float32, and given weights of mean zero over the classes, the
            result differs by up to about 1e-7 of its norm.
    """
    n = x.shape[0]
    mean = x.mean(dim=0)
    centered = x - mean
    values, basis = spectrum or torch.linalg.eigh(centered.mT @ centered / n)
    spread = values.clamp(min=0)
    values = spread + _RIDGE * spread.mean()
    if values[-1] <= 0:  # rows that never vary
        return weight, bias
    root = values.sqrt()
    z = torch.cat((centered @ (basis / root), x.new_ones((n, 1))), dim=1).to(precision)
    z_columns = z.mT.contiguous()  # products with it are faster than with a view
    start = torch.cat((weight @ (basis * root), (bias + weight @ mean)[:, None]), dim=1)
    target = torch.nn.functional.one_hot(labels, weight.shape[0]).mT.to(z)
    # Z^T Z is diagonal: the rows are in the eigenvectors' coordinates, and centered.
    tau = strength * x.shape[1]
    inverse = 1 / (tau + n / 2 * torch.cat((spread / values, values.new_ones(1))))
    kept, rest = 1 - tau * inverse, tau * inverse * start
    before = now = start
    for step in range(steps):
        ahead = torch.lerp(before, now, 1 + step / (step + 3))
        miss = target - torch.softmax(ahead.to(precision) @ z_columns, dim=0)
        # ahead + ((Y - P)^T Z - tau (ahead - V_0)) / (tau + M)
        gained = (miss @ z).double()
        before, now = now, torch.addcmul(rest, ahead, kept).addcmul_(gained, inverse)
    new_weight = (now[:, :-1] / root) @ basis.mT
    return new_weight, now[:, -1] - new_weight @ mean
