"""Codes that are targets: similarities to k-means centers, and one-hot labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sylvinit.checks import check_count, check_number
from sylvinit.codes.code import Latent
from sylvinit.moments.statistics import LayerStatistics


@dataclass(frozen=True)
class KMeans:
    """Inner products with cluster centers, S = H^T X, H from scikit-learn's k-means on a sample."""

    reservoir: int = 10_000
    max_iter: int = 50
    name: str = "kmeans"
    needs_labels: bool = False
    reducible: bool = True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The min(k, distinct rows of the sample) centers of every group."""
        # Here and not above: importing scikit-learn takes longer than the rest of the package.
        from sklearn.cluster import KMeans as SklearnKMeans

        if stats.reservoir is None:
            raise ValueError("k-means needs a reservoir of rows")
        encoder = stats.mean.new_zeros((stats.groups, k, stats.d))
        for index in range(stats.groups):
            sample = stats.reservoir[index].double().cpu()
            count = min(k, len(torch.unique(sample, dim=0)))
            means = SklearnKMeans(
                count, n_init=1, max_iter=self.max_iter, random_state=seed % 2**32
            ).fit(sample.numpy())
            encoder[index, :count] = torch.from_numpy(means.cluster_centers_).to(stats.mean)
        return Latent.affine(stats, encoder)


@dataclass(frozen=True)
class OneHot:
    """One-hot labels: A = diag(class frequencies), E[s x^T] from the class means."""

    name: str = "onehot"
    needs_labels: bool = True
    reservoir: int = 0
    reducible: bool = True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """One entry per class, min(k, classes) of them; group g holds k classes from g k on."""
        if stats.class_counts is None or stats.class_means is None:
            raise ValueError("one-hot codes need class statistics")
        classes = len(stats.class_counts)
        k = min(k, classes)
        index = torch.arange(stats.groups)[:, None] * k + torch.arange(k)
        index = index.to(stats.mean.device)
        share = torch.where(index < classes, stats.class_counts[index % classes], 0.0) / stats.n
        means = stats.class_means.gather(1, (index % classes)[:, :, None].expand(-1, -1, stats.d))
        return Latent(torch.diag_embed(share), share[:, :, None] * means, share, None)


@dataclass(frozen=True)
class Logistic(OneHot):
    """One-hot labels, and for a head with a bias their likelihood in place of squared distances.

    A head starts as the classifier of Gaussian classes with one covariance, its ridge chosen by the
    leave-one-out error (:mod:`sylvinit.solve.gaussian_classes`), and takes a few steps towards the
    maximum of the likelihood (:mod:`sylvinit.solve.logistic_steps`); lam has no part in it. Other
    layers, heads without a bias and grouped ones are solved as with :class:`OneHot`, and their
    reports say so.

    Attributes:
        strength: how many rows the start counts as, for each feature (tau = strength * d, d the
            smaller of the numbers of features and rows). The fewer rows there are for a feature,
            the nearer the classifier stays to its start.
        steps: number of steps.
        reservoir: most rows that the classifier is fitted to; of more a random sample is taken.

    Raises:
        OptionError, OptionTypeError: strength is not positive, or steps not a whole number of at
            least 1.
    """

    strength: float = 0.5
    steps: int = 20
    name: str = "logistic"
    reservoir: int = 10_000

    def __post_init__(self) -> None:
        check_number("strength", self.strength, positive=True)
        check_count("steps", self.steps)
