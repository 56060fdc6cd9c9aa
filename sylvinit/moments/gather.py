"""Gathering chosen patches straight from an activation: no padding, no unfolding of the rest."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from sylvinit.model.geometry import PatchGeometry

# Index tables up to this many entries (2 MiB) are kept.
_TABLE_ENTRIES = 2**18


def _taps(
    geometry: PatchGeometry, in_size: tuple[int, ...], out_size: tuple[int, ...], position: Tensor
) -> Tensor:
    """Flat input coordinate of every tap of every patch, int64 (n, taps); -1 is outside."""
    flat = position.new_zeros((len(position), 1))
    inside = torch.ones_like(flat, dtype=torch.bool)
    rest = position
    for axis, table in enumerate(geometry.tables(in_size, out_size)):
        stride = prod(out_size[axis + 1 :])
        coordinate = rest // stride
        rest = rest - coordinate * stride
        # torch.tensor copies: the cached table is read-only, and it is a few entries.
        taps = torch.tensor(table, device=position.device).index_select(0, coordinate)
        flat = (flat[:, :, None] * in_size[axis] + taps[:, None, :]).flatten(1)
        inside = (inside[:, :, None] & (taps >= 0)[:, None, :]).flatten(1)
    return flat.masked_fill_(~inside, -1)


@lru_cache(maxsize=16)
def _tap_table(
    geometry: PatchGeometry,
    in_size: tuple[int, ...],
    out_size: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """The taps of every output position; the microbatches of a layer share them."""
    return _taps(geometry, in_size, out_size, torch.arange(prod(out_size), device=device))


def gather_patches(
    x: Tensor,
    geometry: PatchGeometry,
    entry: Tensor,
    position: Tensor,
    out_size: tuple[int, ...] | None = None,
) -> Tensor:
    """Patches (n, taps, channels) of an activation (entries, channels, *spatial).

    ``entry`` and ``position`` are int64 (n,): indices of entries, and flat row-major output
    positions. ``out_size``, the spatial size of the layer's output, may be given where the geometry
    does not fix it. Features are tap-major, so that the channels of a channels_last activation are
    copied as contiguous runs.
    """
    channels, in_size = x.shape[1], tuple(x.shape[2:])
    area, out_size = prod(in_size), out_size or geometry.output_size(in_size)
    if prod(out_size) * geometry.taps <= _TABLE_ENTRIES:
        table = _tap_table(geometry, in_size, out_size, position.device)
        tap = table.index_select(0, position)
    else:
        tap = _taps(geometry, in_size, out_size, position)
    outside = tap < 0
    tap.clamp_(min=0)
    if x.stride(1) == 1 and channels > 1:
        pixels = x.movedim(1, -1).reshape(-1, channels)
        pixel = tap + (entry * area)[:, None]
        patches = pixels.index_select(0, pixel.flatten())
        if x.device.type == "cpu":  # faster here; elsewhere nonzero would wait for the device
            patches.index_fill_(0, outside.flatten().nonzero().flatten(), 0)
        else:
            patches.masked_fill_(outside.view(-1, 1), 0)
        return patches.view(len(entry), -1, channels)
    plane = torch.arange(channels, device=x.device) * area
    element = tap[:, :, None] + (entry * (area * channels))[:, None, None] + plane
    return x.reshape(-1).take(element).masked_fill_(outside[:, :, None], 0)
