"""The Gram matrix of *all* patches of a stride-1 convolution from lines of pixels.

A patch is made of segments, the taps along the last axis. Two segments, i and j lines into the
patch, contribute the same products wherever they are the same number of lines apart:

    sum over patches of segment_i segment_j^T  =  sum over lines y that segment i passes of
                                                  R[y]^T R[y + j - i]

where R[y] has the segments of line y as rows. So one product for each distance in lines replaces
one for each pair; the lines at the border, which some segments pass and others do not, have
products of their own. Of a 3 x 3 patch 3 pairs of lines are multiplied in place of 6, and pixels
are copied 3 times in place of 9. (A product for each lag along the last axis too has half of the
multiply-adds, but in matrices so narrow that it was nowhere faster, for 16 to 64 channels.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from operator import add, sub
from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.sums import gram, row_products

# Segments that are made at once.
_SEGMENT_BYTES = 16 * 2**20
# Copying one value costs about as much as this many multiply-adds of a product (an estimate).
COPY = 16


class _Box(NamedTuple):
    """Lines of the padded activation, and whose products they belong to."""

    begins: tuple[int, ...]  # by axis but the last
    ends: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]  # of segments, by their numbers in the patch


class _Lag(NamedTuple):
    shift: tuple[int, ...]  # in lines
    boxes: tuple[_Box, ...]  # which do not overlap


@lru_cache(maxsize=64)
def _plan(geometry: PatchGeometry, outputs: tuple[int, ...]) -> tuple[_Lag, ...]:
    """All pairs of segments i <= j of a patch by the lines between them."""
    kernel, dilation = geometry.kernel[:-1], geometry.dilation[:-1]
    segments = list(product(*(range(k) for k in kernel)))
    number = {segment: index for index, segment in enumerate(segments)}
    zero = (0,) * len(kernel)
    lags: list[_Lag] = []
    for lag in product(*(range(1 - k, k) for k in kernel)):
        if lag < zero:
            continue
        axes = [
            list(_intervals(range(max(0, -step), min(k, k - step)), d, length))
            for k, d, length, step in zip(kernel, dilation, outputs[:-1], lag, strict=True)
        ]
        boxes: list[_Box] = []
        for cell in product(*axes):
            firsts = product(*(part.taps for part in cell))
            pairs = [(number[i], number[tuple(map(add, i, lag))]) for i in firsts]
            begins, ends = tuple(part.begin for part in cell), tuple(part.end for part in cell)
            boxes.append(_Box(begins, ends, tuple(pairs)))
        shift = tuple(step * d for step, d in zip(lag, dilation, strict=True))
        lags.append(_Lag(shift, tuple(boxes)))
    return tuple(lags)


class _Interval(NamedTuple):
    begin: int
    end: int
    taps: list[int]  # whose windows hold it


def _intervals(taps: range, dilation: int, length: int) -> Iterator[_Interval]:
    """Between any two places where windows [tap * dilation, + length) begin or end."""
    edges = sorted({edge for tap in taps for edge in (tap * dilation, tap * dilation + length)})
    for begin, end in pairwise(edges):
        inside = [i for i in taps if i * dilation <= begin and end <= i * dilation + length]
        if inside:
            yield _Interval(begin, end, inside)


def lines_are_cheaper(geometry: PatchGeometry, in_size: tuple[int, ...], channels: int) -> bool:
    """Whether that costs less than gathering all patches and one product.

    Costs are multiply-adds for an entry and a pair of channels; of patches, the upper triangle.
    """
    if geometry.transposed or any(stride != 1 for stride in geometry.stride):
        return False
    outputs, copy, width = geometry.output_size(in_size), COPY / channels, geometry.kernel[-1]
    gathered = prod(outputs) * (geometry.taps**2 / 2 + copy * geometry.taps)
    pads = map(add, geometry.pad_before, geometry.pad_after)
    cost = copy * width * prod(list(map(add, in_size, pads))[:-1])
    for lag in _plan(geometry, outputs):
        each = width**2 if any(lag.shift) else width**2 / 2
        cost += each * sum(prod(map(sub, box.ends, box.begins)) for box in lag.boxes)
    return cost * outputs[-1] < gathered


def gram_by_lines(
    padded: Tensor, geometry: PatchGeometry, outputs: tuple[int, ...], groups: int
) -> Tensor:
    """Sum over all patches p of p p^T, per group of channels.

    ``padded`` is contiguous (entries, *padded spatial, channels), ``geometry`` has stride 1 and is
    not transposed, ``outputs`` is the spatial size of the layer's output. Returns float64
    (groups, taps * c, taps * c) with c = channels // groups, features tap-major.
    """
    channels, segments = padded.shape[-1], prod(geometry.kernel[:-1])
    features = geometry.kernel[-1] * channels // groups
    lines = prod(padded.shape[1:-2])
    size = lines * outputs[-1] * geometry.kernel[-1] * channels * padded.element_size()
    shape = (groups, segments, features, segments, features)
    out = padded.new_zeros(shape, dtype=torch.float64)
    plan = _plan(geometry, outputs)
    for part in padded.split(max(1, _SEGMENT_BYTES // max(1, size))):
        rows = _segments(part, geometry, outputs[-1], groups)
        for shift, boxes in plan:
            for begins, ends, pairs in boxes:
                left = _rows_of(rows, begins, ends)
                if any(shift):
                    right = _rows_of(rows, map(add, begins, shift), map(add, ends, shift))
                    products = row_products(left, right)
                else:
                    products = gram(left)
                for i, j in pairs:
                    out[:, i, :, j] += products
    for i in range(segments):
        for j in range(i):
            out[:, i, :, j] = out[:, j, :, i].mT
    return out.view(groups, segments * features, segments * features)


def _segments(part: Tensor, geometry: PatchGeometry, length: int, groups: int) -> Tensor:
    """(groups, *lines, entries * length, taps of a line * channels of a group)."""
    dims, taps, dilation = part.ndim - 2, geometry.kernel[-1], geometry.dilation[-1]
    windows = part.unfold(dims, (taps - 1) * dilation + 1, 1)[..., ::dilation]
    split = windows[..., :length, :, :].unflatten(-2, (groups, -1))
    # (entries, *lines, length, groups, channels, taps)
    order = (dims + 1, *range(1, dims), 0, dims, dims + 3, dims + 2)
    rows = split.permute(order).contiguous()
    return rows.flatten(-2).flatten(-3, -2)


def _rows_of(rows: Tensor, begins: Iterable[int], ends: Iterable[int]) -> Tensor:
    """The segments of a box of lines, (groups, n, features)."""
    return rows[(slice(None), *map(slice, begins, ends))].flatten(1, -2)
