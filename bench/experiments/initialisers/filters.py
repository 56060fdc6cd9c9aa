"""Filters from the inputs of a layer: principal components and clusters of its patches.

As in Krähenbühl et al., "Data-dependent initializations of convolutional neural networks", ICLR
2016, section 3.1, and in their code (github.com/philkr/magic_init).
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from sylvinit.errors import ModelError

Basis = Literal["pca", "kmeans"]
_RANK_TOLERANCE = 1e-6  # of the largest variance: below, a direction is rounding of the activations


def input_patches(
    layer: nn.Module, x: Tensor, per_sample: int, generator: torch.Generator
) -> Tensor:
    """Random patches of the input ``x`` of a layer, for each group of its channels.

    Args:
        layer: Conv2d or Linear.
        x: its input.
        per_sample: patches of a sample, drawn with replacement; all if there are no more.
        generator: of the positions, on the CPU.

    Returns:
        (groups, patches, features), float64, features in the order of the flattened weight.

    Raises:
        ModelError: the layer is of another kind.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).double()
    if not isinstance(layer, nn.Conv2d):
        raise ModelError(f"only Conv2d and Linear have patches here, got {type(layer).__name__}")
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    found: list[Tensor] = []
    for images in x.split(32):  # all patches of few images at a time: they take much memory
        patches = F.unfold(
            images, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
        ).mT
        positions = patches.shape[1]
        if positions > per_sample:
            drawn = torch.randint(positions, (len(images), per_sample), generator=generator)
            rows = torch.arange(len(images))[:, None]
            patches = patches[rows.to(x.device), drawn.to(x.device)]
        found.append(patches.flatten(0, 1).double())
    return torch.cat(found).unflatten(1, (layer.groups, -1)).transpose(0, 1)


def make_filters(
    patches: Tensor, count: int, basis: Basis, seed: int, generator: torch.Generator
) -> Tensor:
    """Filters for one group of channels, of any scale.

    "pca" takes the directions of largest variance; "kmeans" the centres of clusters of the whitened
    patches, each divided by its length, mapped back to patches. Where there are fewer directions of
    any variance than filters, the rest of the filters is drawn from a normal distribution (what the
    authors' code does for all of them if there are fewer patches than filters).

    Args:
        patches: (patches, features), float64.
        count: how many.
        basis: which.
        seed: of the clusters' first centres.
        generator: of the rest, on the CPU.

    Returns:
        (count, features), float64.
    """
    centred = patches - patches.mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.mT @ centred / len(patches))
    # The largest first.
    variances, directions = variances.flip(0)[:count], directions.flip(1)[:, :count]
    rank = int((variances > _RANK_TOLERANCE * variances[0].clamp(min=1e-30)).sum())
    variances, directions = variances[:rank], directions[:, :rank]
    if basis == "pca":
        filters = directions.mT
    elif rank == 0 or len(patches) < count:
        filters = directions.mT[:0]
    else:
        whitened = F.normalize(centred @ directions / variances.sqrt(), dim=1)
        filters = _centres(whitened, count, seed) / variances.sqrt() @ directions.mT
    rest = torch.randn(
        (count - len(filters), patches.shape[1]), generator=generator, dtype=torch.float64
    )
    return torch.cat((filters, rest.to(filters.device)))


def _centres(points: Tensor, count: int, seed: int) -> Tensor:
    """k-means as the authors': mini-batches of ten points a cluster."""
    clusters = MiniBatchKMeans(count, batch_size=10 * count, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters.fit(points.cpu().numpy())
    return torch.from_numpy(clusters.cluster_centers_).to(points)
