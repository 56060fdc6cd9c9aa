"""The activations on which patch_gram is measured: layers of ResNet-20 and ResNet-50."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpu.timing import copies_past_cache
from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.fused_layout import PatchLayout


@dataclass(frozen=True)
class Case:
    """The input of a convolution, and how many patches of each image are drawn."""

    channels: int
    size: int
    kernel: int
    stride: int = 1
    images: int = 1024
    draws: int = 10

    @property
    def geometry(self) -> PatchGeometry:
        pads = (self.kernel // 2,) * 2
        return PatchGeometry((self.kernel,) * 2, (self.stride,) * 2, (1, 1), pads, pads)

    @property
    def out_size(self) -> tuple[int, ...]:
        return self.geometry.output_size((self.size, self.size))

    @property
    def positions(self) -> int:
        return self.out_size[0] * self.out_size[1]

    @property
    def d(self) -> int:
        return self.channels * self.kernel**2

    @property
    def n(self) -> int:
        """Patches: where there are no more positions than draws, each is taken once."""
        return self.images * min(self.draws, self.positions)

    def __str__(self) -> str:
        return (
            f"d={self.d} n={self.n} ({self.images} x {self.channels} x {self.size}^2, "
            f"{self.kernel}x{self.kernel}/{self.stride})"
        )


RESNET20 = [Case(3, 32, 3), Case(16, 32, 3), Case(32, 16, 3), Case(64, 8, 3)]
RESNET50 = [
    Case(3, 224, 7, 2),
    Case(64, 56, 1),
    Case(64, 56, 3),
    Case(256, 56, 1),
    Case(128, 28, 3),
    Case(512, 28, 1),
    Case(256, 14, 3),
    Case(1024, 14, 1),
    Case(512, 7, 3),
    Case(2048, 7, 1),
]
LABELED = [Case(64, 56, 1), Case(64, 56, 3), Case(512, 7, 3)]
# A million and ten million patches.
MANY = [Case(64, 56, 3, images=320, draws=3125), Case(64, 56, 3, images=3200, draws=3125)]
DRY = [Case(3, 6, 3, images=4, draws=3), Case(4, 5, 1, images=4, draws=3)]


def few(quick: bool) -> list[Case]:
    """Of one launch as in practice."""
    return [RESNET20[0], RESNET20[3], RESNET50[0], RESNET50[4]] if quick else RESNET20 + RESNET50


class Inputs:
    """Activations of a case that take turns, with other positions at each turn."""

    def __init__(self, case: Case, dtype: torch.dtype, channels_last: bool, device: str) -> None:
        self.case = case
        shape = (case.images, case.channels, case.size, case.size)
        generator = torch.Generator(device).manual_seed(0)
        form = torch.channels_last if channels_last else torch.contiguous_format

        def activation() -> Tensor:
            x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
            return x.contiguous(memory_format=form)

        first = activation()
        held = copies_past_cache(first.nbytes, device)
        self.activations = [first, *(activation() for _ in range(held - 1))]
        # What a turn reads must not be in the cache either when its turn comes again.
        self.turns = max(held, copies_past_cache(case.n * case.d * first.itemsize, device, 16))
        # One channel is both: nothing is gained by reading along it.
        self.tap_major = first.stride(1) == 1

    def x(self, turn: int) -> Tensor:
        """The activation of a turn."""
        return self.activations[turn % len(self.activations)]

    def layout(self, turn: int) -> PatchLayout:
        """The patches of a turn."""
        case = self.case
        return PatchLayout.of(
            case.geometry,
            case.out_size,
            1,
            tap_major=self.tap_major,
            first_sample=turn * case.images,
            draws=case.draws,
            key=(1, 2),
        )
