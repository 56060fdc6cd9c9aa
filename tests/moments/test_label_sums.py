"""Sums by labels, of weighted and unweighted rows, against the definitions in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_near
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sylvinit import PatchMoments
from sylvinit.errors import LabelError, OptionError

# Of the largest entry (or of 1): sums of up to 60 products in float64, see test_streaming.py.
CLOSE = 1e-12


@st.composite
def labeled_rows(draw: st.DrawFn) -> dict[str, Any]:
    n, d, groups = draw(st.integers(1, 60)), draw(st.integers(1, 7)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=3)))
    return {
        "x": torch.from_numpy(rng.normal(3, 1, (groups, n, d))),
        "targets": torch.from_numpy(rng.normal(1, 2, (n, draw(st.integers(1, 4))))),
        "classes": torch.from_numpy(rng.integers(0, 4, n)),
        "weights": torch.from_numpy(rng.uniform(0.1, 5, n)) if draw(st.booleans()) else None,
        "ends": [0, *cuts, n],
        "merged": draw(st.booleans()),
    }


def collected(rows: dict[str, Any], labels: Tensor, **sizes: int) -> PatchMoments:
    groups, _, d = rows["x"].shape
    total = PatchMoments(d, groups=groups, **sizes)
    for begin, end in zip(rows["ends"], rows["ends"][1:], strict=False):
        weights = rows["weights"]
        weights = None if weights is None else weights[begin:end]
        part = PatchMoments(d, groups=groups, **sizes) if rows["merged"] else total
        part.update(rows["x"][:, begin:end], labels[begin:end], weights=weights)
        if rows["merged"]:
            total.merge(part)
    return total


@given(labeled_rows())
def test_targets(rows: dict[str, Any]) -> None:
    y, x = rows["targets"], rows["x"].numpy()
    moments = collected(rows, y, targets=y.shape[1])
    n = len(y)
    w = np.ones(n) if rows["weights"] is None else rows["weights"].numpy()
    s = y.numpy()
    sums = moments.label_sums()
    assert sums is not None
    assert sums.second is not None
    assert moments.class_counts() is None
    assert moments.n == n
    assert moments.mass() == pytest.approx(w.sum(), rel=1e-13)
    assert_near(sums.total, w @ s, CLOSE * n)
    assert_near(sums.second, (w[:, None] * s).T @ s, CLOSE * n)
    assert_near(sums.cross, np.einsum("n,nt,gnd->gtd", w, s, x), CLOSE * n)


@given(labeled_rows())
def test_moments_of_weighted_rows(rows: dict[str, Any]) -> None:
    x, y = rows["x"].numpy(), rows["classes"]
    moments = collected(rows, y, classes=4)
    w = np.ones(len(y)) if rows["weights"] is None else rows["weights"].numpy()
    mean = np.einsum("n,gnd->gd", w, x) / w.sum()
    centered = x - mean[:, None]
    covariance = np.einsum("n,gni,gnj->gij", w, centered, centered) / w.sum()
    assert_near(moments.mean(), mean, CLOSE)
    assert_near(moments.covariance(), covariance, CLOSE)
    counts, means = moments.class_counts(), moments.class_means()
    assert counts is not None
    assert means is not None
    for c in range(4):
        member = (y == c).numpy()
        assert float(counts[c]) == pytest.approx(w[member].sum(), abs=1e-12)
        if member.any():
            expected = np.einsum("n,gnd->gd", w[member], x[:, member]) / w[member].sum()
            assert_near(means[:, c], expected, CLOSE)


@given(labeled_rows())
def test_transposed_keeps_labels_and_weights(rows: dict[str, Any]) -> None:
    y, d = rows["targets"], rows["x"].shape[2]
    moments = collected(rows, y, targets=y.shape[1])
    other = moments.transposed(1 if d % 2 else 2)
    order = torch.arange(d).view(1 if d % 2 else 2, -1).T.flatten()
    found, expected = other.label_sums(), moments.label_sums()
    assert found is not None
    assert expected is not None
    assert_near(found.cross, expected.cross[:, :, order].numpy(), CLOSE * len(y))
    assert other.mass() == pytest.approx(moments.mass(), rel=1e-13)


def test_many_classes_are_summed_without_one_hot_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 3, generator=generator, dtype=torch.float64) + 1
    y = torch.randint(0, 5000, (300,), generator=generator)
    y[:50] = 17
    weights = torch.rand(300, generator=generator, dtype=torch.float64) + 0.5
    moments = PatchMoments(3, groups=2, classes=5000).update(x, y, weights=weights)
    counts, means = moments.class_counts(), moments.class_means()
    assert counts is not None
    assert means is not None
    assert int((counts > 0).sum()) == len(y.unique())
    for c in y.unique().tolist():
        member, w = x[:, y == c], weights[y == c]
        assert_near(means[:, c], (w @ member / w.sum()).numpy(), CLOSE)
    assert not means[:, counts == 0].any()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.zeros(4, 2), "float64"),
        (torch.zeros(4, 3, dtype=torch.float64), r"\(4, 2\)"),
        (torch.full((4, 2), torch.nan, dtype=torch.float64), "NaN or Inf"),
        (None, "needed for moments with 2 targets"),
    ],
)
def test_wrong_targets(labels: Tensor | None, match: str) -> None:
    with pytest.raises(LabelError, match=match):
        PatchMoments(3, targets=2).update(torch.zeros(4, 3), labels)


def test_classes_or_targets() -> None:
    with pytest.raises(OptionError, match="not both"):
        PatchMoments(3, classes=2, targets=2)
