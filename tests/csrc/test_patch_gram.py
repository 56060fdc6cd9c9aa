"""The patch_gram kernels on host threads, against the sum over explicit patches in float64.

Data of small integers make every sum exact in every arithmetic, so that one wrong index shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gram_problems import expected, integers, problems, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sylvinit.errors import DataError, OptionError
from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments import fused
from sylvinit.moments.fused_layout import PatchLayout

few = settings(max_examples=settings.default.max_examples // 5)


@few
@given(problem=problems(), arithmetic=st.sampled_from(fused.ARITHMETICS))
def test_gram_matrix_is_exact_on_integers(
    shim: Any, problem: tuple[Tensor, PatchLayout, dict[str, Any]], arithmetic: str
) -> None:
    x, layout, beside = problem
    gram, _ = run(shim, x, layout, arithmetic=arithmetic, tile=32, **beside)
    assert torch.equal(gram, expected(x, layout, **beside)[0])


@few
@given(problem=problems(), arithmetic=st.sampled_from(fused.ARITHMETICS))
def test_tiles_of_64(
    shim: Any, problem: tuple[Tensor, PatchLayout, dict[str, Any]], arithmetic: str
) -> None:
    x, layout, beside = problem
    gram, _ = run(shim, x, layout, arithmetic=arithmetic, tile=64, **beside)
    assert torch.equal(gram, expected(x, layout, **beside)[0])


@pytest.mark.parametrize("arithmetic", fused.ARITHMETICS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_tiles_of_128(shim: Any, arithmetic: str, channels_last: bool) -> None:
    """Three tiles, one of them off the diagonal, and two parts of the patches."""
    x = integers(3, 20, 11, 9)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    geometry = PatchGeometry((3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    layout = PatchLayout.of(
        geometry, geometry.output_size((11, 9)), 1, tap_major=channels_last, draws=12
    )
    labels = torch.tensor([2, 0, 1])
    gram, _ = run(
        shim, x, layout, labels=labels, classes=3, tile=128, arithmetic=arithmetic, start=0.5
    )
    exact = expected(x, layout, labels=labels, classes=3)[0]
    assert torch.equal(gram, exact + torch.full_like(exact, 0.5).triu())


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 64, 100, 257, 520])
def test_ones_count_the_patches(shim: Any, n: int) -> None:
    """Chunks of 16 patches that are not full, and parts of the patches that are uneven."""
    layout = PatchLayout.of(None, (), 1)
    gram, _ = run(shim, torch.ones(n, 3), layout, multiprocessors=64)
    assert torch.equal(gram, torch.full((1, 4, 4), float(n), dtype=torch.float64).triu())


@pytest.mark.parametrize(
    ("arithmetic", "n"), [("ffma", 9000), pytest.param("3xtf32", 17000, marks=pytest.mark.thorough)]
)
def test_more_patches_than_one_sum_in_float32(shim: Any, arithmetic: str, n: int) -> None:
    """Past kPatchesPerFlush (1024 in ffma, else 4096) the tiles are added up in float64."""
    x, layout = integers(n, 2), PatchLayout.of(None, (), 1)
    number = fused.ARITHMETICS.index(arithmetic)
    plan = shim.plan_patch_gram(layout.arguments(shim, x), number, 1, 128)
    assert n // plan.splits > {"ffma": 1024, "3xtf32": 4096}[arithmetic]
    gram, _ = run(shim, x, layout, arithmetic=arithmetic, multiprocessors=1, tile=128)
    assert torch.equal(gram, expected(x, layout)[0])


# Relative to the sum of |z_i| |z_j|. Worst of eight such problems on host threads, where the
# emulated tensor core truncates its sums: 3xtf32 7.2e-7, ffma 8.9e-7, tf32 5.3e-4 (two factors,
# each rounded by up to 2^-11). Bounds: about twice that. Without the sums in between 3xtf32 is off
# by 2.0e-6.
BOUNDS = {"3xtf32": 2**-19, "ffma": 2**-19, "tf32": 2**-10}


@pytest.mark.parametrize("arithmetic", fused.ARITHMETICS)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_accuracy(shim: Any, arithmetic: str, mean: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 6, 9, 9, generator=generator) + mean
    geometry = PatchGeometry((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    layout = PatchLayout.of(geometry, (9, 9), 1, draws=10)
    shift = fused.launch_mean(shim, x, layout, 256, stream=0)
    gram, _ = run(shim, x, layout, shift=shift, arithmetic=arithmetic)
    exact, _ = expected(x, layout, shift=shift)
    rows = fused._reference_rows(x, layout, None, None)
    assert rows is not None
    z = (rows[0] - shift[:, None]).abs()
    d = shift.shape[1]
    error = ((gram - exact)[:, :d, :d].abs() / (z.mT @ z)).max()
    assert float(error) <= BOUNDS[arithmetic]


@pytest.mark.parametrize(("n", "classes"), [(1600, 2), (200, 50), (40, 1), (17, 90)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_classes_of_any_number(shim: Any, n: int, classes: int, channels_last: bool) -> None:
    """Several parts of a class, classes of a few patches, of one, and without any."""
    x = integers(n // 4 + 1, 5, 4, 4)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layout = PatchLayout.of(
        PatchGeometry((3, 3), (1, 1), (1, 1), (0, 0), (0, 0)), (2, 2), 1, tap_major=channels_last
    )
    labels = integers(len(x), seed=4).long().abs() * 7 % classes
    beside = {"labels": labels, "classes": classes, "shift": integers(1, 45, seed=5)}
    gram, status = run(shim, x, layout, tile=64, multiprocessors=16, **beside)
    assert torch.equal(gram, expected(x, layout, **beside)[0])
    assert status == 0


@pytest.mark.parametrize("arithmetic", fused.ARITHMETICS)
@pytest.mark.parametrize(
    ("groups", "tile", "dtype"),
    [(1, 32, torch.float32), (2, 32, torch.bfloat16), (1, 64, torch.float16)],
)
def test_patches_that_are_gathered_first(
    shim: Any, groups: int, tile: int, dtype: torch.dtype, arithmetic: str
) -> None:
    """Three tiles across and more, read one by one; a few patches at a time, and padded rows."""
    x = integers(7, groups * 21, 6, 7, dtype=dtype)
    geometry = PatchGeometry((3, 3), (2, 1), (1, 1), (1, 1), (1, 1))
    size = geometry.output_size((6, 7))
    layout = PatchLayout.of(geometry, size, groups, tap_major=False, draws=19)
    n, d = layout.patches(x, None), 189
    beside = {"shift": integers(groups, d, seed=1), "code": integers(n, 2, seed=2)}
    beside.update(labels=integers(7, seed=3).long() % 3, classes=3)
    args = layout.arguments(shim, x)
    gathered = shim.plan_patch_gram(args, fused.ARITHMETICS.index(arithmetic), 4, tile).gathered
    assert 0 < gathered < n
    gram, status = run(shim, x, layout, tile=tile, arithmetic=arithmetic, start=0.5, **beside)
    exact = expected(x, layout, **beside)[0]
    assert torch.equal(gram, exact + torch.full_like(exact, 0.5).triu())
    assert status == 0


def test_a_listed_patch_that_does_not_exist_is_seen_where_patches_are_gathered(shim: Any) -> None:
    x = integers(3, 21, 6, 7)
    geometry = PatchGeometry((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    layout = PatchLayout.of(geometry, (6, 7), 1, tap_major=False)
    listed = {"entry": torch.tensor([0, 3]), "position": torch.tensor([5, 0])}
    assert run(shim, x, layout, tile=32, **listed)[1] == 2


def test_repeats_bit_for_bit(shim: Any) -> None:
    x = torch.randn(700, 20, generator=torch.Generator().manual_seed(0))
    layout = PatchLayout.of(None, (), 1)
    first, second = (run(shim, x, layout, tile=32, multiprocessors=8)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_microbatches_see_the_same_patches(shim: Any) -> None:
    x = integers(7, 4, 6, 6)
    geometry = PatchGeometry((3, 3), (1, 1), (1, 1), (0, 0), (0, 0))
    whole = PatchLayout.of(geometry, (4, 4), 1, draws=5, first_sample=10, key=(1, 2))
    labels = integers(7).long() % 3
    gram, _ = run(shim, x, whole, labels=labels, classes=3)
    parts = [
        run(
            shim,
            x[part],
            replace(whole, first_sample=10 + part.start),
            labels=labels[part],
            classes=3,
        )[0]
        for part in (slice(0, 3), slice(3, 4), slice(4, 7))
    ]
    assert torch.equal(gram, sum(parts))


def test_listed_patches(shim: Any) -> None:
    x = integers(5, 3, 6, 7)
    geometry = PatchGeometry((2, 3), (1, 1), (1, 1), (1, 0), (1, 0))
    layout = PatchLayout.of(geometry, geometry.output_size((6, 7)), 1)
    entry, position = torch.tensor([4, 0, 0, 2]), torch.tensor([34, 0, 0, 11])
    beside = {
        "entry": entry,
        "position": position,
        "labels": torch.tensor([1, 0, 0, 1]),
        "classes": 2,
    }
    gram, status = run(shim, x, layout, **beside)
    assert torch.equal(gram, expected(x, layout, **beside)[0])
    assert status == 0


@pytest.mark.parametrize(
    ("entry", "position"),
    [([5, 0], [0, 0]), ([-1, 0], [0, 0]), ([0, 0], [35, 0]), ([0, 1], [0, -1])],
)
def test_a_listed_patch_that_does_not_exist(
    shim: Any, entry: list[int], position: list[int]
) -> None:
    x = integers(5, 3, 6, 7)
    geometry = PatchGeometry((2, 3), (1, 1), (1, 1), (1, 0), (1, 0))
    layout = PatchLayout.of(geometry, (7, 5), 1)
    listed = {"entry": torch.tensor(entry), "position": torch.tensor(position)}
    assert run(shim, x, layout, **listed)[1] == 2


@pytest.mark.parametrize("label", [3, -1, 2**32, 2**40 + 1])
def test_label_out_of_range(shim: Any, label: int) -> None:
    x, labels = integers(4, 5), torch.tensor([0, 1, label, 2])
    layout = PatchLayout.of(None, (), 1)
    assert run(shim, x, layout, labels=labels, classes=3)[1] == 1
    assert expected(x, layout, labels=labels, classes=3)[1] == 1


def test_not_a_number_reaches_its_row_and_column_alone(shim: Any) -> None:
    x = integers(40, 6)
    x[17, 2], x[30, 4] = float("nan"), float("inf")
    for arithmetic in fused.ARITHMETICS:
        gram, _ = run(shim, x, PatchLayout.of(None, (), 1), arithmetic=arithmetic)
        finite = gram.isfinite() | ~torch.ones(7, 7, dtype=torch.bool).triu()
        touched = torch.zeros(7, 7, dtype=torch.bool)
        touched[[2, 4]] = touched[:, [2, 4]] = True
        assert torch.equal(~finite[0], touched.triu())


def test_offsets_beyond_32_bits(shim: Any) -> None:
    storage = torch.empty(2**31 + 4096, dtype=torch.bfloat16)  # never touched but for two entries
    x = storage.as_strided((2, 3, 4, 4), (2**31, 16, 4, 1))
    x.copy_(integers(2, 3, 4, 4))
    geometry = PatchGeometry((2, 2), (1, 1), (1, 1), (0, 0), (0, 0))
    layout = PatchLayout.of(geometry, (3, 3), 1)
    gram, _ = run(shim, x, layout, tile=32)
    assert torch.equal(gram, expected(x.clone(), layout)[0])


def test_first_patches_mean(shim: Any) -> None:
    x = integers(6, 8, 5, 5)
    geometry = PatchGeometry((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    layout = PatchLayout.of(geometry, (5, 5), 2, draws=4)
    for count in (1, 7, 24):
        mean = fused.launch_mean(shim, x, layout, count, stream=0)
        assert torch.equal(mean, fused.patch_mean(x, layout.numbers(), count))


def test_workspace_does_not_grow_with_the_patches(shim: Any) -> None:
    layout = PatchLayout.of(None, (), 1)

    def workspace(n: int, d: int) -> int:
        args = layout.arguments(shim, torch.empty(1, d).expand(n, d))
        return shim.plan_patch_gram(args, 0, 132).workspace

    for d in (27, 575, 4608):
        assert workspace(10**8, d) == workspace(10**6, d)
    # 132 multiprocessors that run one block at a time, at most four times, and a tile of 128 in
    # float64 for every block.
    assert workspace(10**8, 576) <= 132 * 4 * 128 * 128 * 8 * 1.1


@pytest.mark.parametrize("d", [3, 27, 64, 148, 576, 1152, 4608])
@pytest.mark.parametrize("n", [1, 16, 100, 1280, 10_240, 10**6])
def test_blocks_fill_the_device(shim: Any, n: int, d: int) -> None:
    """Against all other numbers of parts, in chunks that the last block waits for."""
    args = PatchLayout.of(None, (), 1).arguments(shim, torch.empty(1, d).expand(n, d))
    plan = shim.plan_patch_gram(args, 0, 132)
    threads = {32: 32, 64: 128, 128: 256}[plan.tile]
    resident, chunks = 132 * max(1, 256 // threads), -(-n // 16)

    def longest(splits: int) -> int:
        return -(-plan.pairs * splits // resident) * -(-chunks // splits)

    assert 1 <= plan.splits <= max(2, 4 * resident // plan.pairs)
    assert plan.splits <= chunks
    # What a block takes to begin, and its tile in the workspace, are worth some 20 chunks.
    best = min(map(longest, range(1, max(2, 4 * resident // plan.pairs) + 1)))
    assert longest(plan.splits) <= 1.1 * best + 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be in"),
        ({"n": 2**41}, "n must be in"),
        ({"channels": 2**17}, "columns"),
        ({"groups": 0}, "groups"),
        ({"element_type": 3}, "element_type"),
        ({"entry_stride": -1}, "strides"),
        ({"classes": 2}, "labels need classes"),
        ({"classes": 2, "labels": 64, "status": 64}, "by class"),
        ({"x": 0}, "null pointer"),
        ({"draws": 2**32}, "draws"),
    ],
)
def test_arguments_out_of_range(shim: Any, change: dict[str, int], message: str) -> None:
    args = PatchLayout.of(None, (), 1).arguments(shim, torch.ones(4, 3))
    for name, value in change.items():
        setattr(args, name, value)
    with pytest.raises(ValueError, match=message):
        shim.plan_patch_gram(args, 0, 132)


def test_too_many_taps(shim: Any) -> None:
    geometry = PatchGeometry((97,), (1,), (1,), (0,), (0,))
    x = torch.ones(1, 1, 100)
    layout = PatchLayout.of(geometry, (4,), 1)
    with pytest.raises(ValueError, match="must be at most 96"):
        run(shim, x, layout)


def test_operator_names_what_is_wrong() -> None:
    x, layout = torch.ones(4, 3), PatchLayout.of(None, (), 1).numbers()
    gram, status = torch.zeros(1, 4, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    nothing = (None, None, 0, None, None, None, layout)
    with pytest.raises(OptionError, match="arithmetic must be one of"):
        fused.patch_gram(x, gram, status, *nothing, "fp8")
    with pytest.raises(DataError, match="x must be float32"):
        fused.patch_gram(x.double(), gram, status, *nothing, "ffma")
    with pytest.raises(DataError, match="gram must be contiguous"):
        fused.patch_gram(x, gram.float(), status, *nothing, "ffma")
    with pytest.raises(DataError, match="gram must be contiguous"):
        fused.patch_gram(x, gram[:, :3, :3], status, *nothing, "ffma")
    with pytest.raises(DataError, match="does not hold whole samples"):
        fused.patch_gram(x[:0], gram, status, *nothing, "ffma")


@pytest.mark.parametrize("labeled", [False, True])
def test_operator_is_well_formed(labeled: bool) -> None:
    x, layout = torch.randn(4, 3), PatchLayout.of(None, (), 1).numbers()
    size = 6 if labeled else 4
    gram, status = (
        torch.zeros(1, size, size, dtype=torch.float64),
        torch.zeros(1, dtype=torch.int32),
    )
    labels, classes = (torch.tensor([0, 1, 1, 0]), 2) if labeled else (None, 0)
    arguments = (x, gram, status, None, labels, classes, None, None, None, layout, "3xtf32")
    torch.library.opcheck(torch.ops.sylvinit.patch_gram, arguments)
    torch.library.opcheck(torch.ops.sylvinit.patch_mean, (x, layout, 3))
