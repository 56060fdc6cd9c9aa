"""The spatial correlation of a layer's input, from the covariance of its patches."""

from __future__ import annotations

import torch
from torch import Tensor


def spatial_correlation(covariance: Tensor, taps: int) -> Tensor:
    """Correlation of the pixels of a patch, averaged over channels.

        R = C / sqrt(diag(C) diag(C)^T),   C = mean over channels c of Sigma[c, c],

    the blocks Sigma[c, c] of the covariance that belong to one channel each. A tap that never
    varies (one that reads padding alone) is uncorrelated with the others.

    Args:
        covariance: Sigma, float64 (groups, channels * taps, channels * taps), taps fastest.
        taps: positions of a patch.

    Returns:
        float64 (taps, taps) on the CPU.
    """
    groups, features, _ = covariance.shape
    channels = features // taps
    blocks = covariance.reshape(groups, channels, taps, channels, taps)
    mean = blocks.diagonal(dim1=1, dim2=3).mean(dim=(0, 3)).cpu()
    scale = mean.diagonal().clamp(min=0).sqrt()
    # Far below the largest, a variance is what rounding has left of zero.
    varies = scale > 1e-7 * scale.max()
    inverse = torch.where(varies, 1 / scale.clamp(min=1e-300), 0.0)
    matrix = mean * inverse[:, None] * inverse[None, :]
    return ((matrix + matrix.mT) / 2).clamp(-1, 1).fill_diagonal_(1)
