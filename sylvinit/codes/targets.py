"""Codes that are targets: k-means similarities and one-hot labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sylvinit.codes.code import Latent
from sylvinit.moments.statistics import LayerStatistics


@dataclass(frozen=True)
class KMeans:
    """Inner products with cluster centres, S = H^T X, H from scikit-learn's k-means on a sample."""

    reservoir: int = 10_000
    max_iter: int = 50
    name: str = "kmeans"
    needs_labels: bool = False
    reducible: bool = True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The min(k, distinct rows of the sample) centres of every group."""
        # Here and not above: importing scikit-learn takes longer than the rest of the package.
        from sklearn.cluster import KMeans as SklearnKMeans

        if stats.reservoir is None:
            raise ValueError("k-means needs a reservoir of rows")
        encoder = stats.mean.new_zeros((stats.groups, k, stats.d))
        for index in range(stats.groups):
            sample = stats.reservoir[index].double().cpu()
            distinct = len(torch.unique(sample, dim=0))
            count = min(k, distinct)
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
