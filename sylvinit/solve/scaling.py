"""Rows of unit output variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.moments.statistics import LayerStatistics


class ScaledRows(NamedTuple):
    """Rows whose outputs have zero mean and, but for some that are as they were, unit variance."""

    weight: Tensor  # float64 (groups, k, d_in)
    bias: Tensor  # float64 (groups, k), -W mu of the weight as the layer holds it
    rounding: int  # rows whose output may be rounding alone
    too_large: int  # rows that the layer cannot hold scaled


def output_std(weight: Tensor, stats: LayerStatistics) -> Tensor:
    """Standard deviations (groups, k), sqrt(w Sigma w^T), of outputs of rows (groups, k, d_in)."""
    w = _in_basis(weight, stats)
    return ((w @ stats.covariance) * w).sum(dim=-1).clamp(min=0).sqrt()


def scale_rows(
    weight: Tensor, stats: LayerStatistics, inputs: torch.dtype, held: torch.dtype
) -> ScaledRows:
    """Divide rows by the standard deviations of their outputs, and center the outputs.

    The bias is not E[s] / std - W mu: codes that are not centered (k-means) have means far above
    their deviations, and without normalization these multiply from layer to layer.

    A row whose output deviates by no more than eps |w| rms(x) is left as it is, where eps is that
    of the type that the inputs came in: it could be their rounding, made as large as everything
    else. (Rounding alone deviates by about 0.3 of that where features are of like size and their
    errors independent, and by up to sqrt(d_in) times as much where they are not.)

    ``weight`` is float64 (groups, k, d_in); ``inputs`` is the type that the activations were
    rounded to, ``held`` the one that the weight will be rounded to.
    """
    std = output_std(weight, stats)
    power = stats.covariance.diagonal(dim1=1, dim2=2).sum(dim=1) + stats.mean.square().sum(dim=1)
    rms = (power / weight.shape[2]).sqrt()
    noise = torch.finfo(inputs).eps * weight.norm(dim=2) * rms[:, None]
    clear = std > noise
    fits = weight.abs().amax(dim=2) < std * torch.finfo(held).max
    weight = weight / torch.where(clear & fits, std, 1.0)[:, :, None]
    seen = _in_basis(weight.to(held).double(), stats)
    return ScaledRows(
        weight=weight,
        bias=-(seen * stats.mean[:, None]).sum(dim=-1),
        rounding=int(((std > 0) & ~clear).sum()),
        too_large=int((clear & ~fits).sum()),
    )


def _in_basis(weight: Tensor, stats: LayerStatistics) -> Tensor:
    return weight if stats.basis is None else weight @ stats.basis.mT
