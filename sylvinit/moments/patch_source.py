"""Adding patches of an activation to moments: sampled ones, or all by the cheapest route."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from sylvinit.backends.memory import to_device
from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.all_patches import (
    correlation_gram,
    correlation_is_cheaper,
    pad_channels_last,
    window_sums,
)
from sylvinit.moments.device_sums import PatchAccumulator, can_fuse
from sylvinit.moments.fused import unit_roundoff
from sylvinit.moments.fused_layout import PatchLayout
from sylvinit.moments.gather import gather_patches
from sylvinit.moments.rows import Rows
from sylvinit.moments.sampling import Key
from sylvinit.moments.streaming import PatchMoments
from sylvinit.moments.sums import RowSums

_UNFOLD_BYTES = 16 * 2**20
# Patches per sample that feed a reservoir where the moments themselves need none gathered.
_RESERVOIR_DRAWS = 10
# Rows that nobody else will change, with labels that whoever made the source has checked.
_OURS = {"copy": False, "labels_checked": True}


@dataclass(frozen=True)
class PatchSource:
    """An activation and how a layer reads it.

    Attributes:
        x: (entries, channels, *spatial), any strides; or rows (entries, features).
        geometry: which pixels a patch reads; None for rows.
        groups: channel groups.
        out_size: spatial size of the layer's output.
        rows: which entries belong to which sample.
        labels: int64 (samples,), known to be valid, or None.
    """

    x: Tensor
    geometry: PatchGeometry | None
    groups: int
    out_size: tuple[int, ...]
    rows: Rows
    labels: Tensor | None

    @property
    def features(self) -> int:
        """Length of a patch."""
        taps = 1 if self.geometry is None else self.geometry.taps
        return self.x.shape[1] // self.groups * taps

    def gather(self, entry: Tensor, position: Tensor) -> Tensor:
        """Patches (groups, n, taps * channels), features tap-major."""
        device = self.x.device
        if self.geometry is None:
            return self.x.index_select(0, to_device(entry, device))[None]
        patches = gather_patches(
            self.x,
            self.geometry,
            to_device(entry, device),
            to_device(position, device),
            self.out_size,
        )
        n, taps, channels = patches.shape
        split = patches.view(n, taps, self.groups, channels // self.groups)
        return split.permute(2, 0, 1, 3).reshape(self.groups, n, -1)

    def labels_of(self, sample: Tensor) -> Tensor | None:
        """The label of every row, given its sample."""
        return None if self.labels is None else self.labels[to_device(sample, self.labels.device)]


def add_sampled(
    moments: PatchMoments,
    source: PatchSource,
    key: Key,
    start: int,
    patches: int,
    arithmetic: str | None,
) -> None:
    """Add ``patches`` random patches of every sample; see :mod:`sylvinit.moments.sampling`.

    Args:
        arithmetic: of the patch_gram operator, used where it takes these patches; None: it is not.
    """
    if arithmetic and _add_fused(moments, source, key, start, patches, arithmetic):
        return
    sample, entry, position, priority = source.rows.draw(key, start, patches)
    gathered = source.gather(entry, position)
    labels = source.labels_of(sample)
    moments.update(gathered, labels, to_device(priority, gathered.device), **_OURS)


def add_rows(
    moments: PatchMoments,
    source: PatchSource,
    key: Key,
    start: int,
    patches: int | None,
    arithmetic: str | None,
) -> None:
    """Add ``patches`` random rows of every sample, or all (None), of an input without taps."""
    if arithmetic and _add_fused(moments, source, key, start, patches or 0, arithmetic):
        return
    x, rows = source.x, source.rows
    if patches is None and not moments.reservoir_size:
        sample, entry, _ = rows.all_positions()
        priority = None
    else:
        sample, entry, _, priority = rows.draw(key, start, patches)
        priority = to_device(priority, x.device)
    whole = rows.entries is None and (patches is None or int(rows.counts.max()) <= patches)
    taken = x if whole else x.index_select(0, to_device(entry, x.device))
    moments.update(taken, source.labels_of(sample), priority, copy=whole, labels_checked=True)


def add_all(
    moments: PatchMoments, source: PatchSource, key: Key, start: int, arithmetic: str | None
) -> None:
    """Add every patch: by shifted correlations where that takes fewer flops, else by unfolding."""
    x, rows, geometry = source.x, source.rows, source.geometry
    plain = rows.entries is None and bool((rows.counts == 1).all())
    if geometry is not None and plain:
        plain = correlation_is_cheaper(geometry, tuple(x.shape[2:]), x.shape[1] // source.groups)
    if geometry is None or not plain:
        if not (arithmetic and _add_fused(moments, source, key, start, 0, arithmetic)):
            _unfold(moments, source, key, start)
        return
    _correlate(moments, source, geometry, arithmetic)
    if moments.reservoir_size:
        sample, entry, position, priority = rows.draw(key, start, _RESERVOIR_DRAWS)
        gathered = source.gather(entry, position)
        moments.offer(gathered, to_device(priority, x.device), source.labels_of(sample))


def _add_fused(
    moments: PatchMoments,
    source: PatchSource,
    key: Key,
    start: int,
    draws: int,
    arithmetic: str,
) -> bool:
    """Add patches by the patch_gram operator; False, with nothing done, where it does not fit.

    It does not where the rows themselves are wanted: for a reservoir, and while there are fewer of
    them than features.
    """
    rows, x = source.rows, source.x
    counts = rows.counts * rows.width
    n = int((counts if draws == 0 else np.minimum(counts, draws)).sum())
    if moments.reservoir_size or n == 0:
        return False
    if moments.accumulator is None and moments.n + n < moments.d_in:
        return False
    accumulator = moments.accumulator
    if accumulator is None:
        neighbours = x.ndim == 2 or x.stride(1) == 1
        accumulator = PatchAccumulator(moments.classes, tap_major=neighbours, arithmetic=arithmetic)
    elif not isinstance(accumulator, PatchAccumulator):
        return False
    each = rows.entries_of_each()
    layout = PatchLayout.of(
        source.geometry,
        source.out_size,
        source.groups,
        tap_major=accumulator.tap_major,
        entries_per_sample=1 if each is None else each,
        first_sample=start,
        draws=draws,
        key=key,
    )
    if not can_fuse(x, layout, moments.classes):
        return False
    if each is not None:
        accumulator.add(x, layout, source.labels)
    else:
        sample, entry, position, _ = rows.draw(key, start, draws or None)
        entry, position = to_device(entry, x.device), to_device(position, x.device)
        accumulator.add(x, layout, source.labels_of(sample), entry, position)
    moments.accumulator = accumulator
    return True


def _unfold(moments: PatchMoments, source: PatchSource, key: Key, start: int) -> None:
    """Gather all patches, a bounded number of bytes at a time."""
    priority = None
    if moments.reservoir_size:
        sample, entry, position, priority = source.rows.draw(key, start, None)
        priority = to_device(priority, source.x.device)
    else:
        sample, entry, position = source.rows.all_positions()
    features = source.features * source.groups
    step = max(1, _UNFOLD_BYTES // (features * max(source.x.itemsize, 4)))
    for begin in range(0, len(entry), step):
        part = slice(begin, begin + step)
        gathered = source.gather(entry[part], position[part])
        chosen = None if priority is None else priority[part]
        moments.update(gathered, source.labels_of(sample[part]), chosen, **_OURS)


def _correlate(
    moments: PatchMoments, source: PatchSource, geometry: PatchGeometry, arithmetic: str | None
) -> None:
    """All patches at once, about the mean of every channel."""
    groups, out_size = source.groups, source.out_size
    x = source.x.to(torch.promote_types(source.x.dtype, torch.float32))
    padded = pad_channels_last(x, geometry)
    centre = padded.mean(dim=tuple(range(padded.ndim - 1)))
    padded = padded - centre

    def by_group(sums: Tensor) -> Tensor:
        """(..., taps, channels) -> (groups, ..., taps * channels / groups)."""
        return sums.unflatten(-1, (groups, -1)).movedim(-2, 0).flatten(-2)

    outputs = prod(out_size)
    counts = class_totals = None
    if source.labels is None:
        sums = padded.sum(dim=0, dtype=torch.float64)
        total = by_group(window_sums(sums, geometry, out_size))
    else:
        per_entry = by_group(window_sums(padded.double(), geometry, out_size))
        one_hot = torch.nn.functional.one_hot(source.labels, moments.classes).double()
        counts, class_totals = one_hot.sum(dim=0) * outputs, one_hot.T @ per_entry
        total = per_entry.sum(dim=1)
    moments.add_sums(
        RowSums(
            x.shape[0] * outputs,
            total,
            correlation_gram(padded, geometry, out_size, groups, arithmetic),
            by_group(centre.expand(geometry.taps, -1)),
            counts,
            class_totals,
            unit_roundoff(arithmetic if padded.dtype == torch.float32 else None, padded.dtype),
        )
    )
