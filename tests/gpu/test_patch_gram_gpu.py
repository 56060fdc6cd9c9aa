"""The patch_gram kernels on a GPU, against the operator's CPU implementation in float64.

Data of small integers make every sum exact in every arithmetic, so that one wrong index shows.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from gram_problems import (
    convolution,
    expected,
    integers,
    moved,
    operator,
    poisoned_memory,
    problems,
    run,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sylvinit.backends import extension
from sylvinit.moments import fused
from sylvinit.moments.device_sums import PatchAccumulator
from sylvinit.moments.fused_layout import PatchLayout

DEVICE = "cuda"
TILES = (0, 32, 64, 128)
EXAMPLES = int(os.environ.get("SYLVINIT_GPU_EXAMPLES", "400"))
examples = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

Problem = tuple[Tensor, PatchLayout, dict[str, Any]]


def multiprocessors() -> int:
    return torch.cuda.get_device_properties(DEVICE).multi_processor_count


def on_gpu(x: Tensor, layout: PatchLayout, **options: Any) -> tuple[Tensor, int]:
    """The kernels with a workspace full of NaN; see :func:`gram_problems.run`."""
    options.setdefault("multiprocessors", multiprocessors())
    return run(extension.module, x, layout, device=DEVICE, **options)


# ---------------------------------------------------------------------------- every index, exactly


@examples
@given(
    problem=problems(),
    arithmetic=st.sampled_from(fused.ARITHMETICS),
    tile=st.sampled_from(TILES),
)
def test_exact_on_integers(problem: Problem, arithmetic: str, tile: int) -> None:
    x, layout, beside = problem
    gram, _ = on_gpu(x, layout, arithmetic=arithmetic, tile=tile, **beside)
    assert torch.equal(gram, expected(x, layout, **beside)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("arithmetic", fused.ARITHMETICS)
def test_several_tiles(arithmetic: str, tile: int, channels_last: bool, dtype: Any) -> None:
    """Tiles off the diagonal and parts of the patches, labels, and a start that is not zero."""
    x = integers(9, 36, 11, 9, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layout = convolution((11, 9), tap_major=channels_last, draws=150)
    labels = integers(9, seed=1).long() % 5
    beside = {"labels": labels, "classes": 5, "shift": integers(1, 324, seed=2)}
    gram, status = on_gpu(x, layout, arithmetic=arithmetic, tile=tile, start=0.5, **beside)
    exact = expected(x, layout, **beside)[0]
    assert torch.equal(gram, exact + torch.full_like(exact, 0.5).triu())
    assert status == 0


@pytest.mark.parametrize("arithmetic", fused.ARITHMETICS)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 33, 64, 257, 4095, 4097, 135_169, 1_000_003])
def test_ones_count_the_patches(n: int, arithmetic: str) -> None:
    """Chunks of patches that are not full, parts of uneven length, sums past float32."""
    x = torch.ones(1, 3, device=DEVICE).expand(n, 3)
    gram, _ = operator(x, PatchLayout.of(None, (), 1), arithmetic=arithmetic)
    assert torch.equal(gram.cpu(), torch.full((1, 4, 4), float(n), dtype=torch.float64).triu())


def test_more_patches_than_32_bits_count() -> None:
    n = 2**31 + 1000
    x = torch.ones(1, 3, device=DEVICE).expand(n, 3)
    gram, _ = operator(x, PatchLayout.of(None, (), 1))
    assert torch.equal(gram.cpu(), torch.full((1, 4, 4), float(n), dtype=torch.float64).triu())


def test_offsets_beyond_32_bits() -> None:
    storage = torch.empty(2**31 + 4096, dtype=torch.bfloat16, device=DEVICE)
    x = storage.as_strided((2, 3, 4, 4), (2**31, 16, 4, 1))
    values = integers(2, 3, 4, 4)
    x.copy_(values)
    gram, _ = operator(x, convolution((4, 4)))
    assert torch.equal(gram.cpu(), expected(values, convolution((4, 4)))[0])


@pytest.mark.parametrize("d", [1, 2, 31, 33, 127, 129, 575, 2305, 4608])
def test_any_number_of_features(d: int) -> None:
    x, layout = integers(300, d), PatchLayout.of(None, (), 1)
    exact = expected(x, layout)[0]
    for dtype in (torch.float32, torch.bfloat16):
        gram, _ = operator(x.to(DEVICE, dtype), layout)
        assert torch.equal(gram.cpu(), exact)


@pytest.mark.parametrize(("first", "rows"), [(0, 20), (40, 100), (130, 186), (315, 1)])
def test_some_rows_alone(first: int, rows: int) -> None:
    x, layout = integers(9, 35, 8, 8), convolution((8, 8), first_row=first, rows=rows)
    gram, _ = operator(x.to(DEVICE), layout)
    exact, _ = operator(x, layout)
    assert torch.equal(gram.cpu(), exact)


@pytest.mark.parametrize("groups", [3, 64, 1000])
def test_many_groups(groups: int) -> None:
    x = integers(20, groups * 2, 5, 5)
    layout = convolution((5, 5), groups=groups, draws=7)
    assert torch.equal(on_gpu(x, layout)[0], expected(x, layout)[0])


def test_listed_patches() -> None:
    x, layout = integers(5, 3, 6, 7), convolution((6, 7))
    listed = {"entry": torch.tensor([4, 0, 0, 2]), "position": torch.tensor([41, 0, 0, 11])}
    beside = {**listed, "labels": torch.tensor([1, 0, 0, 1]), "classes": 2}
    gram, status = on_gpu(x, layout, **beside)
    assert torch.equal(gram, expected(x, layout, **beside)[0])
    assert status == 0


@examples
@given(problem=problems(), share=st.floats(0.01, 1.0))
def test_mean_of_the_first_patches(problem: Problem, share: float) -> None:
    x, layout, _ = problem
    count = max(1, int(share * layout.patches(x, None)))
    found = fused.patch_mean(moved(x, DEVICE), layout.numbers(), count)
    assert torch.equal(found.cpu(), fused.patch_mean(x, layout.numbers(), count))


def test_not_a_number_reaches_its_row_and_column_alone() -> None:
    x = integers(40, 6)
    x[17, 2], x[30, 4] = float("nan"), float("inf")
    touched = torch.zeros(7, 7, dtype=torch.bool)
    touched[[2, 4]] = touched[:, [2, 4]] = True
    for arithmetic in fused.ARITHMETICS:
        gram, _ = on_gpu(x, PatchLayout.of(None, (), 1), arithmetic=arithmetic)
        assert torch.equal(~gram[0].isfinite(), touched.triu())


# ---------------------------------------------------------------------------------------- accuracy

# Relative to the sum of |z_i| |z_j|, bounds from analysis. A product of numbers split in two TF32
# parts each is off by 2^-21. The tensor cores truncate: up to 2^-23 in each of the 24 additions
# for 64 patches (8 steps of three products), and 64 such sums are added in float32, 2^-24 each.
# TF32 rounds both factors by 2^-11.
_SUMS = 24 * 2**-23 + 64 * 2**-24
ACCURACY = {
    "3xtf32": 2**-21 + _SUMS,
    "ffma": 64 * 2**-24 + 64 * 2**-24,
    "tf32": 2**-10 + _SUMS,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("arithmetic", fused.ARITHMETICS)
def test_accuracy(arithmetic: str, mean: float, dtype: Any, record_property: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(400, 16, 9, 9, generator=generator) + mean).to(dtype)
    layout = convolution((9, 9), draws=30)
    shift = fused.patch_mean(moved(x, DEVICE), layout.numbers(), 256).cpu()
    gram, _ = on_gpu(x, layout, shift=shift, arithmetic=arithmetic)
    exact, _ = expected(x, layout, shift=shift)
    rows = fused._reference_rows(x, layout, None, None)
    assert rows is not None
    z, d = (rows[0] - shift[:, None]).abs(), shift.shape[1]
    error = float(((gram - exact)[:, :d, :d].abs() / (z.mT @ z)).max())
    record_property("relative error", error)
    # What the factors lose before they are multiplied: x - shift is rounded to float32.
    assert error <= ACCURACY[arithmetic] + 2**-22


def test_3xtf32_is_as_accurate_as_float32(record_property: Any) -> None:
    """On the sums that matter: the diagonal, where everything adds up with one sign."""
    x = torch.randn(100_000, 64, generator=torch.Generator().manual_seed(1))
    layout = PatchLayout.of(None, (), 1)
    exact = (x.double() ** 2).sum(dim=0)
    errors = {}
    for arithmetic in fused.ARITHMETICS:
        gram, _ = operator(x.to(DEVICE), layout, arithmetic=arithmetic)
        found = gram.cpu()[0].diagonal()[:64]
        errors[arithmetic] = float(((found - exact) / exact).abs().max())
        record_property(f"relative error, {arithmetic}", errors[arithmetic])
    assert errors["3xtf32"] <= ACCURACY["3xtf32"]
    assert errors["ffma"] <= ACCURACY["ffma"]
    assert errors["tf32"] <= ACCURACY["tf32"]


# --------------------------------------------------------------------------------- streams and bits


@pytest.mark.parametrize("arithmetic", fused.ARITHMETICS)
@pytest.mark.parametrize("d", [27, 147, 576])
def test_repeats_bit_for_bit(d: int, arithmetic: str) -> None:
    x = torch.randn(40_000, d, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    layout, first = PatchLayout.of(None, (), 1), None
    for _ in range(5):
        with poisoned_memory():
            gram, _ = operator(x, layout, arithmetic=arithmetic)
        assert first is None or torch.equal(gram, first)
        first = gram


def test_waits_for_its_own_stream() -> None:
    """The input is written, and the result read, by work queued on the same stream."""
    values = integers(64, 8, 10, 10)
    layout = convolution((10, 10), draws=20)
    source, x = values.to(DEVICE), torch.zeros(64, 8, 10, 10, device=DEVICE)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        x.copy_(source)
        gram, _ = operator(x, layout)
        result = gram.clone()
    stream.synchronize()
    assert torch.equal(result.cpu(), expected(values, layout)[0])


def test_nothing_waits_for_the_host(no_waiting: Any) -> None:
    """Launches return while the stream is still busy, those of the first microbatch included."""
    x, labels = integers(64, 8, 10, 10).to(DEVICE), (torch.arange(64) % 3).to(DEVICE)

    def add_three() -> PatchAccumulator:
        accumulator = PatchAccumulator(3, tap_major=True)
        for start in (0, 64, 128):
            layout = convolution((10, 10), draws=5, first_sample=start)
            accumulator.add(x, layout, labels)
        return accumulator

    add_three()  # a kernel's first launch loads it, which may wait
    done = torch.cuda.Event()
    with no_waiting():
        torch.cuda._sleep(500_000_000)  # about 0.3 s
        accumulator = add_three()
        done.record()
        finished = done.query()
    assert not finished
    assert accumulator.sums().n == 3 * 64 * 5


def test_microbatches_see_the_same_patches() -> None:
    x, labels = integers(70, 4, 6, 6), integers(70).long() % 3
    whole = convolution((6, 6), draws=5, first_sample=10, key=(1, 2))
    gram, _ = on_gpu(x, whole, labels=labels, classes=3)
    second = None
    for part in (slice(0, 30), slice(30, 31), slice(31, 70)):
        layout = replace(whole, first_sample=10 + part.start)
        second, status = operator(
            x[part].to(DEVICE), layout, labels=labels[part].to(DEVICE), classes=3, gram=second
        )
        assert int(status) == 0
    assert second is not None
    assert torch.equal(second.cpu(), gram)


@pytest.mark.parametrize("tap_major", [False, True])
def test_accumulator_agrees_with_the_host(tap_major: bool) -> None:
    x, labels = integers(50, 6, 8, 8), integers(50).long() % 4
    sums = []
    for device in ("cpu", DEVICE):
        accumulator = PatchAccumulator(4, tap_major=tap_major)
        for part in (slice(0, 20), slice(20, 50)):
            layout = convolution((8, 8), groups=2, draws=9, first_sample=part.start)
            accumulator.add(x[part].to(device), layout, labels[part].to(device))
        sums.append(accumulator.sums())
    host, gpu = sums
    assert gpu.n == host.n
    assert torch.equal(gpu.shift.cpu(), host.shift)
    # The shift is not an integer, so products round; there are 450 of them, z is up to 5 in size.
    bound = ACCURACY["3xtf32"] * 450 * 25
    assert host.labels is not None
    assert gpu.labels is not None
    pairs = [(host.second, gpu.second), (host.total, gpu.total)]
    pairs += [(getattr(host.labels, x), getattr(gpu.labels, x)) for x in ("total", "cross")]
    for one, other in pairs:
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=bound)
