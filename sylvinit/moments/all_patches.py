"""The Gram matrix of *all* patches of a stride-1 convolution, without forming a patch.

On the CPU by :mod:`sylvinit.moments.patch_lines`. For the patch_gram operator, with the padded
activation flattened to rows M[t], t = (entry, y, x), the block of the Gram matrix for two taps
depends on their lag s alone, up to the border:

    sum over output positions  =  sum_t M[t] M[t + s]^T   -   the t outside the tap's output window

so that one product per lag ((2 kh - 1)(2 kw - 1) lags, half of them by symmetry) replaces one per
pair of taps, and the border costs strips of (kernel - 1) * dilation pixels. The products of all
lags are themselves rows of the Gram matrix of a convolution over the padded activation, whose taps
are the lags, with zeros outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.device_sums import can_fuse
from sylvinit.moments.fused import patch_gram
from sylvinit.moments.fused_layout import PatchLayout
from sylvinit.moments.patch_lines import COPY, gram_by_lines
from sylvinit.moments.sums import mirrored


def correlation_is_cheaper(
    geometry: PatchGeometry, in_size: tuple[int, ...], channels: int
) -> bool:
    """Whether the operator's product for each lag costs less than that of all patches.

    Costs are multiply-adds for an entry and a pair of channels. Unfolded patches take taps**2 / 2
    for each output (the upper triangle), and each feature is copied once. A lag takes one for each
    padded pixel, and one more, with copies of both factors, for each pixel of the border.
    """
    if geometry.transposed or any(s != 1 for s in geometry.stride):
        return False
    outputs = prod(geometry.output_size(in_size))
    pads = map(sum, zip(geometry.pad_before, geometry.pad_after, strict=True))
    padded = [size + pad for size, pad in zip(in_size, pads, strict=True)]
    reach = [(k - 1) * d for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
    core = prod(max(size - 2 * edge, 0) for size, edge in zip(padded, reach, strict=True))
    border = prod(padded) - core
    lags = (prod(2 * k - 1 for k in geometry.kernel) + 1) // 2
    copy = COPY / channels
    unfolded = outputs * (geometry.taps**2 / 2 + copy * geometry.taps)
    shifted = prod(padded) * (lags + 2 * copy) + border * lags * (1 + 3 * copy)
    return shifted < unfolded


def pad_channels_last(x: Tensor, geometry: PatchGeometry) -> Tensor:
    """The padded activation as a contiguous tensor (entries, *padded spatial, channels)."""
    by_axis = list(zip(geometry.pad_before, geometry.pad_after, strict=True))
    pads = [amount for pair in reversed(by_axis) for amount in pair]
    if any(pads):
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x, pads, mode=mode)
    return x.movedim(1, -1).contiguous()


def window_sums(padded: Tensor, geometry: PatchGeometry, outputs: tuple[int, ...]) -> Tensor:
    """Sum over all output positions of every tap's pixel, float64 (..., taps, channels).

    ``padded`` is (..., *padded spatial, channels).
    """
    dims = len(geometry.kernel)
    axes = tuple(range(padded.ndim - 1 - dims, padded.ndim - 1))
    sums: list[Tensor] = []
    for tap in product(*(range(k) for k in geometry.kernel)):
        begins = [index * dilation for index, dilation in zip(tap, geometry.dilation, strict=True)]
        window = [
            slice(begin, begin + (size - 1) * stride + 1, stride)
            for begin, size, stride in zip(begins, outputs, geometry.stride, strict=True)
        ]
        # Pairwise over a line; over all lines at once torch would sum them one after the other.
        lines = padded[(..., *window, slice(None))].sum(dim=-2, keepdim=True)
        sums.append(lines.sum(dim=axes, dtype=torch.float64))
    return torch.stack(sums, dim=-2)


def correlation_gram(
    padded: Tensor,
    geometry: PatchGeometry,
    outputs: tuple[int, ...],
    groups: int,
    arithmetic: str | None = None,
) -> Tensor:
    """Sum over all patches p of p p^T, per group of channels.

    ``padded`` is contiguous (entries, *padded spatial, channels), ``geometry`` has stride 1 and is
    not transposed, ``outputs`` is the spatial size of the layer's output. Without ``arithmetic``
    the patch_gram operator is not used. Returns float64 (groups, taps * c, taps * c) with
    c = channels // groups, features tap-major.
    """
    if arithmetic:
        size, device = tuple(padded.shape[1:-1]), padded.device
        lags = _Lags.of(geometry, size, groups, padded.shape[-1] // groups, device)
        if can_fuse(padded.movedim(-1, 1), lags.layout, 0):
            pixels = _border(padded.shape[0], size, geometry, outputs, device)
            return _gram_by_lags(padded, lags, geometry.taps, pixels, arithmetic)
    return gram_by_lines(padded, geometry, outputs, groups)


def _pairs_of_taps(kernel: tuple[int, ...]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(i, j, lag) of all taps i <= j in row-major order."""
    taps = list(enumerate(product(*(range(k) for k in kernel))))
    return [
        (i, j, tuple(b - a for a, b in zip(first, second, strict=True)))
        for (i, first), (j, second) in combinations_with_replacement(taps, 2)
    ]


@lru_cache(maxsize=8)
def _border(
    entries: int,
    size: tuple[int, ...],
    geometry: PatchGeometry,
    outputs: tuple[int, ...],
    device: torch.device,
) -> tuple[Tensor, list[int], Tensor]:
    """The pixels that some tap's output window leaves out, sorted into cells.

    A cell is a box that lies wholly inside or wholly outside every tap's window, so that one
    product per cell and lag serves all pairs of taps with that lag.

    Returns:
        (pixels of the flattened activation sorted by cell, the end of every cell in them, and a
        float64 matrix (taps, cells) that is 1 where the cell lies outside the tap's window).
    """
    cell, inside = torch.zeros((), dtype=torch.int64), torch.ones((1, 1), dtype=torch.bool)
    for extent, length, kernel, dilation in zip(
        size, outputs, geometry.kernel, geometry.dilation, strict=True
    ):
        begins = [tap * dilation for tap in range(kernel)]
        edges = torch.tensor(sorted({0, *begins, *(begin + length for begin in begins)} - {extent}))
        cells = torch.bucketize(torch.arange(extent), edges, right=True) - 1
        start = torch.tensor(begins)[:, None]
        within = (edges >= start) & (edges < start + length)
        cell = cell[..., None] * len(edges) + cells
        inside = (inside[:, None, :, None] & within[None, :, None, :]).flatten(2).flatten(0, 1)
    partial = ~inside.all(dim=0)
    pixel = partial[cell.flatten()].nonzero().flatten()
    pixel = pixel[torch.argsort(cell.flatten()[pixel], stable=True)]
    counts = torch.bincount(cell.flatten()[pixel], minlength=inside.shape[1])[partial]
    # Cell-major over the entries, so that a cell is one contiguous run of rows.
    runs = [
        (torch.arange(entries)[:, None] * prod(size) + part).flatten()
        for part in pixel.split(counts.tolist())
    ]
    rows = torch.cat(runs) if runs else pixel
    ends = (counts.cumsum(0) * entries).tolist()
    outside = (~inside[:, partial]).double()
    return rows.to(device), ends, outside.to(device)


@dataclass(frozen=True)
class _Lags:
    """The lags between two taps i <= j in row-major order."""

    layout: PatchLayout  # of the convolution over the padded activation, features (lag, channel)
    zero: int  # index of the lag 0
    first: Tensor  # int64 (pairs,), as the next two: the first tap of every pair,
    second: Tensor  # the second tap,
    lag: Tensor  # and the index of the lag between them

    @classmethod
    @lru_cache(maxsize=64)
    def of(
        cls,
        geometry: PatchGeometry,
        size: tuple[int, ...],
        groups: int,
        width: int,
        device: torch.device,
    ) -> _Lags:
        """For a padded activation of spatial size ``size``, with ``width`` channels a group."""
        kernel = geometry.kernel
        # The first axis has no negative lags, since the later tap comes second.
        behind = [0, *(k - 1 for k in kernel[1:])]
        counts = [kernel[0], *(2 * k - 1 for k in kernel[1:])]
        pads = tuple(b * d for b, d in zip(behind, geometry.dilation, strict=True))
        ones = (1,) * len(kernel)
        lagged = PatchGeometry(tuple(counts), ones, geometry.dilation, pads, pads)
        index = {lag: i for i, lag in enumerate(product(*(range(c) for c in counts)))}
        zero = index[tuple(behind)]
        pairs = [
            (i, j, index[tuple(map(sum, zip(lag, behind, strict=True)))])
            for i, j, lag in _pairs_of_taps(kernel)
        ]
        first, second, lag = torch.tensor(pairs, device=device).T
        layout = PatchLayout.of(lagged, size, groups, first_row=zero * width, rows=width)
        return cls(layout, zero, first, second, lag)


def _gram_by_lags(
    padded: Tensor,
    lags: _Lags,
    taps: int,
    border: tuple[Tensor, list[int], Tensor],
    arithmetic: str,
) -> Tensor:
    groups, width = lags.layout.groups, lags.layout.rows
    x, area = padded.movedim(-1, 1), prod(padded.shape[1:-1])
    numbers = lags.layout.numbers()
    columns = width * lags.layout.taps + 1
    status = torch.zeros(1, dtype=torch.int32, device=x.device)

    def rows(entry: Tensor | None, position: Tensor | None) -> Tensor:
        gram = x.new_zeros((groups, width, columns), dtype=torch.float64)
        nothing = (None, None, 0, None)
        patch_gram(x, gram, status, *nothing, entry, position, numbers, arithmetic)
        return gram

    # outside[i] is the sum over the pixels that tap i's window leaves out.
    whole, (pixels, ends, is_outside) = rows(None, None), border
    outside = whole.new_zeros((taps, *whole.shape))
    for cell, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if end > begin:
            part = pixels[begin:end]
            sums = rows(part // area, part % area)
            outside.addcmul_(is_outside[:, cell, None, None, None], sums)
    blocks = (whole - outside)[..., :-1].unflatten(-1, (lags.layout.taps, width))
    # (taps, groups, width, lags, width); of lag 0 only the upper triangle was summed.
    blocks[:, :, :, lags.zero] = mirrored(blocks[:, :, :, lags.zero])
    first, second = lags.first, lags.second
    chosen = blocks.movedim(3, 1)[first, lags.lag]  # (pairs, groups, width, width)
    gram = x.new_empty((taps, taps, groups, width, width), dtype=torch.float64)
    gram[second, first] = chosen.mT
    gram[first, second] = chosen
    return gram.permute(2, 0, 3, 1, 4).reshape(groups, taps * width, taps * width)
