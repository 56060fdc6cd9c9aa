"""patch_gram on a GPU: what it refuses, and the memory it takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gram_problems import convolution, integers, operator, run

from sylvinit.backends import extension
from sylvinit.errors import DataError, LabelError, SylvinitError
from sylvinit.moments import fused
from sylvinit.moments.device_sums import PatchAccumulator
from sylvinit.moments.fused_layout import PatchLayout

DEVICE = "cuda"


@pytest.mark.parametrize("label", [3, -1, 2**32, 2**40 + 1])
def test_label_out_of_range(label: int) -> None:
    x, labels = integers(4, 5), torch.tensor([0, 1, label, 2])
    _, status = operator(
        x.to(DEVICE), PatchLayout.of(None, (), 1), labels=labels.to(DEVICE), classes=3
    )
    assert int(status) == 1
    accumulator = PatchAccumulator(3, tap_major=True)
    accumulator.add(x.to(DEVICE), PatchLayout.of(None, (), 1), labels.to(DEVICE))
    with pytest.raises(LabelError, match=r"\[0, 3\)"):
        accumulator.sums()


@pytest.mark.parametrize(
    ("entry", "position"),
    [([5, 0], [0, 0]), ([-1, 0], [0, 0]), ([0, 0], [42, 0]), ([0, 1], [0, -1])],
)
def test_a_listed_patch_that_does_not_exist(entry: list[int], position: list[int]) -> None:
    x, layout = integers(5, 3, 6, 7), convolution((6, 7))
    listed = {"entry": torch.tensor(entry), "position": torch.tensor(position)}
    assert run(extension.module, x, layout, device=DEVICE, **listed)[1] == 2


def test_tensors_on_different_devices() -> None:
    x, numbers = torch.ones(4, 3), PatchLayout.of(None, (), 1).numbers()
    gram = torch.zeros(1, 4, 4, dtype=torch.float64)
    status = torch.zeros(1, dtype=torch.int32)
    nothing = (None, None, 0, None, None, None, numbers, "3xtf32")
    for arguments in (
        (x.to(DEVICE), gram, status),
        (x, gram.to(DEVICE), status.to(DEVICE)),
        (x.to(DEVICE), gram.to(DEVICE), status),
    ):
        with pytest.raises(DataError, match=r"is on (cpu|cuda:0) but x on"):
            fused.patch_gram(*arguments, *nothing)


def test_memory_of_the_host_is_refused() -> None:
    """By the compiled module itself: a kernel that read it would end the CUDA context."""
    with pytest.raises(ValueError, match="must be on a CUDA device"):
        run(extension.module, torch.ones(4, 3), PatchLayout.of(None, (), 1))
    assert int(torch.ones(3, device=DEVICE).sum()) == 3


def test_wrong_dtypes_and_strides() -> None:
    x, layout = torch.ones(4, 3, device=DEVICE), PatchLayout.of(None, (), 1)
    with pytest.raises(DataError, match="x must be float32"):
        operator(x.double(), layout)
    with pytest.raises(DataError, match="does not hold whole samples"):
        operator(x[:0], layout)
    gram = torch.zeros(1, 4, 8, dtype=torch.float64, device=DEVICE)[:, :, ::2]
    with pytest.raises(DataError, match="gram must be contiguous"):
        operator(x, layout, gram=gram)


@pytest.mark.parametrize("labeled", [False, True])
def test_operator_is_well_formed(labeled: bool) -> None:
    x, layout = torch.randn(4, 3, device=DEVICE), PatchLayout.of(None, (), 1).numbers()
    size = 6 if labeled else 4
    gram = torch.zeros(1, size, size, dtype=torch.float64, device=DEVICE)
    status = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    labels = torch.tensor([0, 1, 1, 0], device=DEVICE) if labeled else None
    beside = (None, labels, 2 if labeled else 0, None, None, None, layout, "3xtf32")
    torch.library.opcheck(torch.ops.sylvinit.patch_gram, (x, gram, status, *beside))
    torch.library.opcheck(torch.ops.sylvinit.patch_mean, (x, layout, 3))


# ------------------------------------------------------------------------------------------ memory


def allocated_by(call: Callable[[], Any]) -> int:
    """Bytes that a call has allocated at its peak beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("d", [27, 576])
def test_workspace_does_not_grow_with_the_patches(d: int) -> None:
    multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    layout, peaks = PatchLayout.of(None, (), 1), []
    gram = torch.zeros(1, d + 1, d + 1, dtype=torch.float64, device=DEVICE)
    row = torch.randn(1, d, device=DEVICE)
    for n in (1_000_000, 10_000_000):
        x = row.expand(n, d)
        peaks.append(allocated_by(lambda x=x: operator(x, layout, gram=gram)))
    assert peaks[0] == peaks[1]
    # Four blocks for each multiprocessor, with a tile of 128 in float64, and the status.
    assert peaks[0] <= multiprocessors * 4 * 128 * 128 * 8 * 1.1


def test_out_of_memory_names_sizes_and_leaks_nothing() -> None:
    x = torch.ones(100, 12_000, device=DEVICE)  # the Gram matrix takes 1.1 GB
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        with pytest.raises(SylvinitError, match=r"(?s)memory.*12001|12001.*memory"):
            PatchAccumulator(0, tap_major=True).add(x, PatchLayout.of(None, (), 1), None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()  # the frames of the exception
    assert torch.cuda.memory_allocated() == before
    gram, _ = operator(x[:, :30].contiguous(), PatchLayout.of(None, (), 1))
    assert float(gram[0, 30, 30]) == 100
