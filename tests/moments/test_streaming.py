"""Streaming moments against the two-pass formula in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_near, philox4x32_10
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

import sylvinit.moments.streaming
import sylvinit.moments.sums
from sylvinit import PatchMoments
from sylvinit.errors import DataError, LabelError, OptionError
from sylvinit.moments.sums import LabelSums, RowSums, gram

# Of the largest entry (or of 1). Sums of n <= 60 products in float64 are off by n eps = 1e-14 at
# most, and the moments are sums of at most 60 pieces of that kind.
CLOSE = 1e-12


def two_pass(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean (groups, d) and covariance (groups, d, d) of rows (groups, n, d)."""
    values = x.double().numpy()
    mean = values.mean(axis=1)
    deviation = values - mean[:, None]
    return mean, np.einsum("gni,gnj->gij", deviation, deviation) / values.shape[1]


def assert_moments(
    moments: PatchMoments, x: Tensor, labels: Tensor | None = None, tolerance: float = CLOSE
) -> None:
    mean, covariance = two_pass(x)
    assert moments.n == x.shape[1]
    assert_near(moments.mean(), mean, tolerance)
    assert_near(moments.covariance(), covariance, tolerance)
    counts, means = moments.class_counts(), moments.class_means()
    if labels is None:
        assert counts is None
        assert means is None
        return
    assert counts is not None
    assert means is not None
    for c in range(moments.classes):
        member = x[:, labels == c].double()
        assert counts[c] == member.shape[1]
        assert_near(means[:, c], member.sum(dim=1).numpy() / max(member.shape[1], 1), tolerance)


@st.composite
def streams(draw: st.DrawFn) -> dict[str, Any]:
    """Rows, labels, and how they are cut into chunks and accumulators."""
    n, d, groups = draw(st.integers(1, 60)), draw(st.integers(1, 7)), draw(st.integers(1, 2))
    classes = draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(groups, n, d, generator=generator, dtype=torch.float64)
    cuts = sorted(draw(st.sets(st.integers(1, n), max_size=5)) | {0, n})
    pieces = list(pairwise(cuts))
    return {
        "x": x * draw(st.sampled_from([1e-3, 1.0, 30.0])) + draw(st.sampled_from([0.0, 5.0])),
        "labels": torch.randint(max(classes, 1), (n,), generator=generator) if classes else None,
        "classes": classes + draw(st.integers(0, 1)) if classes else 0,
        "pieces": draw(st.permutations(pieces)),
        # Whether a piece goes to a new accumulator, and whether that one is read in between.
        "new": draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces))),
        "read": draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces))),
        "chunk_bytes": draw(st.sampled_from([1, 500, 2**24])),
    }


@given(stream=streams())
def test_any_chunks_in_any_order_give_the_two_pass_moments(stream: dict[str, Any]) -> None:
    x, labels = stream["x"], stream["labels"]
    groups, _, d = x.shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sylvinit.moments.streaming, "_CHUNK_BYTES", stream["chunk_bytes"])
        parts: list[PatchMoments] = []
        steps = zip(stream["pieces"], stream["new"], stream["read"], strict=True)
        for (begin, end), new, read in steps:
            if new or not parts:
                parts.append(PatchMoments(d, groups=groups, classes=stream["classes"]))
            some = None if labels is None else labels[begin:end]
            parts[-1].update(x[:, begin:end], some)
            if read:
                parts[-1].mean()  # ends the time in which rows are held back
        merged = parts[0]
        for part in parts[1:]:
            merged.merge(part)
        assert_moments(merged, x, labels)


@pytest.mark.parametrize("empty", [False, True])
def test_merging_leaves_the_other_as_it_was(empty: bool) -> None:
    x = torch.randn(1, 40, 4, dtype=torch.float64)
    y = torch.arange(40) % 2
    one, two, three = (PatchMoments(4, classes=2) for _ in range(3))
    two.update(x[:, 10:20], y[10:20]).mean()
    three.update(x[:, 20:], y[20:]).mean()
    if not empty:
        one.update(x[:, :10], y[:10]).mean()
    one.merge(two).merge(three).update(x[:, :10], y[:10])
    one.mean()
    assert_moments(two, x[:, 10:20], y[10:20])
    assert_moments(three, x[:, 20:], y[20:])
    begin = 10 if empty else 0
    assert_moments(one, torch.cat((x[:, begin:], x[:, :10]), 1), torch.cat((y[begin:], y[:10])))


def test_large_mean_keeps_the_covariance_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    # Deviations of 0.1 about 1e4, where float32 numbers are 0.001 apart.
    x = 1e4 + 0.1 * torch.randn(1, 5000, 6, generator=generator) @ mixing
    moments, later = PatchMoments(6), PatchMoments(6)
    for begin in range(0, 4000, 500):
        moments.update(x[:, begin : begin + 500])
        if begin % 1000:
            moments.mean()
    moments.merge(later.update(x[:, 4000:]))
    mean, covariance = two_pass(x)
    assert moments.precision == torch.float32
    assert_near(moments.mean(), mean, 1e-10)  # in float64: what the shift leaves is 1e-7 of 0.1
    # Sums of 5000 float32 products are off by about sqrt(5000) eps = 8e-6 of the diagonal at most;
    # the worst value seen is 3e-6. Raw products of 1e8 would lose everything.
    error = np.abs(moments.covariance().numpy() - covariance).max()
    assert error < 1e-5 * covariance.max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast_without_loss(dtype: torch.dtype) -> None:
    x = (3 + torch.randn(1, 300, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    moments = PatchMoments(5).update(x[:, :100]).update(x[:, 100:])
    assert moments.precision == torch.float32
    # sqrt(300) eps of float32 = 2e-6; the worst value seen is 6e-7.
    assert_moments(moments, x, tolerance=3e-6)
    exact = PatchMoments(5, precision=torch.float64).update(x)
    assert_moments(exact, x)


def test_precision_of_a_merge_is_the_higher_one() -> None:
    x = torch.randn(1, 20, 3)
    low = PatchMoments(3).update(x[:, :10])
    high = PatchMoments(3).update(x[:, 10:].double())
    assert low.merge(high).precision == torch.float64
    # Half of the products were taken in float32, whatever the rest is.
    assert low.eps == torch.finfo(torch.float32).eps
    assert_moments(low, x)


@pytest.mark.parametrize("shape", [(7, 400), (2, 9, 401), (30, 20)])
def test_gram_in_blocks(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_near(gram(x), np.einsum("...ni,...nj->...ij", x.numpy(), x.numpy()), CLOSE)


@pytest.mark.parametrize("batch", [(), (1,), (2,)])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 6, 16, 27, 64, 193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_is_symmetric_to_the_bit(d: int, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    """With some libraries and processors x^T x is not: eigensolvers read one triangle only."""
    generator = torch.Generator().manual_seed(d)
    for n in (7, 30, 100, 1000):
        found = gram(torch.randn(*batch, n, d, generator=generator, dtype=dtype))
        assert torch.equal(found, found.mT)


@pytest.mark.parametrize("block", [2, 96])
def test_gram_of_products_that_are_not_symmetric(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, product = x.mT @ x, torch.Tensor.__matmul__

    def inexact(left: Tensor, right: Tensor) -> Tensor:
        found = product(left, right)
        return found + 1e-9 * torch.rand(found.shape, dtype=torch.float64)

    monkeypatch.setattr(torch.Tensor, "__matmul__", inexact)
    monkeypatch.setattr(sylvinit.moments.sums, "_GRAM_BLOCK", block)
    found = gram(x)
    assert not torch.equal(x.mT @ x, (x.mT @ x).mT)
    assert torch.equal(found, found.mT)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-9)


def test_constant_rows_have_no_covariance() -> None:
    x = torch.full((1, 1000, 3), 0.3)
    moments = PatchMoments(3).update(x[:, :77]).update(x[:, 77:])
    assert not moments.covariance().any()


def test_rows_are_copied() -> None:
    x = torch.randn(1, 20, 30, dtype=torch.float64)
    given_rows = x.clone()
    moments = PatchMoments(30).update(given_rows)
    given_rows.zero_()
    assert_moments(moments, x)


def test_labels_and_weights_are_copied() -> None:
    x = torch.randn(20, 30, dtype=torch.float64)
    labels, weights = torch.arange(20) % 3, torch.rand(20, dtype=torch.float64) + 0.5
    expected = PatchMoments(30, classes=3).update(x, labels.clone(), weights=weights.clone())
    moments = PatchMoments(30, classes=3).update(x, labels, weights=weights)
    labels.zero_()
    weights.fill_(7.0)
    assert torch.equal(moments.class_means(), expected.class_means())
    assert torch.equal(moments.class_counts(), expected.class_counts())


def test_sums_about_a_shift() -> None:
    x = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    y = torch.arange(40) % 3
    shift = torch.full((2, 5), 1.5, dtype=torch.float64)
    z = x[:, :25] - shift[:, None]
    hot = torch.nn.functional.one_hot(y[:25], 4).double()
    moments = PatchMoments(5, groups=2, classes=4).update(x[:, 25:], y[25:])
    moments.add_sums(
        RowSums(25, z.sum(dim=1), z.mT @ z, shift, LabelSums(hot.sum(dim=0), hot.T @ z))
    )
    assert_moments(moments, x, y)


@pytest.mark.parametrize("read", [False, True])
def test_transposed_features(read: bool) -> None:
    x = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, index = torch.arange(40) % 3, torch.tensor([0, 3, 1, 4, 2, 5])
    moments = PatchMoments(6, groups=2, classes=3, reservoir=6).update(x, y)
    if read:
        moments.mean()
    other = moments.transposed(2)
    assert_moments(other, x[..., index], y)
    rows, expected = other.reservoir(), moments.reservoir()
    assert rows is not None
    assert expected is not None
    assert torch.equal(rows, expected[..., index])


# ------------------------------------------------------------------------------------- columns


def test_columns_are_kept_until_there_are_as_many_as_features() -> None:
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    moments = PatchMoments(6, groups=2)
    assert moments.columns() is None
    for n in range(1, 6):
        moments.update(x[:, n - 1 : n])
        kept = moments.columns()
        assert kept is not None
        assert torch.equal(kept, x[:, :n])
    assert moments.update(x[:, 5:]).columns() is None
    assert_moments(moments, x)


def test_columns_of_a_merge() -> None:
    x = torch.randn(1, 8, 8, dtype=torch.float64)
    parts = [PatchMoments(8).update(x[:, i : i + 3]) for i in (0, 3, 6)]
    kept = parts[0].merge(parts[1]).columns()
    assert kept is not None
    assert torch.equal(kept, x[:, :6])
    assert parts[0].merge(parts[2]).columns() is None  # 8 rows of 8 features
    assert_moments(parts[0], x)


# ------------------------------------------------------------------------------------ reservoir


def priorities(n: int, key: tuple[int, int]) -> Tensor:
    return torch.tensor([philox4x32_10((i, 0, 0, 0), key)[1] for i in range(n)])


@given(
    n=st.integers(1, 60),
    capacity=st.integers(1, 20),
    cuts=st.sets(st.integers(1, 59), max_size=4),
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_reservoir_keeps_the_rows_of_least_priority(
    n: int, capacity: int, cuts: set[int], key: tuple[int, int]
) -> None:
    x = torch.arange(n, dtype=torch.float64).view(1, n, 1)
    priority = priorities(n, key)
    expected = x[0, priority.argsort(stable=True)[:capacity], 0]
    edges = sorted({0, n} | {cut for cut in cuts if cut < n})
    streamed = PatchMoments(1, reservoir=capacity)
    merged = PatchMoments(1, reservoir=capacity)
    for begin, end in pairwise(edges):
        streamed.update(x[:, begin:end], priority=priority[begin:end])
        part = PatchMoments(1, reservoir=capacity)
        merged.merge(part.update(x[:, begin:end], priority=priority[begin:end]))
    for moments in (streamed, merged):
        rows = moments.reservoir()
        assert rows is not None
        assert torch.equal(rows[0, :, 0], expected)


def test_reservoir_without_priorities_does_not_depend_on_chunks() -> None:
    x = torch.randn(2, 500, 3)
    whole = PatchMoments(3, groups=2, reservoir=40).update(x).reservoir()
    pieces = PatchMoments(3, groups=2, reservoir=40)
    for begin in range(0, 500, 23):
        pieces.update(x[:, begin : begin + 23])
    rows = pieces.reservoir()
    assert whole is not None
    assert rows is not None
    assert torch.equal(rows, whole)
    # Both groups keep the same rows of the stream.
    kept = [[int((x[g] == row).all(dim=1).nonzero()) for row in whole[g]] for g in range(2)]
    assert kept[0] == kept[1]
    assert len(set(kept[0])) == 40


@pytest.mark.parametrize("explicit", [False, True])
def test_reservoir_is_uniform(explicit: bool) -> None:
    n, capacity, bins = 20_000, 4000, 40
    x = torch.arange(n, dtype=torch.float32).view(1, n, 1)
    priority = priorities(n, (7, 9)) if explicit else None
    rows = PatchMoments(1, reservoir=capacity).update(x, priority=priority).reservoir()
    assert rows is not None
    assert len(rows.unique()) == capacity
    observed = np.bincount((rows.flatten() * bins / n).long().numpy(), minlength=bins)
    expected = capacity / bins
    statistic = ((observed - expected) ** 2 / expected).sum()
    # Fixed numbers, so this cannot fail by chance; the bound is where 1 of 1000 keys would.
    assert statistic < chi2.ppf(0.999, bins - 1)


def test_no_reservoir() -> None:
    assert PatchMoments(2).update(torch.randn(5, 2)).reservoir() is None


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["d_in", "groups", "classes", "reservoir"])
def test_sizes_out_of_range(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} must be at least [01], got -1"):
        PatchMoments(**{"d_in": 3, name: -1})


@pytest.mark.parametrize(
    ("x", "labels", "error", "message"),
    [
        (
            torch.zeros(4, 2),
            torch.zeros(4, dtype=torch.int64),
            DataError,
            r"\(n, 3\); got .*4, 2\)",
        ),
        (torch.zeros(2, 4, 3), torch.zeros(4, dtype=torch.int64), DataError, r"\(2, 4, 3\)"),
        (torch.zeros(3), torch.zeros(1, dtype=torch.int64), DataError, r"got \(3,\)"),
        (torch.zeros(4, 3).long(), torch.zeros(4, dtype=torch.int64), DataError, "floating"),
        (torch.zeros(4, 3), None, LabelError, "labels are needed"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64), LabelError, r"\(4,\).*\(5,\)"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int32), LabelError, "int64"),
        (torch.zeros(4, 3), torch.full((4,), 2), LabelError, r"\[0, 2\), got 2 to 2"),
        (torch.zeros(4, 3), torch.full((4,), -1), LabelError, "got -1 to -1"),
    ],
)
def test_bad_rows(x: Tensor, labels: Tensor | None, error: type, message: str) -> None:
    moments = PatchMoments(3, classes=2, reservoir=2)
    with pytest.raises(error, match=message):
        moments.update(x, labels)
    assert moments.n == 0
    assert moments.reservoir() is None
    with pytest.raises(DataError, match="no rows"):
        moments.mean()


def test_empty_chunks_count_nothing() -> None:
    moments = PatchMoments(3).update(torch.zeros(0, 3))
    assert moments.n == 0
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    assert_moments(moments.update(x).update(torch.zeros(0, 3, dtype=torch.float64)), x)


@pytest.mark.parametrize(
    "other",
    [
        PatchMoments(4),
        PatchMoments(3, groups=2),
        PatchMoments(3, classes=2),
        PatchMoments(3, reservoir=5),
    ],
)
def test_merging_different_sizes(other: PatchMoments) -> None:
    with pytest.raises(DataError, match=r"\(3, 1, 0, 0, 0\) here"):
        PatchMoments(3).merge(other)
