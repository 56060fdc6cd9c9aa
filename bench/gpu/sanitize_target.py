"""Small launches of every kernel, for compute-sanitizer.

Each tile and arithmetic of patch_gram on each dtype and layout, patch_mean, and the kernels around
cuSOLVER. Data are made on the CPU and the results compared there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from sylvinit.backends import eigen, extension, kernels
from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments import fused
from sylvinit.moments.fused_layout import PatchLayout

DONE = "all launches compared"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def integers(*shape: int) -> Tensor:
    """Exact in every dtype and arithmetic."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-3, 6, shape, generator=generator).float()


def gram_problems() -> Iterator[tuple[Tensor, PatchLayout]]:
    """Three tiles of 128, the last ones not full, four numbers at a time and one by one."""
    geometry = PatchGeometry((3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    for channels in (16, 15):
        for channels_last in (False, True):
            x = integers(3, channels, 7, 9)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            size = geometry.output_size((7, 9))
            yield x, PatchLayout.of(geometry, size, 1, tap_major=channels_last, draws=14)


def check_gram(x: Tensor, layout: PatchLayout, arithmetic: str, tile: int, device: str) -> None:
    """One launch with labels and a shift."""
    d, classes = x.shape[1] * layout.taps, 3
    size = d + 1 + classes
    labels, shift = torch.tensor([2, 0, 1]), integers(1, d)
    grams = []
    for place in ("cpu", device):
        gram = torch.zeros(1, size, size, dtype=torch.float64).to(place)
        status = torch.zeros(1, dtype=torch.int32).to(place)
        tensors = (x.to(place), gram, status, shift.to(place), labels.to(place), classes)
        if place == "cpu":
            fused.patch_gram(*tensors, None, None, None, layout.numbers(), arithmetic)
        else:
            properties = torch.cuda.get_device_properties(place)
            fused.launch_gram(
                extension.module,
                *tensors,
                None,
                None,
                None,
                layout,
                arithmetic,
                multiprocessors=properties.multi_processor_count,
                stream=torch.cuda.current_stream().cuda_stream,
                tile=tile,
            )
        grams.append(gram.cpu())
    if not torch.equal(*grams):
        raise SystemExit(f"wrong: {x.dtype}, {arithmetic}, tile {tile}, {layout}")


def check_mean(x: Tensor, layout: PatchLayout, device: str) -> None:
    """patch_mean, in one launch."""
    expected = fused.patch_mean(x, layout.numbers(), 40)
    if not torch.equal(fused.patch_mean(x.to(device), layout.numbers(), 40).cpu(), expected):
        raise SystemExit(f"wrong mean: {x.dtype}, {layout}")


def check_spectral(device: str) -> None:
    """Scaling and division, with one partial result and with several."""
    for batch, k, d in ((1, 1, 1), (3, 7, 5), (2, 33, 257)):
        generator = torch.Generator().manual_seed(d)
        c, a, b = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((batch, k, d), (batch, k), (batch, d))
        )
        limits = [torch.full((batch,), 0.1, dtype=torch.float64) for _ in range(2)]
        expected = eigen.divide(c, a, b, eigen.Thresholds(*limits))
        on_device = eigen.Thresholds(*(x.to(device) for x in limits))
        found = kernels.divide(c.to(device), a.to(device), b.to(device), on_device)
        square = c[:, :, :k] if d >= k else c.mT[:, :, :d]
        scaled, scale = kernels.scale_to_unit(square.contiguous().to(device))
        same = all(torch.equal(x.cpu(), y) for x, y in zip(found, expected, strict=True))
        largest = square.abs().amax(dim=(1, 2))
        same &= torch.equal(scale.cpu(), largest)
        same &= torch.equal(scaled.cpu(), square / largest[:, None, None])
        if not same:
            raise SystemExit(f"wrong: spectral kernels of size {batch} x {k} x {d}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args(argv).device
    if device == "cuda" and extension.reason():
        sys.stderr.write(f"{extension.reason()}\n")
        return 2
    launches = 0
    for x, layout in gram_problems():
        for dtype in DTYPES:
            for arithmetic in fused.ARITHMETICS:
                for tile in (32, 64, 128) if device == "cuda" else (0,):
                    check_gram(x.to(dtype), layout, arithmetic, tile, device)
                    launches += 1
            check_mean(x.to(dtype), layout, device)
    if device == "cuda":
        check_spectral(device)
    print(f"{DONE}: {launches} of patch_gram")
    return 0


if __name__ == "__main__":
    sys.exit(main())
