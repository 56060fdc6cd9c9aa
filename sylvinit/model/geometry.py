"""Which input pixels a convolution reads: one index table per spatial axis.

For every axis the table ``t`` has shape (outputs, taps) and holds the input coordinate that output
``o`` reads through tap ``k``, or -1 where it reads a structural zero. A patch in D dimensions is
the Cartesian product of D rows of such tables, so every stride, dilation, padding and padding mode,
and the transposed convolutions, are handled by the tables alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@lru_cache(maxsize=512)
def axis_index_table(
    in_size: int,
    out_size: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    pad_before: int = 0,
    padding_mode: str = "zeros",
    transposed: bool = False,
) -> npt.NDArray[np.int64]:
    """Input coordinate per (output, tap) along one axis; -1 is a structural zero.

    Convolution: ``u = o * stride - pad_before + k * dilation``, mapped into the input by the
    padding mode. Transposed convolution, taps in the order in which the kernel is stored: the input
    ``i`` with ``i * stride = o + pad_before - k * dilation`` (this is the stride-1 convolution of
    the zero-stuffed input with the flipped kernel, without the zeros). The array (out_size, kernel)
    is read-only.
    """
    out = np.arange(out_size, dtype=np.int64)[:, None]
    tap = np.arange(kernel, dtype=np.int64)[None, :] * dilation
    if transposed:
        stuffed = out + pad_before - tap
        table = np.floor_divide(stuffed, stride)
        table[(stuffed % stride != 0) | (table < 0) | (table >= in_size)] = -1
    else:
        table = out * stride - pad_before + tap
        if padding_mode == "zeros":
            table[(table < 0) | (table >= in_size)] = -1
        elif padding_mode == "replicate":
            table = table.clip(0, in_size - 1)
        elif padding_mode == "circular":
            table %= in_size
        else:  # reflect, without repeating the edge
            table = np.abs(table)
            table = np.where(table >= in_size, 2 * (in_size - 1) - table, table)
    table.setflags(write=False)
    return table


@dataclass(frozen=True)
class PatchGeometry:
    """The spatial part of a convolution, without its channels.

    Attributes are tuples with one entry per spatial axis; ``pad_before`` and ``pad_after`` are the
    padding at the two ends of each axis. ``output_padding`` concerns transposed convolutions only.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_before: tuple[int, ...]
    pad_after: tuple[int, ...]
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return prod(self.kernel)

    def output_size(self, in_size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of the layer's output for an input of spatial size ``in_size``."""
        sizes: list[int] = []
        for axis, size in enumerate(in_size):
            pads = self.pad_before[axis] + self.pad_after[axis]
            reach = self.dilation[axis] * (self.kernel[axis] - 1)
            if self.transposed:
                extra = self.output_padding[axis] if self.output_padding else 0
                sizes.append((size - 1) * self.stride[axis] - pads + reach + extra + 1)
            else:
                sizes.append((size + pads - reach - 1) // self.stride[axis] + 1)
        return tuple(sizes)

    def tables(
        self, in_size: tuple[int, ...], out_size: tuple[int, ...]
    ) -> list[npt.NDArray[np.int64]]:
        """Index table of every axis, see :func:`axis_index_table`."""
        return [
            axis_index_table(
                in_size[axis],
                out_size[axis],
                self.kernel[axis],
                self.stride[axis],
                self.dilation[axis],
                self.pad_before[axis],
                self.padding_mode,
                self.transposed,
            )
            for axis in range(len(in_size))
        ]
