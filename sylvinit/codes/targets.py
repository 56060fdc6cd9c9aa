"""Codes that are targets: similarities to k-means centers, one-hot labels, given numbers."""

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
        shares = stats.class_shares()
        share = torch.where(index < classes, shares[index % classes], 0.0)
        means = stats.class_means.gather(1, (index % classes)[:, :, None].expand(-1, -1, stats.d))
        return Latent(share, share[:, :, None] * means, share, None)


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


@dataclass(frozen=True)
class Targets:
    """Given numbers: A = E[s s^T] and E[s x^T] of the targets s, one for every output of the head.

    The head is the solution of the paper's equation with these (eq. 2). Targets that are no
    classes are standardized by whoever collects their moments, and mapped back into the weights.
    """

    name: str = "targets"
    needs_labels: bool = True
    needs_targets: bool = True
    reservoir: int = 0
    reducible: bool = True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """One entry per target; group g holds k targets from g k on."""
        found = stats.targets
        if found is None or len(found.mean) != stats.groups * k:
            raise ValueError("targets need their moments, and an output for each")
        groups = range(stats.groups)
        part = [slice(g * k, (g + 1) * k) for g in groups]
        return Latent(
            torch.stack([found.second[p, p] for p in part]),
            torch.stack([found.cross[g, p] for g, p in zip(groups, part, strict=True)]),
            torch.stack([found.mean[p] for p in part]),
            None,
        )


@dataclass(frozen=True)
class Ridge(Targets):
    """Given numbers, by ridge regression in place of the paper's equation.

    The counterpart of :class:`Logistic` for features that come from elsewhere: for every target the
    ridge of least leave-one-out error (:mod:`sylvinit.solve.ridge`); lam has no part in it. Heads
    without a bias and grouped ones are solved as with :class:`Targets`, and their reports say so.

    Attributes:
        reservoir: most rows whose leave-one-out errors choose the ridge; of more a random sample.
    """

    name: str = "ridge"
    reservoir: int = 4000
