"""The elementwise kernels of the extension (csrc/cuda/spectral.h) on tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sylvinit.backends import extension
from sylvinit.backends.eigen import Pair, Thresholds
from sylvinit.backends.memory import memory_for


def place(x: Tensor) -> tuple[int, int]:
    """The index of a tensor's device, and its current stream as an integer."""
    return x.device.index or 0, torch.cuda.current_stream(x.device).cuda_stream


def scale_to_unit(a: Tensor) -> Pair:
    """Float64 matrices (batch, n, n) divided by their largest moduli, and these, (batch,).

    The moduli are 1 for matrices of zeros, and NaN for those with entries that are not finite,
    which come out as zeros.
    """
    a = a.contiguous()
    batch, entries = len(a), math.prod(a.shape[1:])
    library: Any = extension.module
    scaled, scale = torch.empty_like(a), a.new_ones(batch)
    partial = a.new_empty(batch * library.spectral_slices(entries))
    addresses = (x.data_ptr() for x in (a, scaled, scale, partial))
    with torch.cuda.device(a.device):
        library.scale_to_unit(*place(a), batch, entries, *addresses)
    return scaled, scale


def divide(c: Tensor, values_a: Tensor, values_b: Tensor, thresholds: Thresholds) -> Pair:
    """:func:`sylvinit.backends.eigen.divide` in one pass over c, which is overwritten."""
    batch, k, d = c.shape
    library: Any = extension.module
    small = [x.double().contiguous() for x in (values_a, values_b, *thresholds)]
    with memory_for(f"{batch} right-hand sides of size {k} x {d}", c.nbytes):
        c = c.contiguous()
        keep = torch.empty_like(c, dtype=torch.bool)
    addresses = (x.data_ptr() for x in (c, *small, c, keep))
    with torch.cuda.device(c.device):
        library.divide_positive(*place(c), batch, k, d, *addresses)
    return c, keep
