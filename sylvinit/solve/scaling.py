"""Rows of unit output variance, damped where the variance behind them is small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.moments.statistics import LayerStatistics

# Share of a feature's mean variance that is added to the features' covariance, and the norm that a
# scaled row may have, in those of the largest row of the network's own start.
DAMPING = 0.1
GROWTH = 30.0


class ScaledRows(NamedTuple):
    """Rows whose outputs have zero mean and, but for damping, bound and rounding, unit variance."""

    weight: Tensor  # float64 (groups, k, d_in)
    bias: Tensor  # float64 (groups, k), -W mu of the weight as the layer holds it
    rounding: int  # rows whose output may be rounding alone
    bounded: int  # rows that would have become too long


def output_std(weight: Tensor, stats: LayerStatistics) -> Tensor:
    """Standard deviations (groups, k), sqrt(w Sigma w^T), of outputs of rows (groups, k, d_in)."""
    w = _in_basis(weight, stats)
    return ((w @ stats.covariance) * w).sum(dim=-1).clamp(min=0).sqrt()


def scale_rows(
    weight: Tensor, stats: LayerStatistics, inputs: torch.dtype, start: Tensor
) -> ScaledRows:
    """Divide rows by the damped standard deviations of their outputs, and center the outputs.

        w / sqrt(w (Sigma + DAMPING v I) w^T),   v = tr(Sigma) / d_in, a mean over all groups

    Without damping this is whitening, and a direction of which few samples or smooth images say
    next to nothing gets weights in the thousands. Added to the covariance (as Ledoit and Wolf
    shrink theirs) the mean variance of a feature keeps rows below (DAMPING v)^(-1/2), whatever unit
    the inputs have. Where v itself is tiny no row becomes longer than GROWTH times the longest row
    of ``start``, or than 1 where that is less: a start of zeros says nothing of a layer's size.

    The bias is not E[s] / std - W mu: codes that are not centered (k-means) have means far above
    their deviations, and without normalization these multiply from layer to layer.

    A row whose output deviates by no more than eps |w| rms(x) is not scaled, where eps is that of
    the type that the inputs came in: it could be their rounding, made as large as everything else
    where all variances are. (Rounding alone deviates by about 0.3 of that where features are of
    like size and their errors independent, and by up to sqrt(d_in) times as much where they are
    not.)

    ``weight`` is float64 (groups, k, d_in); ``inputs`` is the type that the activations were
    rounded to; ``start`` is the layer's own weight, in the type that it will hold the new one in.
    """
    std, length = output_std(weight, stats), weight.norm(dim=2)
    variance = stats.covariance.diagonal(dim1=1, dim2=2).sum(dim=1) / weight.shape[2]
    rms = (variance + stats.mean.square().sum(dim=1) / weight.shape[2]).sqrt()
    noise = torch.finfo(inputs).eps * length * rms[:, None]
    clear = std > noise
    factor = 1 / (std.square() + DAMPING * variance.mean() * length.square()).sqrt()
    factor = torch.where(clear, factor, 1.0)
    # max gives 1 for a start of NaN, too.
    longest = max(1.0, GROWTH * float(start.double().norm(dim=2).amax()))
    bound = min(longest, torch.finfo(start.dtype).max) / length
    weight = weight * torch.minimum(factor, bound)[:, :, None]
    seen = _in_basis(weight.to(start.dtype).double(), stats)
    return ScaledRows(
        weight=weight,
        bias=-(seen * stats.mean[:, None]).sum(dim=-1),
        rounding=int(((std > 0) & ~clear).sum()),
        bounded=int((factor > bound).sum()),
    )


def _in_basis(weight: Tensor, stats: LayerStatistics) -> Tensor:
    return weight if stats.basis is None else weight @ stats.basis.mT
