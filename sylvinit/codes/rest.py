"""Principal components of what a code leaves of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from sylvinit.codes.code import Latent
from sylvinit.codes.components import top_eigenvectors
from sylvinit.moments.statistics import LayerStatistics


def components_of_rest(stats: LayerStatistics, latent: Latent, k: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors of Sigma - C^T A_c^+ C, the covariance that the code does not explain.

    Args:
        stats: of the layer's input.
        latent: the code, with C = cov(s, x) and A_c = cov(s).
        k: how many.

    Returns:
        float64 (groups, min(k, d), d), the rows beyond the rank zero; and C^T A_c^+, float64
        (groups, d, entries), which predicts x - mu from s - E[s].
    """
    cross = latent.cross - latent.mean[:, :, None] * stats.mean[:, None, :]
    inverse = torch.linalg.pinv(latent.covariance(), hermitian=True, rtol=stats.tolerance)
    predicted = cross.mT @ inverse
    left = stats.covariance - predicted @ cross
    spectrum = stats.backend.eigh((left + left.mT) / 2, stats.notes)
    return top_eigenvectors(stats, spectrum, k, stats.threshold()), predicted


def append_components(stats: LayerStatistics, latent: Latent, k: int) -> Latent:
    """Append principal components of what the code leaves of x, as far as the rank goes.

    For an affine code, what is left is x - mu - C^T A_c^+ E (x - mu) with C = E Sigma and
    A_c = C E^T: the part of x that the code does not predict, with which it is uncorrelated. For
    other codes the components are applied to x.

    Args:
        stats: of the layer's input.
        latent: the code.
        k: how many entries there should be.
    """
    missing = k - int(latent.available().sum(dim=1).min())
    if missing <= 0:
        return latent
    encoder, predicted = components_of_rest(stats, latent, missing)
    if latent.encoder is not None:
        encoder = encoder - (encoder @ predicted) @ latent.encoder
    return latent.joined(Latent.affine(stats, encoder, stats.mean), stats)
