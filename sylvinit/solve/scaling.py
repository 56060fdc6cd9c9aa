"""Rows of unit output variance, damped where the variance behind them is small."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.moments.statistics import LayerStatistics

# Least variance that a row is scaled by, as a share of its variance on uncorrelated features. On
# CIFAR-10 this damps nothing, and larger shares train no better (docs/evidence.md, what was tried).
DAMPING = 0.01
# Longest scaled row, in lengths of the longest row of the network's own start.
GROWTH = 30.0


class ScaledRows(NamedTuple):
    """Rows whose outputs have zero mean and, but for damping, bound and rounding, unit variance."""

    weight: Tensor  # float64 (groups, k, d_in)
    bias: Tensor  # float64 (groups, k), -W mu of the weight as the layer holds it
    rounding: int  # rows whose output may be rounding alone
    bounded: int  # rows that would have become too long
    deviation: Tensor  # standard deviations of their outputs, (groups, k)


def output_std(weight: Tensor, stats: LayerStatistics) -> Tensor:
    """Standard deviations (groups, k), sqrt(w Sigma w^T), of outputs of rows (groups, k, d_in)."""
    return stats.variances(weight).clamp(min=0).sqrt()


def scale_rows(
    weight: Tensor,
    stats: LayerStatistics,
    inputs: torch.dtype,
    start: Tensor,
    std: Tensor | None = None,
) -> ScaledRows:
    """Divide rows by the damped standard deviations of their outputs, and center the outputs.

        w / sqrt(max(w Sigma w^T, DAMPING w diag(Sigma) w^T))

    Scaling to unit variance is whitening: a direction in which features cancel each other, of which
    smooth images or few samples say next to nothing, would get weights in the thousands. So the
    variance is taken to be at least a share of what the row would have on features of the same
    variances without correlation. This knows no unit: features in other units, one by one, give
    the same outputs. Where the features themselves hardly vary, no row becomes longer than GROWTH
    times the longest row of ``start`` (than 1, if that is more; than GROWTH where the start is zero
    or not finite and says nothing of a layer's size).

    The bias is not E[s] / std - W mu: codes that are not centered (k-means) have means far above
    their deviations, and without normalization these multiply from layer to layer.

    A row whose output deviates by no more than eps |w| rms(x) is not scaled, where eps is that of
    the type that the inputs came in: it could be their rounding, made as large as everything else.
    (Rounding alone deviates by about 0.3 of that where features are of like size and their errors
    independent, and by up to sqrt(d_in) times as much where they are not.)

    ``weight`` is float64 (groups, k, d_in); ``inputs`` is the type that the activations were
    rounded to; ``start`` is the layer's own weight, in the type that it will hold the new one in;
    ``std`` are the deviations of the rows' outputs, if they are at hand.
    """
    std = output_std(weight, stats) if std is None else std
    length, variances = weight.norm(dim=2), stats.feature_variances
    power = variances.sum(dim=1) + stats.input_mean.square().sum(dim=1)
    rms = (power / weight.shape[2]).sqrt()
    clear = std > torch.finfo(inputs).eps * length * rms[:, None]
    uncorrelated = (weight.square() @ variances[:, :, None])[:, :, 0]
    divisor = torch.maximum(std, (DAMPING * uncorrelated).sqrt())
    divisor = torch.where(clear, divisor, 1.0)
    least = length / _longest(start)
    scale = torch.maximum(divisor, least)
    weight = weight / scale[:, :, None]
    seen = weight.to(start.dtype).double()
    return ScaledRows(
        weight=weight,
        bias=-(seen @ stats.input_mean[:, :, None])[:, :, 0],
        rounding=int(((std > 0) & ~clear).sum()),
        bounded=int((divisor < least).sum()),
        deviation=std / scale,
    )


def _longest(start: Tensor) -> float:
    """The length that a scaled row may have; its entries fit into the type of ``start``."""
    own = float(start.double().norm(dim=2).amax())
    longest = max(GROWTH * own, 1.0) if 0 < own < math.inf else GROWTH
    return min(longest, torch.finfo(start.dtype).max)
