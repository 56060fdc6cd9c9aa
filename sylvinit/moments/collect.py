"""The mean patch (or row) of every sample."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.all_patches import pad_channels_last, window_sums
from sylvinit.moments.patch_source import PatchSource
from sylvinit.moments.sampling import Key
from sylvinit.moments.streaming import PatchMoments


def add_sample_means(
    means: PatchMoments, source: PatchSource, key: Key, start: int, patches: int | None
) -> int:
    """Add the mean of the rows that are drawn from every sample, as one row with its label.

    The rows are those that :func:`sylvinit.moments.patch_source.add_sampled` draws for the same key.
    Samples without rows (all of them padding) add nothing.

    Args:
        means: what to add to; its features are tap-major.
        source: the activation.
        key, start: of the random positions.
        patches: draws per sample; None takes every position once.

    Returns:
        How many rows the means are taken of.
    """
    geometry, rows = source.geometry, source.rows
    each = rows.entries_of_each()
    if patches is None and geometry is not None and each is not None and not geometry.transposed:
        average = _window_means(source, geometry, each)
        means.update(average, source.labels, labels_checked=True)
        return average.shape[1] * each * rows.width
    sample, entry, position = (
        rows.all_positions() if patches is None else rows.draw(key, start, patches)[:3]
    )
    if not len(sample):
        return 0
    present, lengths = sample.unique_consecutive(return_counts=True)
    gathered = source.gather(entry, position)
    gathered = gathered.to(torch.promote_types(gathered.dtype, torch.float32))
    means.update(_means_of_runs(gathered, lengths), source.labels_of(present), labels_checked=True)
    return len(sample)


def _means_of_runs(x: Tensor, lengths: Tensor) -> Tensor:
    """Means of successive rows of x (groups, rows, d), so many each."""
    if bool((lengths == lengths[0]).all()):
        return x.unflatten(1, (len(lengths), -1)).mean(dim=2)  # sums pairwise
    # In a fixed order, but one after the other: float32 would lose what tells long samples apart.
    sums = torch.segment_reduce(x.movedim(1, 0).double(), "mean", lengths=lengths.to(x.device))
    return sums.movedim(0, 1).to(x.dtype)


def _window_means(source: PatchSource, geometry: PatchGeometry, each: int) -> Tensor:
    """Mean over all patches of ``each`` entries a sample, (groups, samples, taps * channels)."""
    x = source.x.to(torch.promote_types(source.x.dtype, torch.float32))
    sums = window_sums(pad_channels_last(x, geometry), geometry, source.out_size)
    sums = (sums.unflatten(0, (-1, each)).mean(dim=1) / prod(source.out_size)).to(x.dtype)
    return sums.unflatten(-1, (source.groups, -1)).movedim(-2, 0).flatten(-2)
