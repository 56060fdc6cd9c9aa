"""Adding patches of an activation to moments: random ones, or all by the cheapest route."""

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


@dataclass(frozen=True)
class PatchSource:
    """An activation, how a layer reads it, and which patches of it are taken."""

    x: Tensor  # (entries, channels, *spatial), any strides; or rows (entries, features)
    geometry: PatchGeometry | None  # None for rows, which are patches of one pixel
    groups: int
    out_size: tuple[int, ...]  # spatial size of the layer's output; () for rows
    rows: Rows
    labels: Tensor | None  # int64 (samples,), known to be valid
    key: Key = (0, 0)  # of the random positions, see Rows.draw
    start: int = 0  # index of the first sample in the data
    patches: int | None = None  # per sample; None for all of them

    @property
    def features(self) -> int:
        """Length of a patch."""
        taps = 1 if self.geometry is None else self.geometry.taps
        return self.x.shape[1] // self.groups * taps

    def gather(self, entry: Tensor, position: Tensor) -> Tensor:
        """Patches (groups, n, taps * channels), features tap-major."""
        x, entry = self.x, to_device(entry, self.x.device)
        if self.geometry is None:
            return x.index_select(0, entry)[None]
        position = to_device(position, x.device)
        patches = gather_patches(x, self.geometry, entry, position, self.out_size)
        n, taps, channels = patches.shape
        split = patches.view(n, taps, self.groups, channels // self.groups)
        return split.permute(2, 0, 1, 3).reshape(self.groups, n, -1)

    def positions(self, priorities: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(sample, entry, position, priority) of the patches taken; priority may be None."""
        if self.patches is None and not priorities:
            return *self.rows.all_positions(), None
        return self.rows.draw(self.key, self.start, self.patches)

    def labels_of(self, sample: Tensor) -> Tensor | None:
        """The label of every row, given its sample."""
        return None if self.labels is None else self.labels[to_device(sample, self.labels.device)]


def add_patches(moments: PatchMoments, source: PatchSource, arithmetic: str | None) -> None:
    """Add the patches of an activation to moments, whose features are tap-major.

    With ``arithmetic`` the patch_gram operator is used where it takes these patches.
    """
    if _correlation_fits(source):
        _correlate(moments, source, arithmetic)
        if moments.reservoir_size:
            drawn = source.rows.draw(source.key, source.start, _RESERVOIR_DRAWS)
            sample, entry, position, priority = drawn
            gathered = source.gather(entry, position)
            moments.offer(gathered, to_device(priority, gathered.device), source.labels_of(sample))
    elif not (arithmetic and _add_fused(moments, source, arithmetic)):
        _add_gathered(moments, source)


def _correlation_fits(source: PatchSource) -> bool:
    """Whether all patches are wanted, and cost least by shifted correlations."""
    x, rows, geometry = source.x, source.rows, source.geometry
    if source.patches is not None or geometry is None:
        return False
    if rows.entries is not None or not bool((rows.counts == 1).all()):
        return False
    return correlation_is_cheaper(geometry, tuple(x.shape[2:]), x.shape[1] // source.groups)


def _add_gathered(moments: PatchMoments, source: PatchSource) -> None:
    x = source.x
    sample, entry, position, priority = source.positions(moments.reservoir_size > 0)
    priority = None if priority is None else to_device(priority, x.device)
    step = max(1, len(entry))
    if source.patches is None and source.geometry is not None:  # all patches: more than x itself
        features = source.features * source.groups
        step = max(1, _UNFOLD_BYTES // (features * max(x.itemsize, 4)))
    whole = source.geometry is None and source.rows.entries is None and len(entry) == len(x)
    for begin in range(0, len(entry), step):
        part = slice(begin, begin + step)
        moments.update(
            x if whole else source.gather(entry[part], position[part]),
            source.labels_of(sample[part]),
            None if priority is None else priority[part],
            copy=whole,
            labels_checked=True,
        )


def _add_fused(moments: PatchMoments, source: PatchSource, arithmetic: str) -> bool:
    """Add patches by the patch_gram operator; False, with nothing done, where it cannot be used.

    It cannot where the rows themselves are wanted: for a reservoir, or while they are fewer than
    features.
    """
    rows, x = source.rows, source.x
    draws, counts = source.patches or 0, rows.counts * rows.width
    n = int((counts if draws == 0 else np.minimum(counts, draws)).sum())
    if moments.reservoir_size or n == 0:
        return False
    accumulator = moments.accumulator
    if accumulator is None:
        if moments.n + n < moments.d_in:
            return False
        tap_major = x.ndim == 2 or x.stride(1) == 1
        accumulator = PatchAccumulator(moments.classes, tap_major=tap_major, arithmetic=arithmetic)
    each = rows.entries_of_each()
    layout = PatchLayout.of(
        source.geometry,
        source.out_size,
        source.groups,
        tap_major=accumulator.tap_major,
        entries_per_sample=1 if each is None else each,
        first_sample=source.start,
        draws=draws,
        key=source.key,
    )
    if not can_fuse(x, layout, moments.classes):
        return False
    if each is not None:
        accumulator.add(x, layout, source.labels)
    else:
        sample, entry, position, _ = source.positions(False)
        entry, position = to_device(entry, x.device), to_device(position, x.device)
        accumulator.add(x, layout, source.labels_of(sample), entry, position)
    moments.accumulator = accumulator
    return True


def _correlate(moments: PatchMoments, source: PatchSource, arithmetic: str | None) -> None:
    """Add all patches at once, about the mean of every channel."""
    geometry, groups, out_size = source.geometry, source.groups, source.out_size
    if geometry is None:
        raise TypeError("rows have no taps to correlate")
    x = source.x.to(torch.promote_types(source.x.dtype, torch.float32))
    padded = pad_channels_last(x, geometry)
    center = padded.mean(dim=tuple(range(padded.ndim - 1)))
    padded = padded - center

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
            by_group(center.expand(geometry.taps, -1)),
            counts,
            class_totals,
            unit_roundoff(arithmetic if padded.dtype == torch.float32 else None, padded.dtype),
        )
    )
