"""Step "all_patches": moments of all patches, stride 1, beside unfold + matmul."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sylvinit
from gpu.ceilings import tf32_products
from gpu.context import Context
from gpu.timing import Clock

# images, channels, size of the map; 3 x 3 kernels
SIZES = [
    (256, 64, 56),
    (1000, 16, 32),
    (1000, 32, 16),
    (1000, 64, 8),
    (256, 128, 28),
    (256, 256, 14),
    (256, 512, 7),
]
SPEED, MEMORY = 2.5, 0.2


def unfolded(x: Tensor) -> Tensor:
    """What a user would write: all patches, their mean, and their Gram matrix."""
    rows = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    rows = rows - rows.mean(dim=0)
    return rows.T @ rows


def run(context: Context) -> None:
    sizes = SIZES[:2] if context.quick else SIZES
    if context.dry:
        sizes = [(2, 4, 6)]
    with tf32_products(False):
        for size in context.cases(sizes, need=5):
            for channels_last in (True, False):
                with context.attempt(f"{size}, channels_last={channels_last}"):
                    _measure(context, size, channels_last)


def _measure(context: Context, size: tuple[int, int, int], channels_last: bool) -> None:
    images, channels, side = size
    clock = Clock(context.dry)
    generator = torch.Generator(context.device).manual_seed(0)
    shape = (images, channels, side, side)
    x = torch.randn(shape, generator=generator, device=context.device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)

    def ours() -> Tensor:
        return sylvinit.patch_moments(x, 3, padding=1).covariance()

    row: dict[str, Any] = {"images": images, "channels": channels, "size": side}
    row["form"] = "channels_last" if channels_last else "NCHW"
    row["ours_s"] = clock.time([ours], seconds=0.3, least=3, most=30).median
    row["unfold_s"] = clock.time([lambda: unfolded(x)], seconds=0.3, least=3, most=30).median
    row["ratio"] = row["unfold_s"] / row["ours_s"]
    row["ours_bytes"], row["unfold_bytes"] = clock.peak(ours), clock.peak(lambda: unfolded(x))
    if row["unfold_bytes"]:
        row["memory_ratio"] = row["ours_bytes"] / row["unfold_bytes"]
    context.row("layers", "images channels size form ours_s ratio memory_ratio", **row)
    where = f"patches='all', {size}, {row['form']}"
    context.target(f"{where}: >= {SPEED} x unfold + matmul", row["ratio"], least=SPEED)
    if "memory_ratio" in row:
        text = f"{where}: <= {MEMORY} x the memory of unfold"
        context.target(text, row["memory_ratio"], most=MEMORY)
