"""Directions in which the mean rows of the samples differ between classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sylvinit.checks import check_number
from sylvinit.codes.code import Latent
from sylvinit.codes.components import components_of_rest, fisher_directions
from sylvinit.moments.statistics import LayerStatistics


@dataclass(frozen=True)
class Discriminant:
    """Regularized Fisher directions of the samples' mean rows, and principal components after.

    A single patch says little about the class of its image, and :class:`LDA` compares patches. Here
    the mean x_i over the rows of sample i stands for the sample. The directions are the leading
    eigenvectors, at most classes - 1, of

        Sigma_c e = gamma (Sigma_s + (prior / n) (Sigma_w + shrink * t * I)) e,

    with the between-class covariance Sigma_c of the n means x_i, their covariance Sigma_s, the
    covariance Sigma_w of the rows about their own sample's mean, (Sigma - Sigma_s) r / (r - 1) for
    r rows a sample, and t the mean diagonal entry of Sigma. Sigma_w keeps directions out in which
    patches vary at random. It stands where ridge regression has the identity, and counts as much as
    ``prior`` samples: the fewer there are, the less their own covariance is believed.

    The other entries of s = E (x - mu) are the principal components of the covariance that these
    directions do not explain, applied to x as they are: made uncorrelated with the directions, they
    would take on their noise.

    Attributes:
        prior: how many samples Sigma_w counts for.
        shrink: weight of the identity beside Sigma_w, for rows that are samples (r = 1).
    """

    prior: float = 300.0
    shrink: float = 0.03
    name: str = "discriminant"
    needs_labels: bool = True
    needs_sample_means: bool = True
    reservoir: int = 0
    reducible: bool = True

    def __post_init__(self) -> None:
        check_number("prior", self.prior)
        check_number("shrink", self.shrink)

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The min(k, classes - 1) directions, rows of unit length, then components up to k."""
        samples = stats.samples
        if samples is None:
            raise ValueError("discriminant codes need class statistics of the samples' means")
        spectrum = stats.backend.eigh(self._metric(stats, samples), stats.notes)
        encoder = fisher_directions(stats, samples, spectrum, stats.threshold(spectrum[0]), k)
        latent = Latent.affine(stats, encoder, stats.mean)
        missing = k - encoder.shape[1]
        if missing > 0:
            rest, _ = components_of_rest(stats, latent, missing)
            latent = Latent.affine(stats, torch.cat((encoder, rest), dim=1), stats.mean)
        return latent

    def _metric(self, stats: LayerStatistics, samples: LayerStatistics) -> torch.Tensor:
        metric, r = samples.covariance, stats.n / samples.n
        weight = self.prior / samples.n
        if r > 1:
            metric = metric + weight * r / (r - 1) * (stats.covariance - metric)
        level = stats.covariance.diagonal(dim1=1, dim2=2).mean(dim=1)
        identity = torch.eye(stats.d, dtype=metric.dtype, device=metric.device)
        metric = metric + weight * self.shrink * level[:, None, None] * identity
        return (metric + metric.mT) / 2
