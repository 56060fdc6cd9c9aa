"""Problems for patch_gram on host threads and on a GPU: random ones, and their answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from sylvinit.model.geometry import PADDING_MODES, PatchGeometry
from sylvinit.moments import fused
from sylvinit.moments.fused_layout import PatchLayout

POISON = -7.0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def integers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """In [-3, 5]: exact in every dtype and arithmetic here, and with a mean to shift by."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 6, shape, generator=generator).to(dtype)


def moved(x: Tensor, device: str) -> Tensor:
    """The same tensor on a device, the gaps between its elements included."""
    count = x.untyped_storage().nbytes() // x.itemsize
    flat = x.as_strided((count,), (1,), 0).to(device)
    return flat.as_strided(x.shape, x.stride(), x.storage_offset())


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within it torch.empty, the workspace of the kernels included, is full of NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run(
    module: Any,
    x: Tensor,
    layout: PatchLayout,
    *,
    shift: Tensor | None = None,
    labels: Tensor | None = None,
    classes: int = 0,
    code: Tensor | None = None,
    entry: Tensor | None = None,
    position: Tensor | None = None,
    arithmetic: str = "3xtf32",
    tile: int = 0,
    multiprocessors: int = 4,
    start: float = 0.0,
    device: str = "cpu",
) -> tuple[Tensor, int]:
    """The upper triangle of the Gram matrix, and the status; what is below must not change.

    All tensors are on the CPU; the kernels get copies on ``device``.
    """
    size = fused.columns(x, layout, classes, code)
    gram = torch.full((layout.groups, size, size), start, dtype=torch.float64)
    gram += torch.full_like(gram, POISON - start).tril(-1)
    gram, status = gram.to(device), torch.zeros(1, dtype=torch.int32, device=device)
    beside = [None if y is None else y.to(device) for y in (shift, labels, code, entry, position)]
    stream = 0 if device == "cpu" else torch.cuda.current_stream().cuda_stream
    with poisoned_memory():
        fused.launch_gram(
            module,
            moved(x, device),
            gram,
            status,
            *beside[:2],
            classes,
            *beside[2:],
            layout,
            arithmetic,
            multiprocessors=multiprocessors,
            stream=stream,
            tile=tile,
        )
    gram = gram.cpu()
    below = torch.ones(size, size, dtype=torch.bool).tril(-1)
    assert bool((gram[:, below] == POISON).all())
    return gram.triu(), int(status)


def expected(x: Tensor, layout: PatchLayout, **beside: Any) -> tuple[Tensor, int]:
    """The same by the reference operator."""
    classes, code = beside.get("classes", 0), beside.get("code")
    size = fused.columns(x, layout, classes, code)
    gram = torch.zeros((layout.groups, size, size), dtype=torch.float64)
    status = torch.zeros(1, dtype=torch.int32)
    fused.patch_gram(
        x,
        gram,
        status,
        beside.get("shift"),
        beside.get("labels"),
        classes,
        code,
        beside.get("entry"),
        beside.get("position"),
        layout.numbers(),
        "ffma",
    )
    return gram, int(status)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, PatchLayout, dict[str, Any]]:
    """An activation, a way to read it, and what stands beside the patches."""
    dims = draw(st.integers(0, 3))
    groups, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    entries = draw(st.integers(1, 6))
    sizes = tuple(draw(st.integers(2, 6)) for _ in range(dims))
    transposed = dims > 0 and draw(st.booleans()) and draw(st.booleans())
    mode = "zeros" if transposed else draw(st.sampled_from(PADDING_MODES))
    kernel, stride, dilation, pads = [], [], [], []
    for size in sizes:
        kernel.append(draw(st.integers(1, 3)))
        stride.append(draw(st.integers(1, 3)))
        dilation.append(draw(st.integers(1, 2)))
        reach = dilation[-1] * (kernel[-1] - 1)
        least = 0 if transposed else max(0, (reach + 2 - size) // 2)
        most = max(least, 0 if transposed else min(2, size - 1))
        pads.append(draw(st.integers(least, most)))
        if mode == "reflect" and pads[-1] >= size:
            mode = "zeros"
    geometry = None
    out_size: tuple[int, ...] = ()
    if dims:
        sides = tuple(pads)
        geometry = PatchGeometry(
            tuple(kernel), tuple(stride), tuple(dilation), sides, sides, mode, transposed
        )
        out_size = geometry.output_size(sizes)
    dtype = draw(st.sampled_from(DTYPES))
    x = integers(entries, groups * channels, *sizes, seed=draw(st.integers(0, 99)), dtype=dtype)
    strides = draw(st.sampled_from(["contiguous", "channels_last", "sliced"]))
    if strides == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif strides == "sliced":
        x = torch.cat((x, x), dim=-1)[..., : x.shape[-1]]
    per_sample = draw(st.sampled_from([e for e in (1, 2, 3) if entries % e == 0]))
    layout = PatchLayout.of(
        geometry,
        out_size,
        groups,
        tap_major=draw(st.booleans()),
        entries_per_sample=per_sample,
        first_sample=draw(st.sampled_from([0, 7, 2**33])),
        draws=draw(st.sampled_from([0, 1, 5, 20])),
        key=(draw(st.integers(0, 2**32 - 1)), 5),
    )
    d = channels * layout.taps
    beside: dict[str, Any] = {}
    if draw(st.booleans()):
        beside["shift"] = integers(groups, d, seed=1)
    if draw(st.booleans()):
        beside["classes"] = draw(st.integers(1, 4))
        samples = entries // per_sample
        beside["labels"] = integers(samples, seed=2).long() % beside["classes"]
    if draw(st.booleans()):
        n = layout.patches(x, None)
        beside["code"] = integers(n, draw(st.integers(1, 3)), seed=3)
    return x, layout, beside


def operator(
    x: Tensor,
    layout: PatchLayout,
    *,
    shift: Tensor | None = None,
    labels: Tensor | None = None,
    classes: int = 0,
    arithmetic: str = "3xtf32",
    gram: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The Gram matrix, added to ``gram`` if given, and the status, on the device of x."""
    size = fused.columns(x, layout, classes, None)
    if gram is None:
        shape = (layout.groups, layout.rows or size, size)
        gram = torch.zeros(shape, dtype=torch.float64, device=x.device)
    status = torch.zeros(1, dtype=torch.int32, device=x.device)
    beside = (labels, classes, None, None, None)
    fused.patch_gram(x, gram, status, shift, *beside, layout.numbers(), arithmetic)
    return gram, status


def convolution(
    size: tuple[int, ...], kernel: int = 3, groups: int = 1, **options: Any
) -> PatchLayout:
    """Of a convolution with stride 1 whose output has the size of its input."""
    dims, pad = len(size), (kernel // 2,) * len(size)
    geometry = PatchGeometry((kernel,) * dims, (1,) * dims, (1,) * dims, pad, pad)
    return PatchLayout.of(geometry, size, groups, **options)
