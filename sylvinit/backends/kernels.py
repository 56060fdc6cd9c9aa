"""The elementwise kernels of the extension (csrc/cuda/spectral.h) on tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sylvinit.backends import extension
from sylvinit.backends.eigen import Quotient, Thresholds
from sylvinit.backends.memory import memory_for


def place(x: Tensor) -> tuple[int, int]:
    """The index of a tensor's device, and its current stream as an integer."""
    return x.device.index or 0, torch.cuda.current_stream(x.device).cuda_stream


def scale_to_unit(a: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices divided by their largest entry, and that entry.

    Args:
        a: float64 (batch, n, n).

    Returns:
        (batch, n, n) and (batch,): 1 for matrices of zeros, and NaN for those with entries that
        are not finite, which come out as zeros.
    """
    a = a.contiguous()
    batch, entries = len(a), math.prod(a.shape[1:])
    library: Any = extension.module
    scaled, scale = torch.empty_like(a), a.new_ones(batch)
    partial = a.new_empty(batch * library.spectral_slices(entries))
    with torch.cuda.device(a.device):
        library.scale_to_unit(
            *place(a),
            batch,
            entries,
            a.data_ptr(),
            scaled.data_ptr(),
            scale.data_ptr(),
            partial.data_ptr(),
        )
    return scaled, scale


def divide(c: Tensor, values_a: Tensor, values_b: Tensor, thresholds: Thresholds) -> Quotient:
    """:func:`sylvinit.backends.eigen.divide` in one pass over c, which is overwritten."""
    batch, k, d = c.shape
    library: Any = extension.module
    slices = batch * library.spectral_slices(k * d)
    small = [
        x.contiguous() for x in (values_a, values_b, thresholds.a.double(), thresholds.b.double())
    ]
    with memory_for(f"{batch} right-hand sides of size {k} x {d}", c.nbytes):
        c = c.contiguous()
        keep = torch.empty_like(c, dtype=torch.bool)
        least = c.new_full((batch,), torch.inf)
        kept = torch.zeros(batch, dtype=torch.int64, device=c.device)
        partial_least = c.new_empty(slices)
        partial_kept = kept.new_empty(slices)
    with torch.cuda.device(c.device):
        library.divide_positive(
            *place(c),
            batch,
            k,
            d,
            c.data_ptr(),
            *(x.data_ptr() for x in small),
            c.data_ptr(),
            keep.data_ptr(),
            least.data_ptr(),
            kept.data_ptr(),
            partial_least.data_ptr(),
            partial_kept.data_ptr(),
        )
    return Quotient(c, keep, least, c.numel() - int(kept.sum()))
