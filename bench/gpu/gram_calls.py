"""What is timed: patch_gram as the library calls it, its kernels alone, and the other ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.ceilings import tf32_products
from gpu.gram_cases import Inputs
from sylvinit.backends import extension
from sylvinit.moments import fused
from sylvinit.moments.gather import gather_patches

Call = Callable[[], Any]
# Bytes of the indices of one chunk of gathered patches.
_CHUNK_BYTES = 2**30


def operator(inputs: Inputs, arithmetic: str, classes: int = 0) -> list[Call]:
    """The operator, adding to one Gram matrix; a call for each turn.

    With labels in random order where there are classes, and without the rows of the labels.
    """
    x, d = inputs.x(0), inputs.case.d
    gram = torch.zeros(1, d + 1, d + 1 + classes, dtype=torch.float64, device=x.device)
    status = torch.zeros(1, dtype=torch.int32, device=x.device)
    shift = torch.zeros(1, d, device=x.device)
    labels = None
    if classes:
        labels = torch.randperm(inputs.case.images).to(x.device) % classes

    def call(turn: int) -> None:
        numbers = replace(inputs.layout(turn), rows=d + 1).numbers()
        beside = (labels, classes, None, None, None)
        fused.patch_gram(inputs.x(turn), gram, status, shift, *beside, numbers, arithmetic)

    return [lambda turn=turn: call(turn) for turn in range(inputs.turns)]


def mean(inputs: Inputs) -> list[Call]:
    """The shift of the first microbatch."""
    count = min(256, inputs.case.n)
    return [
        lambda turn=turn: fused.patch_mean(inputs.x(turn), inputs.layout(turn).numbers(), count)
        for turn in range(inputs.turns)
    ]


class Kernels:
    """The kernels of one tile and arithmetic, with everything they need made beforehand."""

    def __init__(self, inputs: Inputs, arithmetic: str, tile: int) -> None:
        module, case = extension.module, inputs.case
        device = inputs.x(0).device
        size = case.d + 1
        self.gram = torch.zeros(1, size, size, dtype=torch.float64, device=device)
        self.status = torch.zeros(1, dtype=torch.int32, device=device)
        self.shift = torch.zeros(1, case.d, device=device)
        self.inputs, self.arithmetic = inputs, fused.ARITHMETICS.index(arithmetic)
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self.arguments: list[tuple[Any, Any]] = []
        for turn in range(inputs.turns):
            args = inputs.layout(turn).arguments(module, inputs.x(turn))
            args.status, args.shift = self.status.data_ptr(), self.shift.data_ptr()
            plan = module.plan_patch_gram(args, self.arithmetic, multiprocessors, tile)
            self.arguments.append((args, plan))
        self.plan = self.arguments[0][1]
        count = self.plan.workspace // 8
        self.workspace = torch.empty(count, dtype=torch.float64, device=device)

    def calls(self) -> list[Call]:
        """A launch for each turn, on the current stream."""

        def call(turn: int) -> None:
            args, plan = self.arguments[turn]
            stream = torch.cuda.current_stream().cuda_stream
            addresses = (self.gram.data_ptr(), self.workspace.data_ptr(), stream)
            extension.module.patch_gram(args, plan, self.arithmetic, *addresses)

        return [lambda turn=turn: call(turn) for turn in range(self.inputs.turns)]


def _on_gathered(inputs: Inputs, add: Callable[[Tensor, Tensor], None]) -> list[Call]:
    """As many patches gathered by torch; ``add(total, rows)`` adds the products of a chunk.

    Their positions are drawn beforehand.
    """
    case, device = inputs.case, inputs.x(0).device
    chunk = max(4096, _CHUNK_BYTES // (8 * case.d))
    generator = torch.Generator(device).manual_seed(0)
    each = min(case.draws, case.positions)
    entry = torch.arange(case.images, device=device).repeat_interleave(each)
    positions = [
        torch.randint(case.positions, (case.n,), generator=generator, device=device)
        for _ in range(inputs.turns if case.n < 10**6 else 1)
    ]

    def call(turn: int) -> Tensor:
        position = positions[turn % len(positions)]
        total = torch.zeros(case.d, case.d, device=device)
        for begin in range(0, case.n, chunk):
            part = slice(begin, begin + chunk)
            rows = gather_patches(
                inputs.x(turn), case.geometry, entry[part], position[part], case.out_size
            )
            add(total, rows.flatten(1).float())
        return total

    return [lambda turn=turn: call(turn) for turn in range(inputs.turns)]


def gathered(inputs: Inputs) -> list[Call]:
    """Gathered patches, and cuBLAS in float32."""
    return _on_gathered(inputs, lambda total, rows: total.addmm_(rows.T, rows))


def halves(inputs: Inputs) -> list[Call]:
    """Gathered patches, and cuBLAS on two TF32 halves: H^T H + H^T L + (H^T L)^T, X = H + L."""

    def add(total: Tensor, rows: Tensor) -> None:
        high, low = split_tf32(rows)
        with tf32_products(True):
            cross = high.T @ low
            total.addmm_(high.T, high)
        total += cross
        total += cross.T

    return _on_gathered(inputs, add)


def split_tf32(x: Tensor) -> tuple[Tensor, Tensor]:
    """x = high + low, high of 11 bits; what is beyond 11 bits of low is dropped by the product."""
    high = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return high, x - high


def unfolded(inputs: Inputs) -> list[Call]:
    """All patches by F.unfold, and one product, as a user would write it."""
    case = inputs.case
    options = {"padding": case.kernel // 2, "stride": case.stride}

    def call(turn: int) -> Tensor:
        columns = F.unfold(inputs.x(turn).float(), case.kernel, **options)
        rows = columns.transpose(1, 2).flatten(0, 1)
        return rows.T @ rows

    return [lambda turn=turn: call(turn) for turn in range(inputs.turns)]


def ready(inputs: Inputs) -> list[Call]:
    """The product alone, of patches that lie there in float32."""
    case, device = inputs.case, inputs.x(0).device
    generator = torch.Generator(device).manual_seed(0)
    held = 1 if case.n * case.d > 10**9 else 3
    sets = [torch.randn(case.n, case.d, generator=generator, device=device) for _ in range(held)]
    return [lambda rows=rows: rows.T @ rows for rows in sets]
