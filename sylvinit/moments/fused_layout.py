"""How the patch_gram kernels are told where the patches lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from sylvinit.model.geometry import PADDING_MODES, PatchGeometry

AXES = 3
ELEMENT_TYPES = {"torch.float32": 0, "torch.bfloat16": 1, "torch.float16": 2}


@dataclass(frozen=True)
class PatchLayout:
    """Integers that describe the patches of an activation with three spatial axes.

    Axes that it lacks come first and have one position.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_before: tuple[int, ...]
    out_size: tuple[int, ...]
    padding_mode: int  # index into PADDING_MODES
    transposed: bool
    groups: int
    tap_major: bool  # features of a patch are ordered (tap, channel), else (channel, tap)
    entries_per_sample: int = 1
    first_sample: int = 0  # its index in the data
    draws: int = 0  # random positions of every sample; 0 takes each position once
    key: tuple[int, int] = (0, 0)  # of the random positions
    first_row: int = 0  # of the rows of the Gram matrix that are wanted
    rows: int = 0  # how many of those; 0 means all

    @classmethod
    def of(
        cls,
        geometry: PatchGeometry | None,
        out_size: tuple[int, ...],
        groups: int,
        *,
        tap_major: bool = True,
        **rest: Any,
    ) -> PatchLayout:
        """The layout of a convolution, or of plain rows if the geometry is None."""
        found = geometry or PatchGeometry((), (), (), (), ())

        def padded(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
            return (fill,) * (AXES - len(values)) + tuple(values)

        return cls(
            kernel=padded(found.kernel, 1),
            stride=padded(found.stride, 1),
            dilation=padded(found.dilation, 1),
            pad_before=padded(found.pad_before, 0),
            out_size=padded(out_size, 1),
            padding_mode=PADDING_MODES.index(found.padding_mode),
            transposed=found.transposed,
            groups=groups,
            tap_major=tap_major,
            **rest,
        )

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return prod(self.kernel)

    @property
    def tap_slots(self) -> int:
        """Offsets that a block keeps per patch, see csrc/cuda/patch_layout.cuh."""
        return self.kernel[0] * self.kernel[1] + self.kernel[2]

    def features(self, x: Tensor) -> int:
        """Length of a patch of an activation (entries, channels, ...)."""
        return x.shape[1] // self.groups * self.taps

    def patches(self, x: Tensor, entry: Tensor | None) -> int:
        """How many patches are taken of an activation: those listed, else drawn ones or all."""
        if entry is not None:
            return len(entry)
        available = self.entries_per_sample * prod(self.out_size)
        taken = self.draws if 0 < self.draws < available else available
        return x.shape[0] // self.entries_per_sample * taken

    def numbers(self) -> list[int]:
        """All attributes in one list, the form in which an operator takes them."""
        return np.hstack([getattr(self, field.name) for field in fields(self)]).tolist()

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> PatchLayout:
        """The inverse of :meth:`numbers`."""
        triples = [tuple(numbers[i : i + AXES]) for i in range(0, 5 * AXES, AXES)]
        mode, transposed, groups, tap_major, entries, first, draws = numbers[5 * AXES : -4]
        flags = mode, bool(transposed), groups, bool(tap_major)
        key, wanted = tuple(numbers[-4:-2]), numbers[-2:]
        attributes: list[Any] = [*triples, *flags, entries, first, draws, key, *wanted]
        return cls(*attributes)

    def geometry(self) -> PatchGeometry:
        """The geometry, with three axes; padding after the input does not show in it."""
        axes = self.kernel, self.stride, self.dilation, self.pad_before, self.pad_before
        return PatchGeometry(*axes, PADDING_MODES[self.padding_mode], self.transposed)

    def arguments(
        self, module: Any, x: Tensor, entry: Tensor | None = None, position: Tensor | None = None
    ) -> Any:
        """A ``PatchGram`` of the compiled module for the patches of an activation.

        The caller adds what stands beside the patches, and keeps all tensors alive.
        """
        missing = AXES - (x.ndim - 2)
        args = module.PatchGram()
        args.x, args.element_type = x.data_ptr(), ELEMENT_TYPES[str(x.dtype)]
        args.groups, args.channels = self.groups, x.shape[1] // self.groups
        args.entry_stride, args.channel_stride = x.stride(0), x.stride(1)
        args.set_axes(
            in_size=(1,) * missing + tuple(x.shape[2:]),
            out_size=self.out_size,
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            pad_before=self.pad_before,
            axis_stride=(0,) * missing + tuple(x.stride()[2:]),
            padding_mode=self.padding_mode,
            transposed=self.transposed,
        )
        args.tap_major, args.n, args.entries = self.tap_major, self.patches(x, entry), x.shape[0]
        if entry is not None and position is not None:
            args.entry, args.position = entry.data_ptr(), position.data_ptr()
        args.entries_per_sample, args.first_sample = self.entries_per_sample, self.first_sample
        args.draws, (args.key0, args.key1) = self.draws, self.key
        args.first_row, args.rows = self.first_row, self.rows
        return args
