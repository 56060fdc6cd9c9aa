"""Collecting the input of a layer: from activations to moments, whatever runs the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from math import prod

import torch
from torch import Tensor

from sylvinit.backends import Backend
from sylvinit.backends.memory import memory_for, to_device
from sylvinit.distributed import Message
from sylvinit.errors import LabelError, ModelError
from sylvinit.model.geometry import PatchGeometry
from sylvinit.model.layer import Layer
from sylvinit.moments.all_patches import pad_channels_last, window_sums
from sylvinit.moments.packing import pack_moments, unpack_moments
from sylvinit.moments.patch_source import PatchSource, add_patches
from sylvinit.moments.row_labels import NO_LABELS, LabelKind, fit_positions
from sylvinit.moments.row_sample import RowSample
from sylvinit.moments.rows import (
    BATCH_FIRST,
    RowRule,
    Rows,
    RowToSample,
    assign_rows,
    rows_of_nobody,
    rows_without_owner,
)
from sylvinit.moments.sampling import stream_key
from sylvinit.moments.statistics import LayerStatistics, layer_statistics
from sylvinit.moments.streaming import PatchMoments, product_precision


@dataclass
class InputCollector:
    """Moments of the input of one weight, over all its layers, calls and microbatches."""

    name: str
    patches: int | None  # random patches (or rows) of every sample; None for all
    seed: int
    labels: LabelKind = NO_LABELS
    reservoir: int = 0  # most rows that are kept as a random sample; 0 for none
    sample_means: bool = False  # keep moments of the mean row of every sample, too
    per_channel: bool = False  # every channel is a group of its own
    row_to_sample: RowToSample | None = None
    arithmetic: str | None = None  # of the patch_gram operator; None does without
    precision: torch.dtype | None = None  # of the products; None: by the rows
    sample: RowSample | None = None  # takes rows with their labels, too
    moments: PatchMoments | None = field(default=None, init=False)  # features tap-major
    dtype: torch.dtype = field(default=torch.float64, init=False)  # the coarsest of all inputs
    raw: bool = field(default=True, init=False)  # whether all inputs were the data as they came
    ownerless: bool = field(default=False, init=False)  # whether nobody knew whose some rows are
    note: str = field(default="", init=False)  # on how labels met the rows
    _means: PatchMoments | None = field(default=None, init=False)
    _kernel: tuple[int, ...] = field(default=(), init=False)

    def add(
        self,
        layer: Layer,
        x: Tensor,
        call: int,
        out_size: tuple[int, ...],
        *,
        size: int,
        start: int,
        labels: Tensor | None = None,
        rule: RowRule | None = BATCH_FIRST,
        mask: Tensor | None = None,
        raw: bool = False,
    ) -> None:
        """Add the rows or patches of one microbatch at one call.

        Args:
            x: input of the layer, (entries, channels, *spatial), or rows (..., features).
            call: index of the call of the layer's module in this forward.
            out_size: spatial size of the layer's output, () for rows.
            size, start: number of samples, and index of the first one in the stream of data.
            labels: as their :class:`LabelKind` says, known to be valid; needed if there is one.
            rule: which rows are whose; None: nobody knows, so all are taken.
            mask: bool (size, length), True for real tokens.
            raw: whether ``x`` holds the data as they came.

        Raises:
            RowLayoutError: labels are needed, and nobody knows whose the rows are.
            LabelError: labels of rows do not fit the rows.
        """
        geometry = layer.geometry
        rows = assign_rows(
            layer.name,
            x,
            size,
            features=1 if geometry is None else x.ndim - 1,
            width=prod(out_size),
            rule=rule,
            mask=mask,
            row_to_sample=self.row_to_sample,
        )
        patches = self.patches
        self.ownerless |= rows is None
        if rows is None:
            if self.labels:
                raise rows_without_owner(layer.name, tuple(x.shape))
            count = x[..., 0].numel() if geometry is None else len(x)
            rows, patches = rows_of_nobody(count, size, prod(out_size)), None
        if labels is not None and self.labels.of_rows:
            labels = self._fitted(layer, labels, rows, tuple(x.shape[1:-1]), out_size)
        groups = x.shape[1] if self.per_channel else layer.groups
        if geometry is None:
            x, groups = x.reshape(-1, x.shape[-1]), 1
        else:
            self._kernel = geometry.kernel
        key = stream_key(self.seed, layer.name, call)
        source = PatchSource(
            x, geometry, groups, out_size, rows, labels, key, start, patches, self.labels
        )
        if self.moments is None:
            precision = self.precision
            precision = precision or product_precision(x.dtype, source.features * groups)
            kind = self.labels
            sizes = {"groups": groups, "classes": kind.classes, "targets": kind.targets}
            self.moments = PatchMoments(
                source.features, **sizes, reservoir=self.reservoir, precision=precision
            )
            if self.sample_means:
                self._means = PatchMoments(source.features, **sizes, precision=precision)
        if self.sample is not None:
            self.sample.add(source)
        add_patches(self.moments, source, self.arithmetic)
        if self._means is not None:
            add_sample_means(self._means, source)
        if torch.finfo(x.dtype).eps > torch.finfo(self.dtype).eps:
            self.dtype = x.dtype
        self.raw = self.raw and raw

    @property
    def count(self) -> int:
        """Rows or patches collected."""
        return 0 if self.moments is None else self.moments.n

    def packed(self, total: int) -> Message:
        """Everything collected, for :meth:`merge` elsewhere, where all have ``total`` rows.

        Single rows are in it where these are fewer than features.
        """
        held = [m for m in (self.moments, self._means) if m is not None]
        few = self.moments is not None and total < self.moments.d_in
        parts = [pack_moments(m, rows=few) for m in held]
        if self.sample is not None:
            parts.append(self.sample.packed())
        meta = {
            "moments": [(part.meta, len(part.tensors)) for part in parts],
            "plain": (self.dtype, self.raw, self.note, self._kernel),
        }
        return Message(meta, [x for part in parts for x in part.tensors])

    def merge(self, message: Message, device: torch.device) -> None:
        """Add what another process has collected, of the samples that follow, on a device."""
        tensors = iter(message.tensors)
        parts = [Message(meta, list(islice(tensors, n))) for meta, n in message.meta["moments"]]
        if self.sample is not None:
            self.sample.merge(parts.pop(), device)
        if not parts:
            return
        theirs = [unpack_moments(part, device) for part in parts]
        dtype, raw, note, kernel = message.meta["plain"]
        if self.moments is None:
            self.moments, self._kernel = theirs[0], kernel
            self._means = theirs[1] if self.sample_means else None
        else:
            self.moments.merge(theirs[0])
            if self._means is not None:
                self._means.merge(theirs[1])
        self.dtype = max(self.dtype, dtype, key=lambda x: torch.finfo(x).eps)
        self.raw, self.note = self.raw and raw, self.note or note

    def _fitted(
        self,
        layer: Layer,
        labels: Tensor,
        rows: Rows,
        axes: tuple[int, ...],
        out_size: tuple[int, ...],
    ) -> Tensor:
        """Labels of rows (samples, rows) or (samples, rows, targets)."""
        lengths = rows.lengths()
        each = int(lengths.max(initial=0))
        if bool((lengths != each).any()):
            raise LabelError(
                f"labels of rows need samples with equally many rows in layer {layer.name}, got "
                f"{lengths.min()} to {each}"
            )
        size = axes if layer.geometry is None and prod(axes) == each else out_size or (each,)
        resample = layer.geometry is not None or len(size) > 1
        labels, note = fit_positions(labels, self.labels, layer.name, each, size, resample)
        self.note = note or self.note
        return labels

    def statistics(self, backend: Backend, reduce: bool) -> LayerStatistics | None:
        """Everything collected, features in the order of a weight; None if it is not finite.

        With ``reduce``, they are in a basis of the rows' span where rows are fewer than features.

        Raises:
            ModelError: nothing was collected.
            DeviceMemoryError: there is no memory for it.
        """
        if self.moments is None:
            raise ModelError(
                f"layer {self.name} received no rows from the data; give more samples, or leave it "
                "out with exclude="
            )
        held = [self.moments] if self._means is None else [self.moments, self._means]
        # Where rows are fewer than features, they and their means stay as they are.
        few = reduce and self.moments.n < self.moments.d_in
        size = sum(8 * m.groups * m.d_in * (m.n if few else m.d_in) for m in held)
        with memory_for(f"the moments of {self.name}", size):
            # Features are gathered taps first; a weight has channels first.
            kernel = self._kernel
            moments, *means = (m.transposed(prod(kernel)) if kernel else m for m in held)
            stats = layer_statistics(
                moments,
                backend,
                sample_means=means[0] if means else None,
                reduce=reduce,
                kernel=kernel,
                raw=self.raw,
            )
            return stats if stats.is_finite() else None


def add_sample_means(means: PatchMoments, source: PatchSource) -> None:
    """Add the mean of the patches taken of every sample, as one row with its label.

    Samples without any (all of them padding) add nothing.
    """
    geometry = source.geometry
    whole = source.patches is None and source.kind.plain
    each = source.rows.entries_of_each() if whole else None
    if each is not None and geometry is not None and not geometry.transposed:
        average = _window_means(source, geometry, each)
        means.update(average, source.labels, labels_checked=True)
        return
    taken = source.taken(False)
    if not len(taken.sample):
        return
    present, lengths = taken.sample.unique_consecutive(return_counts=True)
    gathered = source.gather(taken.entry, taken.position)
    gathered = gathered.to(torch.promote_types(gathered.dtype, torch.float32))
    labels = source.labels
    labels = None if labels is None else labels[to_device(present, labels.device)]
    means.update(_means_of_runs(gathered, lengths), labels, labels_checked=True)


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
