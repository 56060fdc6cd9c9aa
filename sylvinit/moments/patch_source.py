"""Adding patches of an activation to moments: random ones, or all by the cheapest route."""

from __future__ import annotations

from collections.abc import Callable
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
from sylvinit.moments.patch_lines import lines_are_cheaper
from sylvinit.moments.row_labels import NO_LABELS, LabelKind
from sylvinit.moments.rows import Rows
from sylvinit.moments.sampling import Key
from sylvinit.moments.streaming import PatchMoments
from sylvinit.moments.sums import LabelSums, RowSums

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
    labels: Tensor | None  # of the samples, or of all positions of each; known to be valid
    key: Key = (0, 0)  # of the random positions, see Rows.draw
    start: int = 0  # index of the first sample in the data
    patches: int | None = None  # per sample; None for all of them
    kind: LabelKind = NO_LABELS

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

    def taken(self, priorities: bool) -> Taken:
        """The patches that are taken, without those that have no label."""
        if self.patches is None and not priorities:
            return self._labeled(*self.rows.all_positions(), None)
        return self._labeled(*self.rows.draw(self.key, self.start, self.patches))

    def drawn(self, patches: int) -> Taken:
        """So many random patches of every sample, without those that have no label."""
        return self._labeled(*self.rows.draw(self.key, self.start, patches))

    def _labeled(
        self, sample: Tensor, entry: Tensor, position: Tensor, priority: Tensor | None
    ) -> Taken:
        kind, labels = self.kind, self.labels
        if labels is None:
            return Taken(sample, entry, position, priority, None, None)
        index = to_device(sample, labels.device)
        if kind.of_rows:
            number = self.rows.numbers(sample, entry, position)
            labels = labels[index, to_device(number, labels.device)]
        else:
            labels = labels[index]
        if kind.missing:
            kept = kind.present(labels)
            labels, there = labels[kept], kept.cpu()
            sample, entry, position = sample[there], entry[there], position[there]
            priority = None if priority is None else priority[there]
        weights = kind.weights_of(labels)
        return Taken(sample, entry, position, priority, labels, weights)


@dataclass(frozen=True)
class Taken:
    """Patches of an activation, by the sample, entry and output position of each."""

    sample: Tensor
    entry: Tensor
    position: Tensor
    priority: Tensor | None
    labels: Tensor | None
    weights: Tensor | None

    def part(self, begin: int, end: int) -> Taken:
        """Patches begin .. end - 1."""
        return Taken(*(None if x is None else x[begin:end] for x in vars(self).values()))  # type: ignore[arg-type]


def add_patches(moments: PatchMoments, source: PatchSource, arithmetic: str | None) -> None:
    """Add the patches of an activation to moments, whose features are tap-major.

    With ``arithmetic`` the patch_gram operator is used where it takes these patches.
    """
    if _correlation_fits(source, correlation_is_cheaper if arithmetic else lines_are_cheaper):
        _correlate(moments, source, arithmetic)
        if moments.reservoir_size:
            drawn = source.drawn(_RESERVOIR_DRAWS)
            gathered = source.gather(drawn.entry, drawn.position)
            if drawn.priority is not None:
                priority = to_device(drawn.priority, gathered.device)
                moments.offer(gathered, priority, drawn.labels)
    elif not (arithmetic and _add_fused(moments, source, arithmetic)):
        _add_gathered(moments, source)


def _correlation_fits(source: PatchSource, is_cheaper: Callable[..., bool]) -> bool:
    """Whether all patches are wanted, and cost least without forming them."""
    x, rows, geometry = source.x, source.rows, source.geometry
    if source.patches is not None or geometry is None:
        return False
    if not source.kind.plain or source.kind.targets:
        return False
    if rows.entries is not None or not bool((rows.counts == 1).all()):
        return False
    return is_cheaper(geometry, tuple(x.shape[2:]), x.shape[1] // source.groups)


def _add_gathered(moments: PatchMoments, source: PatchSource) -> None:
    x = source.x
    taken = source.taken(moments.reservoir_size > 0)
    n = len(taken.entry)
    step = max(1, n)
    if source.patches is None and source.geometry is not None:  # all patches: more than x itself
        features = source.features * source.groups
        step = max(1, _UNFOLD_BYTES // (features * max(x.itemsize, 4)))
    whole = source.geometry is None and source.rows.entries is None and n == len(x)
    for begin in range(0, n, step):
        part = taken.part(begin, begin + step)
        priority = part.priority
        moments.update(
            x if whole else source.gather(part.entry, part.position),
            part.labels,
            None if priority is None else to_device(priority, x.device),
            weights=part.weights,
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
    if moments.reservoir_size or source.kind.weights is not None or n == 0:
        return False
    accumulator = moments.accumulator
    if accumulator is None:
        if moments.n + n < moments.d_in:
            return False
        tap_major = x.ndim == 2 or x.stride(1) == 1
        accumulator = PatchAccumulator(
            moments.classes, moments.targets, tap_major=tap_major, arithmetic=arithmetic
        )
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
    if not can_fuse(x, layout, moments.classes + moments.targets):
        return False
    if each is not None and source.kind.plain and not moments.targets:
        accumulator.add(x, layout, source.labels)
    else:
        taken = source.taken(False)
        entry, position = to_device(taken.entry, x.device), to_device(taken.position, x.device)
        if len(entry):
            accumulator.add(x, layout, taken.labels, entry, position)
    if accumulator.n:
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
    labels = None
    if source.labels is None:
        sums = padded.sum(dim=0, dtype=torch.float64)
        total = by_group(window_sums(sums, geometry, out_size))
    else:
        per_entry = by_group(window_sums(padded.double(), geometry, out_size))
        one_hot = torch.nn.functional.one_hot(source.labels, moments.classes).double()
        labels = LabelSums(one_hot.sum(dim=0) * outputs, one_hot.T @ per_entry)
        total = per_entry.sum(dim=1)
    moments.add_sums(
        RowSums(
            x.shape[0] * outputs,
            total,
            correlation_gram(padded, geometry, out_size, groups, arithmetic),
            by_group(center.expand(geometry.taps, -1)),
            labels,
            unit_roundoff(arithmetic if padded.dtype == torch.float32 else None, padded.dtype),
        )
    )
