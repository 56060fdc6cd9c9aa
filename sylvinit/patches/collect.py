"""Adding patches of an activation to moments: sampled ones, or all by the cheapest route."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from sylvinit.backends import choose
from sylvinit.errors import DataError, LabelError, OptionError
from sylvinit.moments import PatchMoments
from sylvinit.patches.accumulator import PatchAccumulator, can_fuse
from sylvinit.patches.correlate import (
    correlation_gram,
    correlation_is_cheaper,
    pad_channels_last,
    window_sums,
)
from sylvinit.patches.gather import gather_patches
from sylvinit.patches.geometry import PADDING_MODES, PatchGeometry
from sylvinit.patches.layout import PatchLayout
from sylvinit.patches.rows import Rows
from sylvinit.sampling import Key, stream_key
from sylvinit.sums import RowSums

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
            return self.x.index_select(0, entry.to(device))[None]
        patches = gather_patches(
            self.x, self.geometry, entry.to(device), position.to(device), self.out_size
        )
        n, taps, channels = patches.shape
        split = patches.view(n, taps, self.groups, channels // self.groups)
        return split.permute(2, 0, 1, 3).reshape(self.groups, n, -1)

    def labels_of(self, sample: Tensor) -> Tensor | None:
        """The label of every row, given its sample."""
        return None if self.labels is None else self.labels[sample.to(self.labels.device)]


def add_sampled(
    moments: PatchMoments, source: PatchSource, key: Key, start: int, patches: int, fused: bool
) -> None:
    """Add ``patches`` random patches of every sample; see :mod:`sylvinit.sampling`.

    Args:
        fused: use the patch_gram operator, where it takes these patches.
    """
    if fused and _add_fused(moments, source, key, start, patches):
        return
    sample, entry, position, priority = source.rows.draw(key, start, patches)
    gathered = source.gather(entry, position)
    labels = source.labels_of(sample)
    moments.update(gathered, labels, priority.to(gathered.device), **_OURS)


def add_rows(
    moments: PatchMoments,
    source: PatchSource,
    key: Key,
    start: int,
    patches: int | None,
    fused: bool,
) -> None:
    """Add ``patches`` random rows of every sample, or all (None), of an input without taps."""
    if fused and _add_fused(moments, source, key, start, patches or 0):
        return
    x, rows = source.x, source.rows
    if patches is None and not moments.reservoir_size:
        sample, entry, _ = rows.all_positions()
        priority = None
    else:
        sample, entry, _, priority = rows.draw(key, start, patches)
        priority = priority.to(x.device)
    whole = rows.entries is None and (patches is None or int(rows.counts.max()) <= patches)
    taken = x if whole else x.index_select(0, entry.to(x.device))
    moments.update(taken, source.labels_of(sample), priority, copy=whole, labels_checked=True)


def add_all(moments: PatchMoments, source: PatchSource, key: Key, start: int, fused: bool) -> None:
    """Add every patch: by shifted correlations where that takes fewer flops, else by unfolding."""
    x, rows, geometry = source.x, source.rows, source.geometry
    plain = rows.entries is None and bool((rows.counts == 1).all())
    if geometry is not None and plain:
        plain = correlation_is_cheaper(geometry, tuple(x.shape[2:]), x.shape[1] // source.groups)
    if geometry is None or not plain:
        if not (fused and _add_fused(moments, source, key, start, 0)):
            _unfold(moments, source, key, start)
        return
    _correlate(moments, source, geometry, fused)
    if moments.reservoir_size:
        _, entry, position, priority = rows.draw(key, start, _RESERVOIR_DRAWS)
        moments.offer(source.gather(entry, position), priority.to(x.device))


def _add_fused(
    moments: PatchMoments, source: PatchSource, key: Key, start: int, draws: int
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
        accumulator = PatchAccumulator(moments.classes, tap_major=neighbours)
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
        entry, position = entry.to(x.device), position.to(x.device)
        accumulator.add(x, layout, source.labels_of(sample), entry, position)
    moments.accumulator = accumulator
    return True


def _unfold(moments: PatchMoments, source: PatchSource, key: Key, start: int) -> None:
    """Gather all patches, a bounded number of bytes at a time."""
    priority = None
    if moments.reservoir_size:
        sample, entry, position, priority = source.rows.draw(key, start, None)
        priority = priority.to(source.x.device)
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
    moments: PatchMoments, source: PatchSource, geometry: PatchGeometry, fused: bool
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
            correlation_gram(padded, geometry, out_size, groups, fused),
            by_group(centre.expand(geometry.taps, -1)),
            counts,
            class_totals,
            torch.finfo(padded.dtype).eps,
        )
    )


def patch_moments(
    x: Tensor,
    kernel_size: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    padding_mode: str = "zeros",
    groups: int = 1,
    patches: int | str = "all",
    labels: Tensor | None = None,
    classes: int | None = None,
    reservoir: int = 0,
    seed: int = 0,
    name: str = "",
    start: int = 0,
    backend: str = "auto",
) -> PatchMoments:
    """Moments of the patches that a convolution reads from an activation.

    Args:
        x: floating tensor (samples, channels, *spatial) with one to three spatial axes.
        kernel_size, stride, padding, dilation: as in ``torch.nn.Conv2d``; numbers or one per axis.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        groups: channel groups; every group has moments of its own.
        patches: random patches per sample, or "all". For stride 1 "all" costs about a third of
            unfolding and forms no patches.
        labels: int64 (samples,), to keep class sums.
        classes: how many there are, for moments that are to be merged; by default the largest label
            plus one.
        reservoir: rows to keep as a random sample.
        seed, name, start: of the random positions: the layer's name and the index of the first
            sample.
        backend: "auto", "cpu", "torch" or "cuda".

    Returns:
        :class:`PatchMoments` with d_in = channels / groups * taps, features ordered as in a weight.

    Raises:
        DataError: ``x`` has the wrong number of axes or dtype, no samples, or is too small.
        LabelError: labels are not int64, not one per sample, or out of range.
        OptionError: a setting is out of its domain.
        BackendError: the backend cannot run here, or not on the device of ``x``.
    """
    dims = x.ndim - 2
    if dims not in (1, 2, 3) or not x.is_floating_point():
        raise DataError(
            "x must be floating point of shape (samples, channels, *spatial) with one to three "
            f"spatial axes, got {x.dtype} {tuple(x.shape)}"
        )
    if padding_mode not in PADDING_MODES:
        raise OptionError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
    if groups < 1 or x.shape[1] % groups:
        raise OptionError(f"groups must divide the {x.shape[1]} channels of x, got {groups}")
    if patches != "all" and not (_is_integer(patches) and int(patches) >= 1):
        raise OptionError(f"patches must be an integer of at least 1, or 'all'; got {patches!r}")
    if not (_is_integer(seed) and -(2**63) <= seed < 2**63):
        raise OptionError(f"seed must be an integer of 64 bits, got {seed!r}")
    pads = _per_axis("padding", padding, dims, 0)
    geometry = PatchGeometry(
        kernel=_per_axis("kernel_size", kernel_size, dims, 1),
        stride=_per_axis("stride", stride, dims, 1),
        dilation=_per_axis("dilation", dilation, dims, 1),
        pad_before=pads,
        pad_after=pads,
        padding_mode=padding_mode,
    )
    _check_padding(geometry, tuple(x.shape[2:]))
    out_size = geometry.output_size(tuple(x.shape[2:]))
    if x.shape[0] == 0:
        raise DataError("x holds no samples: at least one is needed")
    if min(out_size) < 1:
        raise DataError(
            f"x of spatial size {tuple(x.shape[2:])} is smaller than the kernel's reach"
        )
    channels = x.shape[1] // groups
    moments = PatchMoments(
        channels * geometry.taps,
        groups=groups,
        classes=0 if labels is None else _class_count(labels, x.shape[0], classes),
        reservoir=reservoir,
        precision=torch.promote_types(x.dtype, torch.float32),
    )
    rows = Rows.one_each(x.shape[0], prod(out_size))
    source = PatchSource(x, geometry, groups, out_size, rows, labels)
    key = stream_key(seed, name, 0)
    fused = choose(backend, x.device).name == "cuda"
    if patches == "all":
        add_all(moments, source, key, start, fused)
    else:
        add_sampled(moments, source, key, start, int(patches), fused)
    return moments.transposed(geometry.taps)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _per_axis(name: str, value: int | tuple[int, ...], dims: int, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    if len(values) != dims or any(not _is_integer(v) or v < least for v in values):
        raise OptionError(
            f"{name} must be an integer or {dims} integers, at least {least}; got {value!r}"
        )
    return tuple(int(v) for v in values)


def _check_padding(geometry: PatchGeometry, in_size: tuple[int, ...]) -> None:
    """Reflected and circular padding read every pixel at most once more, as in torch."""
    slack = {"reflect": 1, "circular": 0}.get(geometry.padding_mode)
    pads = geometry.pad_before
    if slack is not None and any(p > n - slack for p, n in zip(pads, in_size, strict=True)):
        raise DataError(
            f"x of spatial size {in_size} is too small for {geometry.padding_mode!r} padding by "
            f"{pads}"
        )


def _class_count(labels: Tensor, samples: int, classes: int | None) -> int:
    if labels.shape != (samples,) or labels.dtype != torch.int64:
        raise LabelError(
            f"labels must be int64 of shape ({samples},), one per sample; got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    low, high = (int(v) for v in torch.aminmax(labels))
    count = high + 1 if classes is None else classes
    if low < 0 or high >= count:
        raise LabelError(f"labels must lie in [0, {max(count, 1)}), got {low} to {high}")
    return count
