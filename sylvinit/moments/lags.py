"""The Gram matrix of all patches of a stride-1 convolution from the patch_gram operator.

As in :mod:`sylvinit.moments.all_patches`, the block for two taps depends on their lag alone, up to
the border. The sums over all pixels for all lags at once are themselves rows of the Gram matrix of
a convolution: one over the padded activation, whose taps are the lags, with zeros outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import torch
from torch import Tensor

from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.device_sums import can_fuse
from sylvinit.moments.fused import patch_gram
from sylvinit.moments.fused_layout import PatchLayout
from sylvinit.moments.row_products import mirrored


@dataclass(frozen=True)
class Lags:
    """The lags between two taps, of which the later one in row-major order comes second.

    Attributes:
        layout: of the convolution over the padded activation, features (lag, channel).
        zero: index of the lag 0.
        first, second, lag: int64 (pairs,), the pairs of taps i <= j and the lag between them.
    """

    layout: PatchLayout
    zero: int
    first: Tensor
    second: Tensor
    lag: Tensor

    @classmethod
    @lru_cache(maxsize=64)
    def of(
        cls,
        geometry: PatchGeometry,
        size: tuple[int, ...],
        groups: int,
        width: int,
        device: torch.device,
    ) -> Lags:
        """The lags of a stride-1 convolution; the microbatches of a layer share them.

        Args:
            geometry: of the convolution.
            size: spatial size of the padded activation.
            groups: channel groups.
            width: channels of a group.
            device: of the index tensors.
        """
        kernel = geometry.kernel
        # The first axis has no negative lags, since the later tap comes second.
        behind = [0, *(k - 1 for k in kernel[1:])]
        counts = [kernel[0], *(2 * k - 1 for k in kernel[1:])]
        pads = tuple(b * d for b, d in zip(behind, geometry.dilation, strict=True))
        ones = (1,) * len(kernel)
        lagged = PatchGeometry(tuple(counts), ones, geometry.dilation, pads, pads)
        index = {lag: i for i, lag in enumerate(product(*(range(c) for c in counts)))}
        zero = index[tuple(behind)]
        taps = list(product(*(range(k) for k in kernel)))
        pairs = [
            (i, j, index[tuple(b - a + o for a, b, o in zip(first, second, behind, strict=True))])
            for (i, first), (j, second) in product(enumerate(taps), repeat=2)
            if j >= i
        ]
        first, second, lag = torch.tensor(pairs, device=device).T
        layout = PatchLayout.of(lagged, size, groups, first_row=zero * width, rows=width)
        return cls(layout, zero, first, second, lag)


def lag_layout_fits(padded: Tensor, geometry: PatchGeometry, groups: int) -> bool:
    """Whether the kernels take the convolution over the lags."""
    size, width = tuple(padded.shape[1:-1]), padded.shape[-1] // groups
    lags = Lags.of(geometry, size, groups, width, padded.device)
    return can_fuse(padded.movedim(-1, 1), lags.layout, 0)


def lagged_gram(
    padded: Tensor,
    geometry: PatchGeometry,
    groups: int,
    border: tuple[Tensor, list[int], Tensor],
    arithmetic: str,
) -> Tensor:
    """Sum over all patches p of p p^T, per group of channels.

    Args:
        padded: float32 (entries, *padded spatial, channels), contiguous.
        geometry: stride 1, not transposed.
        groups: channel groups.
        border: the pixels outside some tap's window, see :mod:`sylvinit.moments.all_patches`.
        arithmetic: of the products, see :data:`sylvinit.moments.fused.ARITHMETICS`.

    Returns:
        float64 (groups, taps * c, taps * c) with c = channels // groups, features tap-major.
    """
    size, width = tuple(padded.shape[1:-1]), padded.shape[-1] // groups
    lags, taps = Lags.of(geometry, size, groups, width, padded.device), geometry.taps
    x, area = padded.movedim(-1, 1), prod(size)
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
