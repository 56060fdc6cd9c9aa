"""Codes that are components of the input (PCA, LDA, ICA), and components of what a code leaves."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sylvinit.codes.code import Latent, fix_signs
from sylvinit.moments.statistics import LayerStatistics

_log = logging.getLogger(__name__)


def top_eigenvectors(
    stats: LayerStatistics, spectrum: tuple[Tensor, Tensor], k: int, threshold: Tensor
) -> Tensor:
    """Rows (groups, min(k, d), d) of the leading eigenvectors, signs fixed.

    The spectrum has eigenvalues (groups, d), ascending, and eigenvectors (groups, d, d). Rows of
    eigenvalues up to the threshold (groups, 1) are zero.
    """
    values, vectors = spectrum
    k = min(k, stats.d)
    rows = vectors.flip(-1)[:, :, :k].mT
    significant = values.flip(-1)[:, :k] > threshold
    return torch.where(significant[:, :, None], fix_signs(stats, rows), 0.0)


def fisher_directions(
    stats: LayerStatistics,
    rows: LayerStatistics,
    spectrum: tuple[Tensor, Tensor],
    threshold: Tensor,
    k: int,
) -> Tensor:
    """Leading solutions e of B e = gamma M e within the range of M, of unit length, signs fixed.

    B is the between-class covariance of ``rows``; spectrum and threshold are those of M, as for
    :func:`top_eigenvectors`. Returns (groups, at most min(k, classes - 1), d), zero where gamma may
    be rounding.
    """
    if rows.class_counts is None or rows.class_means is None:
        raise ValueError("Fisher directions need class statistics")
    k = min(k, int((rows.class_counts > 0).sum()) - 1)
    weight = rows.class_shares().sqrt()[None, :, None]
    spread = weight * (rows.class_means - rows.mean[:, None, :])  # B = spread^T spread
    values, vectors = spectrum
    keep = values > threshold
    scale = torch.where(keep, values.clamp(min=0), 1.0).rsqrt() * keep
    whitener = vectors * scale[:, None, :]
    # B has rank < classes: a thin SVD of its factor is enough.
    factor = torch.linalg.svd(spread @ whitener, full_matrices=False)
    ratio, found = factor.S[:, :k], factor.Vh[:, :k] @ whitener.mT
    found = found / torch.linalg.vector_norm(found, dim=-1, keepdim=True).clamp(min=1e-300)
    significant = ratio**2 > stats.tolerance
    return torch.where(significant[:, :, None], fix_signs(stats, found), 0.0)


@dataclass(frozen=True)
class PCA:
    """Principal components, s = P (x - mu): the paper's code for hidden layers.

    With ``center=False`` P holds the leading eigenvectors of E[x x^T] and s = P x; then W = P
    solves the equation for every lam and the solver changes nothing. With ``center=True`` row i is

        w_i = p_i - [lam (p_i . mu) / (1 + lam mu^T K_i^-1 mu)] K_i^-1 mu,
        K_i = a_i I + lam Sigma.
    """

    center: bool = True
    needs_labels: bool = False
    reservoir: int = 0
    reducible: bool = True

    @property
    def name(self) -> str:
        """Either "pca" or "pca-uncentred"."""
        return "pca" if self.center else "pca-uncentred"

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The min(k, d) leading components; entries beyond the rank are zero."""
        if self.center:
            encoder = top_eigenvectors(stats, stats.spectrum(), k, stats.threshold())
            return Latent.affine(stats, encoder, stats.mean)
        spectrum = stats.backend.eigh(stats.second_moment(), stats.notes)
        # The mean part of E[x x^T] is exact to float64: it does not blur the small components.
        threshold = stats.threshold() + stats.threshold(spectrum[0])
        return Latent.affine(stats, top_eigenvectors(stats, spectrum, k, threshold))


@dataclass(frozen=True)
class LDA:
    """Fisher's discriminant directions, s = E (x - mu), rows of unit length.

    The directions are the generalized eigenvectors of the between-class covariance against the
    total one within its numerical range, at most classes - 1 of them, most discriminating first.
    """

    name: str = "lda"
    needs_labels: bool = True
    reservoir: int = 0
    reducible: bool = True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The min(k, classes - 1) directions."""
        encoder = fisher_directions(stats, stats, stats.spectrum(), stats.threshold(), k)
        return Latent.affine(stats, encoder, stats.mean)


@dataclass(frozen=True)
class ICA:
    """Independent components by scikit-learn's FastICA on a bounded random sample of the rows."""

    reservoir: int = 10_000
    max_iter: int = 200
    name: str = "ica"
    needs_labels: bool = False
    reducible: bool = True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The min(k, rank) unit-variance sources of every group."""
        # Here and not above: importing scikit-learn takes longer than the rest of the package.
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning

        if stats.reservoir is None:
            raise ValueError("ICA needs a reservoir of rows")
        k = min(k, stats.d)
        encoder = stats.mean.new_zeros((stats.groups, k, stats.d))
        for index in range(stats.groups):
            one = stats.group(index)
            sample = stats.reservoir[index].double().cpu().numpy()
            count = min(k, one.rank(), sample.shape[0] - 1)
            if count < 1:
                continue
            ica = FastICA(
                count, whiten="unit-variance", max_iter=self.max_iter, random_state=seed % 2**32
            )
            with warnings.catch_warnings():
                # Few iterations give a useful code; that it is not the optimum goes to the log.
                warnings.simplefilter("ignore", ConvergenceWarning)
                ica.fit(sample)
            if ica.n_iter_ >= self.max_iter:
                _log.info("FastICA stopped after %d iterations", self.max_iter)
            rows = torch.from_numpy(np.ascontiguousarray(ica.components_)).to(stats.mean)
            encoder[index, :count] = fix_signs(one, rows[None])[0]
        return Latent.affine(stats, encoder, stats.mean)


def components_of_rest(stats: LayerStatistics, latent: Latent, k: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors of Sigma - C^T A_c^+ C, the covariance that the code does not explain.

    Here C = cov(s, x) and A_c = cov(s). Returns float64 (groups, min(k, d), d), the rows beyond the
    rank zero, and C^T A_c^+ (groups, d, entries), which predicts x - mu from s - E[s].
    """
    cross = latent.cross - latent.mean[:, :, None] * stats.mean[:, None, :]
    inverse = torch.linalg.pinv(latent.covariance(), hermitian=True, rtol=stats.tolerance)
    predicted = cross.mT @ inverse
    left = stats.covariance - predicted @ cross
    spectrum = stats.backend.eigh((left + left.mT) / 2, stats.notes)
    return top_eigenvectors(stats, spectrum, k, stats.threshold()), predicted


def append_components(stats: LayerStatistics, latent: Latent, k: int) -> Latent:
    """Append principal components of what the code leaves of x, up to k entries or the rank.

    For an affine code, what is left is x - mu - C^T A_c^+ E (x - mu) with C = E Sigma and
    A_c = C E^T: the part of x that the code does not predict, with which it is uncorrelated. For
    other codes the components are applied to x.
    """
    missing = k - int(latent.available().sum(dim=1).min())
    if missing <= 0:
        return latent
    encoder, predicted = components_of_rest(stats, latent, missing)
    if latent.encoder is not None:
        encoder = encoder - (encoder @ predicted) @ latent.encoder
    return latent.joined(Latent.affine(stats, encoder, stats.mean), stats)
